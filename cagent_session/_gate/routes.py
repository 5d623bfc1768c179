"""Find the gateway that a URL belongs to, and prepare the headers that requests to it get."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote_plus

from ..headers import FORWARD, SESSION_ID
from . import urls
from .passage import Stamped, StampedBytes
from .protocol import USER_AGENT
from .session_headers import SessionHeader, further_header, parent_header, session_header
from .validation import PREFIX

if TYPE_CHECKING:
    from .gateway import Gateway

# A header as a library keeps it, with its value at the end: (name, value), in httpx
# (name, name in lower case, value) in bytes.
Header: TypeAlias = tuple[Any, ...]
# Headers by their names in lower case: str, in httpx bytes.
Headers: TypeAlias = dict[Any, Header]
#: Where a gateway is: two with one place cannot be told apart.
Place: TypeAlias = tuple[urls.Origin, str]

# Finds the host, to look for its routes. It may be wrong in odd URLs: Route.owns() decides.
_host = re.compile(r"https?://(?:\[([^\]]*)\]|([^/?#:@\[\]\\\s]*))", re.IGNORECASE).match
# What may follow a gateway's URL in a URL that needs no closer look: nothing that is escaped, and
# no backslash.
_is_plain = re.compile(r"(?:[/?#][!-$&-\[\]-~]*)?").fullmatch

#: The headers that HTTP libraries add by themselves, by their names in lower case. All keys of
#: ``Library(replacements=)`` have to be among them: transports read no others.
DEFAULT_NAMES = ("user-agent", "accept", "accept-encoding")


class Library:
    """What the gate has to know of an HTTP library.

    :param defaults: the header values that the library adds by itself, and that are therefore no
        choice of the caller's, by the name in lower case. ``None`` among them says that the library
        adds the header later, where it is missing now.
    :param replacements: headers of this package that replace such values, if the gateway has no
        header of that name.
    :param in_bytes: whether it keeps headers in bytes, as httpx does.
    """

    def __init__(
        self,
        defaults: Mapping[str, tuple[str | None, ...]],
        *,
        replacements: Mapping[str, str] = {},
        in_bytes: bool = False,
    ) -> None:
        self.in_bytes = in_bytes
        self.defaults = {
            key: tuple(value if value is None else self.text(value) for value in values)
            for key, values in defaults.items()
        }
        self.replacements = {"User-Agent": USER_AGENT, **replacements}
        self.forward = self.text(FORWARD.lower())
        self.default_names = [self.text(name) for name in DEFAULT_NAMES]
        self.authorization = self.text("authorization")
        self.signature_input = self.text("signature-input")

    def text(self, text: str) -> Any:
        """Return ``text`` as the library keeps it."""
        return text.encode() if self.in_bytes else text

    def header(self, name: str, value: str) -> Header:
        """Return a header that the gate sets, as the library keeps it."""
        if self.in_bytes:
            return name.encode(), name.lower().encode(), StampedBytes(value.encode())
        return name, Stamped(value)


class Kit:
    """What a route puts on the requests of one library, in the shape of that library's headers."""

    def __init__(self, route: Route, library: Library) -> None:
        text, header = library.text, library.header
        self.in_bytes = library.in_bytes
        self.gateway_headers: Headers = {
            text(key): header(name, value) for key, (name, value) in route.gateway_headers.items()
        }
        #: the name in lower case, the library's default values, and the header that replaces them
        self.stand_ins: list[tuple[Any, tuple[Any, ...], Header]] = []
        replacements = {name.lower(): (name, value) for name, value in library.replacements.items()}
        for key, (name, value) in (replacements | route.gateway_headers).items():
            if key in library.defaults:
                self.stand_ins.append((text(key), library.defaults[key], header(name, value)))
        #: the name in lower case, the name, and the function that makes the value
        self.session_headers = [
            (text(each.key), text(each.name), each.make) for each in route.session_headers
        ]
        #: ``Route.session_names``, as the library keeps them
        self.session_names = [text(name) for name in route.session_names]


