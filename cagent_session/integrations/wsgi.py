"""WSGI middleware that serves each request in the session that came with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._session.scopes import ResumableScopes
from .._session.wrapping import wrap_call
from ..headers import SESSION_ID
from ._received import ReceivedSession


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
        self.app = app
        example = 'lambda environ: environ.get("HTTP_X_SERVICE_KEY") == KEY'
        self._received = ReceivedSession(_reader, session_header, parent_header, trusted, example)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""
        scopes = ResumableScopes(self._received.lineage(environ))
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
        kind = _SizedBody if hasattr(type(chunks), "__len__") else _Body
        return kind(chunks, scopes)


def _reader(header: str) -> Callable[[dict[str, Any]], str | None]:
    key = "HTTP_" + header.upper().replace("-", "_")

    def read(environ: dict[str, Any]) -> str | None:
        value: str | None = environ.get(key)
        # The server joins several headers of one name with "," or ", ". No ID has a space, so the
        # joined value is malformed, and is not taken for an ID of its own.
        return None if value is None else value.replace(",", ", ")

    return read


class _Body:
    """The application's iterable, each step in the scopes that were open after the last one.

    The plain code would be a ``with`` around the loop. It would leave the session on the server's
    thread while the server sends a chunk.
    """

    def __init__(self, chunks: Iterable[bytes], scopes: ResumableScopes) -> None:
        self._chunks: Iterable[bytes] | None = chunks
        self._scopes = scopes

    def __iter__(self) -> Iterator[bytes]:
        return _steps(self._scopes, self._chunks)  # type: ignore[no-any-return]

    def close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            with self._scopes:
                close()

    def __del__(self) -> None:
        # Not all iterables have a close(). This drops a generator in one, which ends it.
        with self._scopes:
            self._chunks = None


class _SizedBody(_Body):
    """An iterable that has a length. Of one chunk, servers make the ``Content-Length``."""

    def __len__(self) -> int:
        with self._scopes:
            return len(self._chunks)  # type: ignore[arg-type]


def _each(scopes: ResumableScopes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    # "yield from" would call the close() that the server calls, too.
    for chunk in chunks:  # noqa: UP028
        yield chunk


_steps = wrap_call(_each, lambda args, kwargs: args[0])
