"""ASGI middleware that serves each request in the session that came with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, TypeAlias

from .._session.scopes import ResumableScopes, exchange_frames
from .._session.wrapping import wrap_body
from ..headers import SESSION_ID
from ._received import ReceivedSession

_Scope: TypeAlias = MutableMapping[str, Any]
_App: TypeAlias = Callable[[_Scope, Any, Any], Awaitable[None]]


class SessionMiddleware:
    """Serve each request in the session that its ``X-Cagent-Session-Id`` names, or in none.

    The session covers an HTTP request or a WebSocket to its end, background tasks of the response
    included. A malformed ID, or more than one, costs one warning in the log ``cagent_session``,
    and the request is served in no session.

    Put it outside all other middleware. What runs outside it can find the session of an earlier
    request: on asyncio's own event loop before Python 3.15, uvicorn hands a context variable that
    was set during a request with a large body on to the next request on the same connection. To
    pipelined requests, it can do that on every loop.

    :param app: the ASGI application.
    :param session_header: the name of the header that the session is read from.
    :param parent_header: the name of the header that the session's parent is read from. Left out,
        a received session has no parent.
    :param trusted: called with the ASGI ``scope`` of a request that names a session; the session
        is ignored unless it returns a true value. Left out, every client may name a session, so
        strangers must not be able to reach the service.
    :raises ValueError: for a name that no header can have, or that has a meaning of its own.
    :raises TypeError: for an ``app`` or a ``trusted`` that cannot be called.

    ::

        app = SessionMiddleware(app)                              # FastAPI, Starlette
        application = SessionMiddleware(get_asgi_application())   # Django
    """

    def __init__(
        self,
        app: _App,
        *,
        session_header: str = SESSION_ID,
        parent_header: str | None = None,
        trusted: Callable[[_Scope], bool] | None = None,
    ) -> None:
        if not callable(app):
            raise TypeError(f"app must be an ASGI application, not {type(app).__name__}")
        self.app = app
        example = 'lambda scope: (b"x-service-key", KEY) in scope["headers"]'
        self._received = ReceivedSession(_reader, session_header, parent_header, trusted, example)
        # The plain code would be a with around the await. It would leave the session to a server
        # that drives the coroutine by hand, and is in a session of its own.
        self._serve_in_session = wrap_body(
            self._serve, lambda args, kwargs: _ScopesOfRequest(self._received.lineage(args[0]))
        )

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if isinstance(scope.get("headers"), Iterator):
            # ASGI allows any iterable. Reading an iterator would leave the application none.
            scope = {**scope, "headers": list(scope["headers"])}
        await self._serve_in_session(scope, receive, send)

    async def _serve(self, scope: _Scope, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class _ScopesOfRequest(ResumableScopes):
    """The scopes of a request, which do not rest on those that are open in the server.

    What is open in the server may be left from an earlier request of the connection (see above).
    Scopes on top of that would keep it alive, so that a connection that stays open would collect
    the scopes of all its requests.
    """

    def __enter__(self) -> None:
        self._frame_of_server = exchange_frames()
        super().__enter__()

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__()
        exchange_frames(self._frame_of_server)
        del self._frame_of_server


def _reader(header: str) -> Callable[[_Scope], str | None]:
    name = header.lower().encode()

    def read(scope: _Scope) -> str | None:
        values = [value for key, value in scope.get("headers", ()) if key.lower() == name]
        # No ID has a space, so several values are joined into a malformed one.
        return b" ".join(values).decode("latin-1") if values else None

    return read
