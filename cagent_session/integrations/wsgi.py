"""WSGI: a service that serves each request in the session that came with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._session.handoff import received_lineage
from .._session.scopes import ResumableScopes
from ..headers import SESSION_ID

_KEY = "HTTP_" + SESSION_ID.upper().replace("-", "_")


class SessionMiddleware:
    """Serves each request in the session of its ``X-Cagent-Session-Id``, or in none.

    The iterable that the application returns runs in the session, too. Nothing stays behind on
    the thread, not even a scope that the application forgot to leave. A malformed ID, or more than
    one, is ignored, with one warning in the log ``cagent_session``; so is an ID with a comma in it,
    as servers join several headers with one.

    :param app: the WSGI application.
    :param trusted: given the ``environ``, says whether the client may name its session. Without
        it everyone may, so the service should not be open to strangers.

    ::

        app.wsgi_app = SessionMiddleware(app.wsgi_app)          # Flask
        application = SessionMiddleware(get_wsgi_application())  # Django
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        *,
        trusted: Callable[[dict[str, Any]], bool] | None = None,
    ) -> None:
        self.app = app
        self._trusted = trusted

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""
        session_id = environ.get(_KEY)
        if session_id is not None and self._trusted is not None and not self._trusted(environ):
            session_id = None
        if session_id is not None:
            # What no ID has makes several malformed together.
            session_id = session_id.replace(",", ", ")
        scopes = ResumableScopes(received_lineage(session_id))
        with scopes:
            chunks = self.app(environ, start_response)
        # Servers send a file, or a list of one chunk, faster if they see that it is one.
        file_wrapper = environ.get("wsgi.file_wrapper")
        if type(chunks) in (list, tuple) or (
            isinstance(file_wrapper, type) and isinstance(chunks, file_wrapper)
        ):
            return chunks
        return _Body(chunks, scopes)


class _Body:
    """The iterable of the application, each step of it in the scopes that the last one had open."""

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
