"""The session of a received request, for the WSGI and the ASGI middleware."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .._gate.validation import check_parent_header, check_session_header
from .._session.handoff import received_lineage
from .._session.scopes import OUTSIDE, Lineage

_Request = TypeVar("_Request")

_log = logging.getLogger("cagent_session")


class ReceivedSession(Generic[_Request]):
    """Read the session of a request from its headers, unless the client is not trusted.

    :param reader: returns a function that reads the header of this name from a request.
    :param example: a ``trusted`` as its error shows it.
    """

    def __init__(
        self,
        reader: Callable[[str], Callable[[_Request], str | None]],
        session_header: str,
        parent_header: str | None,
        trusted: Any,
        example: str,
    ) -> None:
        if trusted is not None and not callable(trusted):
            raise TypeError(
                f"trusted must be a function, not {type(trusted).__name__}: trusted={example}"
            )
        if inspect.iscoroutinefunction(trusted):
            raise TypeError(f"trusted must return a bool, and not be async: trusted={example}")
        check_session_header(session_header)
        if parent_header is not None:
            check_parent_header(parent_header, [session_header.lower()])
        self._session_header = session_header
        self._session_of = reader(session_header)
        self._parent_of = None if parent_header is None else reader(parent_header)
        self._trusted = trusted
        # Several headers of one name are read as one value that is malformed.
        self._names = tuple(
            f"{name} came more than once, or" for name in (session_header, parent_header)
        )

    def lineage(self, request: _Request) -> Lineage:
        """Return the lineage of the request's session, or ``OUTSIDE``."""
        session_id = self._session_of(request)
        if session_id is None:
            return OUTSIDE
        if self._trusted is not None and not self._trusts(request):
            _log.debug("ignored %s, as trusted= refused the request", self._session_header)
            return OUTSIDE
        parent = None if self._parent_of is None else self._parent_of(request)
        return received_lineage(session_id, parent, names=self._names)

    def _trusts(self, request: _Request) -> bool:
        answer = self._trusted(request)
        if inspect.isawaitable(answer):  # it counts as true
            getattr(answer, "close", lambda: None)()  # Python would warn that nobody awaits it
            raise TypeError("trusted must return a bool, and not what has to be awaited")
        return bool(answer)
