"""WSGI middleware that serves each request in the session that came with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._gate.validation import check_parent_header, check_session_header
from .._session.handoff import received_lineage
from .._session.scopes import ResumableScopes
from ..headers import SESSION_ID


class SessionMiddleware:
    """Serve each request in the session that its ``X-Cagent-Session-Id`` names, or in none.

    The session covers the application and the iterable that it returns, to its ``close()``. No
    session stays behind on the server's thread, not even a scope that the application forgot to
    leave. A malformed ID costs one warning in the log ``cagent_session``, and the request is
    served in no session. So is a request with two session headers: WSGI servers join them with a
    comma, and so an ID with a comma in it counts as two.

    :param app: the WSGI application.
    :param session_header: the name of the header that the session is read from.
    :param parent_header: the name of the header that the session's parent is read from. Left out,
        a received session has no parent.
    :param trusted: called with the ``environ`` of a request that names a session; the session is
        ignored unless it returns a true value. Left out, every client may name a session, so
        strangers must not be able to reach the service.
    :raises ValueError: for a name that no header can have, or that has a meaning of its own.
    :raises TypeError: for an ``app`` or a ``trusted`` that cannot be called.

    ::

        app.wsgi_app = SessionMiddleware(app.wsgi_app)           # Flask
        application = SessionMiddleware(get_wsgi_application())  # Django
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        *,
        session_header: str = SESSION_ID,
        parent_header: str | None = None,
        trusted: Callable[[dict[str, Any]], bool] | None = None,
    ) -> None:
        if not callable(app):
            raise TypeError(f"app must be a WSGI application, not {type(app).__name__}")
        if trusted is not None and not callable(trusted):
            raise TypeError(
                f"trusted must be a function of the environ, not {type(trusted).__name__}: "
                'trusted=lambda environ: environ.get("HTTP_X_SERVICE_KEY") == KEY'
            )
        check_session_header(session_header)
        if parent_header is not None:
            check_parent_header(parent_header, [session_header.lower()])
        self.app = app
        self._session_key = _environ_key(session_header)
        self._parent_key = None if parent_header is None else _environ_key(parent_header)
        self._trusted = trusted

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""
        session_id = _value(environ, self._session_key)
        if session_id is not None and self._trusted is not None and not self._trusted(environ):
            session_id = None
        parent = None
        if session_id is not None and self._parent_key is not None:
            parent = _value(environ, self._parent_key)
        scopes = ResumableScopes(received_lineage(session_id, parent))
        with scopes:
            chunks = self.app(environ, start_response)
        # Wrapped in _Body, these would lose what servers do for them: a file goes out with
        # sendfile(), a list of one chunk with a Content-Length. Neither runs code of the
        # application.
        file_wrapper = environ.get("wsgi.file_wrapper")
        if type(chunks) in (list, tuple) or (
            isinstance(file_wrapper, type) and isinstance(chunks, file_wrapper)
        ):
            return chunks
        return _Body(chunks, scopes)


def _environ_key(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


def _value(environ: dict[str, Any], key: str) -> str | None:
    value: str | None = environ.get(key)
    # The server joins several headers of one name with "," or ", ". No ID has a space, so the
    # joined value is malformed, and is not taken for an ID of its own.
    return None if value is None else value.replace(",", ", ")


class _Body:
    """The application's iterable, each step in the scopes that were open after the last one.

    The plain code would be a ``with`` around the loop. It would leave the session on the server's
    thread while the server sends a chunk.
    """

    def __init__(self, chunks: Iterable[bytes], scopes: ResumableScopes) -> None:
        self._chunks = chunks
        self._scopes = scopes

    def __iter__(self) -> Iterator[bytes]:
        with self._scopes:
            steps = iter(self._chunks)
        while True:
            with self._scopes:
                try:
                    chunk = next(steps)
                except StopIteration:
                    return
            yield chunk

    def close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            with self._scopes:
                close()
