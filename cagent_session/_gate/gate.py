"""The gate: one decision for every transport.

A transport reads a request's URL and headers, asks :func:`gate`, and does to a copy of the request
what the :class:`Stamp` says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from .._session.scopes import current_lineage
from ..headers import is_identifier, lower, without
from . import urls
from .routes import AGENT, NOBODY, Owner

_log = logging.getLogger("cagent_session")

# A request's headers by their names in lower case; each a tuple that has the value at its end.
Headers: TypeAlias = dict[str, Any]
# The values that count as the HTTP library's own, by the names in lower case. None stands for a
# header that the library adds by itself where there is none.
Defaults: TypeAlias = Mapping[str, tuple[str | bytes | None, ...]]


_MISSING = (None,)
_DEBUG = logging.DEBUG


class SessionRequired(RuntimeError):
    """A request to a gateway that requires a session was about to be sent outside every session."""


@dataclass
class Stamp:
    """What a gateway-bound request gets."""

    url: Any  #: to be sent to
    headers: dict[str, tuple[str, str]]  #: to be set, (name, value) by the name in lower case
    removed: str | None  #: the name in lower case of a header to be taken off

    def on(self, headers: Mapping[str, Any]) -> MutableMapping[str, Any]:
        """``headers`` with this done to a copy of them, whatever spellings they have."""
        made = without(headers, {*self.headers, self.removed or ""})
        made.update(self.headers.values())
        return made


def is_bound(marker: str | bytes | None, owner: Owner) -> bool:
    """Whether a request is gateway-bound.

    It is if it carries a non-empty ``X-Cagent-Forward``, or if a gateway owns its URL and the
    caller has not opted out with an empty one.
    """
    return owner is not NOBODY if marker is None else bool(marker)


def gate(url: Any, owner: Owner, headers: Headers, defaults: Defaults) -> Stamp | None:
    """Decide whether a request is gateway-bound, and what it then gets.

    :param url: of the request; what ``str()`` makes of it.
    :param owner: who owns ``url``.
    :param headers: the caller's, at least those that the owner looks at.
    :param defaults: the HTTP library's, which are no choice of the caller's.
    :returns: ``None`` for a request that must go out untouched.
    :raises SessionRequired: if there is no session, and the owner requires one.
    """
    marker = headers.get("x-cagent-forward", _MISSING)[-1]
    if not is_bound(marker, owner):
        if _log.isEnabledFor(_DEBUG):
            why = "no gateway owns it" if marker is None else "its X-Cagent-Forward is empty"
            _log.debug("not gateway-bound, as %s: %s", why, urls.bare(str(url)))
        return None
    stamped = owner.marks.copy()
    if stamped and not stamped.keys().isdisjoint(dict.keys(headers)):
        for key in [key for key in stamped if key in headers]:
            if headers[key][-1] not in defaults.get(key, ()):
                del stamped[key]
    if headers.get("user-agent", _MISSING)[-1] in defaults.get("user-agent", ()):
        stamped.setdefault("user-agent", AGENT)
    lineage = current_lineage()
    session_id, parent, removed = lineage[0], lineage[1], None
    if session_id is not None:
        stamped[owner.session_key] = (owner.session_header, session_id)
        if owner.parent_header is not None:
            if parent is None:
                removed = owner.parent_header.lower()
            else:
                stamped[owner.parent_header.lower()] = (owner.parent_header, parent)
    elif owner.require_session and not headers.get(owner.session_key, _MISSING)[-1]:
        raise SessionRequired(
            f"no session is in scope for a request to {urls.bare(str(url))}, and its gateway "
            "requires one: send it inside session_scope(...) or a function decorated with "
            "session_from(...), and from a thread or a pool with bind_session(...)"
        )
    if _log.isEnabledFor(_DEBUG):
        why = "it has X-Cagent-Forward" if owner is NOBODY else f"{urls.bare(owner.url)} owns it"
        where = "no session" if session_id is None else f"session {session_id}"
        _log.debug("gateway-bound, as %s, in %s: %s", why, where, urls.bare(str(url)))
    return Stamp(owner.with_query(url), stamped, removed)


class Passing:
    """What a transport of this package is passing on, for whoever is next on its way.

    The seams of ``instrument`` leave that alone. As long as there are none, nobody has to say it.
    """

    is_watched = False
    request: ContextVar[Any] = ContextVar("cagent_session_passing", default=None)

    def has(self, request: Any) -> bool:
        """Whether it is ``request``, or has been copied into it by a transport in between."""
        passed = self.request.get()
        if passed is None or passed is request:
            return passed is request
        if (request.method, request.url) != (
            getattr(passed, "method", None),
            getattr(passed, "url", None),
        ):
            return False
        # A copy has its identifiers; what somebody below asks for on their own has none.
        names = getattr(passed.headers, "owner", NOBODY).session_names
        return all(
            name in request.headers for name in passed.headers if is_identifier(lower(name), names)
        )


class PassingOn:
    """Say that ``request`` is next, for the time of a ``with`` block."""

    def __init__(self, request: object) -> None:
        self._request = request

    def __enter__(self) -> None:
        self._token = passing.request.set(self._request)

    def __exit__(self, *exc_info: object) -> None:
        passing.request.reset(self._token)


passing: Passing = Passing()