class Route:
    """A gateway as the transports see it: all that they need for each request, prepared once.

    :data:`BARE` is the route to all other URLs. Requests there are gateway-bound only if they carry
    ``X-Cagent-Forward``.

    :param gateway_headers: values by names, which are sent as they are spelt here.
    """

    def __init__(
        self, gateway: Gateway | None = None, gateway_headers: Mapping[str, str] | None = None
    ) -> None:
        url = "" if gateway is None else gateway.url
        parts = urls.check("gateway URL", url) if url else urls.Parts(_NOWHERE, "", "", False)
        self.url = url  #: the gateway's, or an empty string
        self.require_session = gateway is not None and gateway.require_session
        self.base = url.partition("?")[0].rstrip("/")  #: that URL without its query
        self.origin = parts.origin
        #: The path that all URLs of the gateway begin with, without a slash at its end.
        #: It is often empty.
        self.path = urls.canonical(parts.path.rstrip("/"))
        self.place: Place = self.origin, self.path
        self.query = [(_query_name(pair), pair) for pair in parts.query.split("&") if pair]
        #: (name, value) by the name in lower case
        self.gateway_headers = {
            name.lower(): (name, value) for name, value in (gateway_headers or {}).items()
        }
        self.session_headers = tuple(_session_headers(gateway))
        #: The names of the session headers in lower case. These are identifiers, as are all
        #: X-Cagent-*.
        self.identifiers = frozenset(each.key for each in self.session_headers)
        parent = None if gateway is None else gateway.parent_header
        #: The identifiers less the parent's header. A caller who sets one has chosen a session.
        self.session_names = self.identifiers - {(parent or "").lower()}
        #: Every name that gate() looks up, in lower case, as text and as bytes. Most transports
        #: read no other headers, so a name that is missing here is not seen.
        self.names = frozenset(
            (
                *(FORWARD.lower(), *DEFAULT_NAMES, "authorization", "signature-input"),
                *(*self.gateway_headers, *self.identifiers),
            )
        )
        self.names_in_bytes = frozenset(name.encode() for name in self.names)
        self.warned: dict[str, object] = {}  #: the warnings that have been said, each once
        self._kits: dict[Library, Kit] = {}

    def kit(self, library: Library) -> Kit:
        """Return what the requests of ``library`` get. It is made when first needed."""
        return self._kits.get(library) or self._kits.setdefault(library, Kit(self, library))

    def owns(self, url: str) -> bool:
        """Return whether ``url`` lies at or below the gateway's URL, however it is read."""
        # These three lines save parsing most URLs of the gateway, which begin with its URL and go
        # on with nothing that needs decoding. "/." may begin a dot segment.
        is_below = url.startswith(self.base) and _is_plain(url, len(self.base))
        if is_below and not (self.path and "/." in url):
            return True
        # And this saves parsing most URLs of others.
        if self.origin.host not in url.lower() or not urls.is_printable(url):
            return False
        parts = urls.split(url)
        if parts is None or parts.has_user or parts.origin != self.origin:
            return False
        return not self.path or (
            not urls.has_dot_segment(parts.path)
            and f"{urls.canonical(parts.path)}/".startswith(f"{self.path}/")
        )

    def with_query(self, url: str) -> str:
        """Return ``url`` with the gateway's query parameters that it does not have yet."""
        base, hash_mark, fragment = url.partition("#")
        base, _, query = base.partition("?")
        pairs = query.split("&") if query else []
        present = set(map(_query_name, pairs))
        pairs += [pair for name, pair in self.query if name not in present]
        return f"{base}?{'&'.join(pairs)}{hash_mark}{fragment}"


_NOWHERE = urls.Origin("", "", 0)  # the origin of no URL, for BARE


def _session_headers(gateway: Gateway | None) -> Iterable[SessionHeader]:
    """Yield the headers made from the session, in the order in which they are sent."""
    if gateway is None:
        yield session_header(SESSION_ID)
        return
    if gateway._sends_session_header:
        yield session_header(gateway.session_header)
    if gateway.parent_header is not None:
        yield parent_header(gateway.parent_header)
    for name, given in (gateway.session_headers or {}).items():
        yield further_header(name, given)


BARE = Route()


class Router:
    """Find the gateway that a URL belongs to: the one with the longest path.

    :raises TypeError: for anything but gateways.
    :raises ValueError: for two different gateways with the same origin and path.
    """

    def __init__(self, *gateways: Gateway | None) -> None:
        self.gateways: dict[Place, Gateway] = {}
        #: The routes by host, those with the longest path first. Each host is there as str, and as
        #: bytes for httpx; an IPv6 address has no brackets. Empty if there is no gateway.
        self.hosts: dict[str | bytes, list[Route]] = {}
        #: the names of the session headers of all routes, in lower case
        self.identifiers = BARE.identifiers
        #: the route, if there is just one, which saves looking for the host
        self._only: Route | None = None
        for gateway in gateways:
            if gateway is not None:
                self.add(gateway)

    def check(self, gateway: Gateway) -> Route:
        """Raise if :meth:`add` would; return the route to ``gateway``."""
        route = _route_of(gateway)
        if self.gateways.get(route.place, gateway) != gateway:
            raise ValueError(
                f"two different gateways are at {route.origin}{route.path}: use a client "
                "for each, or one without a gateway and headers=gateway_headers(...) per call"
            )
        return route

    def add(self, gateway: Gateway) -> None:
        """Route to one more gateway. Adding an equal one again changes nothing."""
        route = self.check(gateway)
        if route.place in self.gateways:
            return
        self.gateways[route.place] = gateway
        host = route.origin.host.strip("[]")
        routes = self.hosts.setdefault(host, [])
        self.hosts[host.encode()] = routes
        bisect.insort(routes, route, key=lambda each: -len(each.path))
        self.identifiers |= route.identifiers
        self._only = route if len(self.gateways) == 1 else None

    def route(self, url: str) -> Route:
        """Return the route to the gateway that owns ``url``, or :data:`BARE`."""
        if self._only is not None:
            return self._only if self._only.owns(url) else BARE
        host = _host(url) if self.hosts else None
        if host is not None:
            for route in self.hosts.get((host[1] or host[2] or "").lower(), ()):
                if route.owns(url):
                    return route
        return BARE

    def __reduce__(self) -> Any:
        return Router, tuple(self.gateways.values())


def _route_of(gateway: Any) -> Route:
    route = getattr(gateway, "_route", None)
    if not isinstance(route, Route):
        kind = type(gateway).__name__
        remedy = "write Gateway(url, forward=...)"
        if isinstance(gateway, list | tuple | set):
            remedy = "give each gateway as an argument of its own, as in instrument(*gateways)"
        raise TypeError(f"gateway must be a Gateway or None, not {kind}: {remedy}")
    return route


def may_get_identifiers(home: str, url: str) -> bool:
    """Return whether identifiers that are for ``home`` may go to ``url``: at its origin only.

    ``_transports/homed_headers.py`` applies the same rule to origins as urllib3 reads them.
    """
    return urls.same_origin(home, url)


def is_identifier(key: str, names: frozenset[str]) -> bool:
    """Return whether a header is an identifier, which only the gateway's origin may get.

    :param key: its name in lower case.
    :param names: the names of session headers, in lower case.
    """
    return key.startswith(PREFIX) or key in names


def _query_name(pair: str) -> str:
    return unquote_plus(pair.partition("=")[0])
