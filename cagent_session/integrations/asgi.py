"""ASGI: a service that serves each request in the session that came with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from .._session.handoff import received_lineage
from .._session.scopes import OUTSIDE, Lineage, ResumableScopes
from .._session.wrapping import wrap_body
from ..headers import SESSION_ID

_Scope: TypeAlias = MutableMapping[str, Any]
_App: TypeAlias = Callable[[_Scope, Any, Any], Awaitable[None]]

_NAME = SESSION_ID.lower().encode()


class SessionMiddleware:
    """Serves each request in the session of its ``X-Cagent-Session-Id``, or in none.

    HTTP requests and WebSockets are covered to their end. A malformed ID, or more than one, is
    ignored, with one warning in the log ``cagent_session``.

    :param app: the ASGI application.
    :param trusted: given the ASGI ``scope``, says whether the client may name its session.
        Without it everyone may, so the service should not be open to strangers.

    ::

        app = SessionMiddleware(app)
        app.add_middleware(SessionMiddleware)  # FastAPI, Starlette
    """

    def __init__(self, app: _App, *, trusted: Callable[[_Scope], bool] | None = None) -> None:
        self.app = app
        self._trusted = trusted
        # Not a plain with: the server may drive this by hand, and be in a session of its own.
        self._serve_in_session = wrap_body(
            self._serve, lambda args, kwargs: ResumableScopes(self._lineage_of(args[0]))
        )

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] in ("http", "websocket"):
            await self._serve_in_session(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve(self, scope: _Scope, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def _lineage_of(self, scope: _Scope) -> Lineage:
        values = [value for name, value in scope["headers"] if name.lower() == _NAME]
        if not values or (self._trusted is not None and not self._trusted(scope)):
            return OUTSIDE
        # Several are joined by what no ID has, so that they are malformed together.
        return received_lineage(b" ".join(values).decode("latin-1"))
