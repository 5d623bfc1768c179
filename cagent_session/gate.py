"""The gate: one decision for every transport.

A transport reads a request's URL and headers, asks :func:`gate`, and does to a copy of the request
what the :class:`Stamp` says.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from . import urls
from ._scopes import current_lineage
from .headers import FORWARD, PREFIX, SESSION_ID, USER_AGENT, lower

_log = logging.getLogger("cagent_session")

# A request's headers by their names in lower case; each a tuple that has the value at its end.
Headers: TypeAlias = Mapping[str, tuple[Any, ...]]
# The values that count as the HTTP library's own, by the names in lower case.
Defaults: TypeAlias = Mapping[str, tuple[str | bytes | None, ...]]

AGENT = ("User-Agent", USER_AGENT)
_SESSION_KEY = SESSION_ID.lower()
_NO_NAMES: frozenset[str] = frozenset()

# The headers of a caller's that matter where no gateway owns the URL, see GatewayProtocol.
LOOKED_AT: Mapping[bytes, str] = {
    name.encode(): name for name in (FORWARD.lower(), _SESSION_KEY, "user-agent")
}


class Passing:
    """What a transport of this package is passing on, for whoever is next on its way.

    The seams of ``instrument`` leave that alone. As long as there are none, nobody has to say it.
    """

    is_watched = False

    def __init__(self) -> None:
        self._request: ContextVar[Any] = ContextVar("cagent_session_passing", default=None)

    def get(self) -> Any:
        """The request, or ``None``."""
        return self._request.get()

    def set(self, request: object) -> Any:
        """Say that ``request`` is next; gives what was said before."""
        before = self._request.get()
        self._request.set(request)
        return before

    @contextlib.contextmanager
    def on(self, request: object) -> Iterator[None]:
        """Say that ``request`` is next, for the time of a ``with`` block."""
        before = self.set(request)
        try:
            yield
        finally:
            self.set(before)


passing = Passing()

_host = re.compile(r"https?://(?:\[([^\]]*)\]|([^/?#:@\[\]\\\s]*))", re.IGNORECASE).match


class SessionRequired(RuntimeError):
    """A request to a gateway that requires a session was about to be sent outside every session."""


@runtime_checkable
class GatewayProtocol(Protocol):
    """What the gate and the transports read of a :class:`~cagent_session.Gateway`."""

    @property
    def url(self) -> str: ...
    @property
    def origin(self) -> urls.Origin: ...
    @property
    def path(self) -> str: ...
    @property
    def session_header(self) -> str: ...
    @property
    def parent_header(self) -> str | None: ...
    @property
    def require_session(self) -> bool: ...
    @property
    def session_names(self) -> frozenset[str]: ...
    @property
    def looked_at(self) -> Mapping[bytes, str]: ...
    @property
    def encoded_marks(self) -> Mapping[str, tuple[bytes, bytes, bytes]]: ...
    @property
    def marks(self) -> dict[str, tuple[str, str]]: ...
    def owns(self, url: str) -> bool: ...
    def with_query(self, url: str) -> str: ...


class Gateways:
    """The gateways that one transport routes to.

    :raises TypeError: for anything but gateways.
    :raises ValueError: for two that differ and have one origin and path.
    """

    def __init__(self, gateways: Iterable[GatewayProtocol]) -> None:
        self.hosts: dict[str | bytes, list[GatewayProtocol]] = {}
        known: dict[tuple[urls.Origin, str], GatewayProtocol] = {}
        for gateway in gateways:
            if not isinstance(gateway, GatewayProtocol):
                raise TypeError(f"gateway must be a Gateway or None, not {type(gateway).__name__}")
            place = gateway.origin, gateway.path
            if known.setdefault(place, gateway) != gateway:
                raise ValueError(
                    f"two different gateways are at {gateway.origin}{gateway.path}: use a client "
                    "for each, or one without a gateway and headers=gateway_headers(...) per call"
                )
        for gateway in sorted(known.values(), key=lambda gateway: -len(gateway.path)):
            host = gateway.origin.host.strip("[]")
            self.hosts.setdefault(host, []).append(gateway)
            self.hosts.setdefault(host.encode(), []).append(gateway)
        self._only = next(iter(known.values())) if len(known) == 1 else None

    def owner(self, url: str) -> GatewayProtocol | None:
        """The gateway that owns ``url``, the one with the longest path if several do."""
        if self._only is not None:
            return self._only if self._only.owns(url) else None
        host = _host(url) if self.hosts else None
        if host is not None:
            for gateway in self.hosts.get((host[1] or host[2]).lower(), ()):
                if gateway.owns(url):
                    return gateway
        return None


@dataclass(slots=True)
class Stamp:
    """What a gateway-bound request gets."""

    url: str  #: to be sent to
    headers: dict[str, tuple[str, str]]  #: to be set, (name, value) by the name in lower case
    removed: str | None  #: the name in lower case of a header to be taken off


def is_bound(marker: str | bytes | None, owner: GatewayProtocol | None) -> bool:
    """Whether a request is gateway-bound.

    It is if it carries a non-empty ``X-Cagent-Forward``, or if a gateway owns its URL and the
    caller has not opted out with an empty one.
    """
    return owner is not None if marker is None else bool(marker)


def gate(
    url: Any,
    marker: str | bytes | None,
    owner: GatewayProtocol | None,
    headers: Headers,
    defaults: Defaults,
) -> Stamp | None:
    """Decide whether a request is gateway-bound, and what it then gets.

    :param url: of the request; what ``str()`` makes of it.
    :param marker: the caller's ``X-Cagent-Forward``, ``None`` if there is none.
    :param owner: the gateway that owns ``url``.
    :param headers: the caller's, at least those that the ``owner`` looks at.
    :param defaults: a value among them stands for no choice of the caller's, and ``None`` for a
        header that the library adds by itself.
    :returns: ``None`` for a request that must go out untouched.
    :raises SessionRequired: if there is no session, and the owner requires one.
    """
    if not is_bound(marker, owner):
        if _log.isEnabledFor(logging.DEBUG):
            why = "no gateway owns it" if marker is None else "its X-Cagent-Forward is empty"
            _log.debug("not gateway-bound, as %s: %s", why, urls.bare(str(url)))
        return None
    if owner is None:
        stamped: dict[str, tuple[str, str]] = {}
    else:
        url = owner.with_query(url)
        stamped = owner.marks.copy()
        if not stamped.keys().isdisjoint(headers):
            for key in stamped.keys() & headers.keys():
                if headers[key][-1] not in defaults.get(key, ()):
                    del stamped[key]
    agent = headers.get("user-agent")
    if (None if agent is None else agent[-1]) in defaults.get("user-agent", ()):
        stamped.setdefault("user-agent", AGENT)
    removed = _stamp_session(url, owner, headers, stamped)
    if _log.isEnabledFor(logging.DEBUG):
        why = "it has X-Cagent-Forward" if owner is None else f"{urls.bare(owner.url)} owns it"
        session = current_lineage()[0]
        where = "no session" if session is None else f"session {session}"
        _log.debug("gateway-bound, as %s, in %s: %s", why, where, urls.bare(str(url)))
    return Stamp(url, stamped, removed)


def _stamp_session(
    url: Any,
    owner: GatewayProtocol | None,
    headers: Headers,
    stamped: dict[str, tuple[str, str]],
) -> str | None:
    """Add the session to ``stamped``; gives the header to be taken off, if there is one."""
    lineage = current_lineage()
    session_id, parent = lineage[0], lineage[1]
    if owner is None:
        if session_id is not None:
            stamped[_SESSION_KEY] = (SESSION_ID, session_id)
        return None
    session_header, parent_header = owner.session_header, owner.parent_header
    if session_id is None:
        given = headers.get(session_header.lower())
        if owner.require_session and not (given and given[-1]):
            raise SessionRequired(
                f"no session is in scope for a request to {urls.bare(str(url))}, and its gateway "
                "requires one: send it inside session_scope(...) or a function decorated with "
                "session_from(...), and from a thread or a pool with bind_session(...)"
            )
        return None
    stamped[session_header.lower()] = (session_header, session_id)
    if parent_header is None:
        return None
    if parent is None:
        return parent_header.lower()
    stamped[parent_header.lower()] = (parent_header, parent)
    return None


def is_identifier(key: str, names: frozenset[str]) -> bool:
    """Whether a header, its name in lower case, is for the gateway alone.

    :param names: those that are so besides all ``X-Cagent-*``.
    """
    return key.startswith(PREFIX) or key in names


def names_of(owner: GatewayProtocol | None) -> frozenset[str]:
    """The names that ``owner`` has given to the identifiers of its sessions."""
    return _NO_NAMES if owner is None else owner.session_names


def by_lower_name(items: Iterable[tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Headers by their names. Of one name several count as the first value that is not empty."""
    headers: dict[str, tuple[Any, Any]] = {}
    for item in items:
        key = lower(item[0])
        if key not in headers or not headers[key][1]:
            headers[key] = item
    return headers
