"""Find the gateway that a URL belongs to, and prepare the headers that requests to it get."""

from __future__ import annotations

import bisect
import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote_plus

from ..headers import FORWARD, SESSION_ID
from . import urls
from .passage import Stamped, StampedBytes, lower
from .protocol import USER_AGENT
from .session_headers import SessionHeader, further_header, parent_header, session_header
from .validation import PREFIX

if TYPE_CHECKING:
    from .gateway import Gateway

_log = logging.getLogger("cagent_session")

# A header as a library keeps it, with its value at the end: (name, value), in httpx
# (name, name in lower case, value) in bytes.
Header: TypeAlias = tuple[Any, ...]
# Headers by their names in lower case.
Headers: TypeAlias = dict[str, Header]
#: Where a gateway is: two with one place cannot be told apart.
Place: TypeAlias = tuple[urls.Origin, str]

# Finds the host, to look for its routes. It may be wrong in odd URLs: Route.owns() decides.
_host = re.compile(r"https?://(?:\[([^\]]*)\]|([^/?#:@\[\]\\\s]*))", re.IGNORECASE).match
# What may follow a gateway's URL in a URL that needs no closer look: nothing that is escaped, and
# no backslash.
_is_plain = re.compile(r"(?:[/?#][!-$&-\[\]-~]*)?").fullmatch
# What a server may read in more than one way: escapes, parameters, dot segments, several slashes.
_is_ambiguous = re.compile(r"[%;\\]|/[./]|[^!-~]").search

FORWARD_KEY = FORWARD.lower()
#: The headers that HTTP libraries add by themselves, by their names in lower case. The gate leaves
#: them alone on a request whose headers are signed.
DEFAULT_KEYS = ("user-agent", "accept", "accept-encoding")
_SIGNATURE_KEYS = frozenset({"authorization", "signature-input"})  # what holds such a signature


class Library:
    """What the gate has to know of an HTTP library.

    :param defaults: the header values that the library adds by itself, and that are therefore no
        choice of the caller's, by the name in lower case. ``None`` among them says that the library
        adds the header later, where it is missing now.
    :param replacements: headers of this package that replace such values, if the gateway has no
        header of that name.
    :param in_bytes: whether it keeps headers in bytes, as httpx does.
    :param make_name: makes a name that the library can set quickly, from its text.
    """

    def __init__(
        self,
        defaults: Mapping[str, tuple[str | None, ...]],
        *,
        replacements: Mapping[str, str] = {},
        in_bytes: bool = False,
        make_name: Callable[[str], str] = str,
    ) -> None:
        self.in_bytes = in_bytes
        self.make_name = make_name
        self.defaults = {
            key: tuple(value if value is None else self.text(value) for value in values)
            for key, values in defaults.items()
        }
        if not in_bytes:  # code in between may have put them in bytes, as requests-oauthlib does
            for key, values in defaults.items():
                self.defaults[key] += tuple(value.encode() for value in values if value is not None)
        self.replacements = {
            name.lower(): (name, value)
            for name, value in {"User-Agent": USER_AGENT, **replacements}.items()
        }

    def text(self, text: str) -> Any:
        """Return ``text`` as the library keeps it."""
        return text.encode() if self.in_bytes else text

    def header(self, name: str, value: str) -> Header:
        """Return a header that the gate sets, as the library keeps it."""
        made = StampedBytes(value.encode()) if self.in_bytes else Stamped(value)
        made.key = name.lower()
        if self.in_bytes:
            return name.encode(), name.lower().encode(), made
        return self.make_name(name), made


class Plan:
    """What the gate does with requests that have headers of certain names.

    Clients send the same few sets of names again and again. So what depends on the names alone is
    worked out once for each set, and the gate reads a few values for each request.

    :param route: to the gateway that owns the requests.
    :param library: the HTTP library that makes them.
    :param names: of all their headers, in order, as the library keeps them.
    """

    def __init__(self, route: Route, library: Library, names: tuple[str | bytes, ...]) -> None:
        keys = [lower(name) for name in names]
        self.route = route
        self.library = library
        self.names = names
        self.keys = frozenset(keys)  #: the names in lower case
        #: whether each name is there once, and as the library keeps names: as text or as bytes
        self.is_simple = len(self.keys) == len(keys) and not any(
            isinstance(name, bytes) != library.in_bytes for name in names
        )
        self.has_forward = FORWARD_KEY in keys
        #: those of the names that are identifiers, which the caller has set
        self.callers_identifiers = identifiers_among(names, route.session_keys)
        if route is BARE and not self.has_forward:
            return  # the requests cannot be gateway-bound, and need none of the rest
        #: Gateway headers, less those that the caller has set. They are shared by all requests.
        self.gateway_headers: Headers = {
            key: library.header(name, value)
            for key, (name, value) in route.gateway_headers.items()
            if key not in keys
        }
        #: The headers that the library may have added by itself: the name in lower case, the
        #: library's values, and the header that replaces them.
        self.stand_ins: list[tuple[str, tuple[Any, ...], Header]] = []
        for key, (name, value) in (library.replacements | route.gateway_headers).items():
            defaults = library.defaults.get(key, ())
            header = library.header(name, value)
            if key in keys and defaults:
                header[-1].replaces = key.title(), defaults[0]
                self.stand_ins.append((key, defaults, header))
            elif None in defaults:  # the library adds the header later
                self.gateway_headers[key] = header
        self.may_be_signed = not _SIGNATURE_KEYS.isdisjoint(keys)
        #: the name in lower case, the header less its value, and the function that makes the value
        self.session_headers = [
            (each.key, library.header(each.name, "")[:-1], each.make)
            for each in route.session_headers
        ]
        #: The session headers that the caller has set. In a session they come off: they may name
        #: another one, which this session may have no value to replace. And all session headers are
        #: sent in the gateway's order, so none may stay where the caller's was.
        self.callers_session_keys = tuple(key for key in keys if key in route.session_keys)
        #: those by which the caller may have chosen a session, without a scope
        self.choosing_keys = [key for key in keys if key in route.choosing_keys]
        replaceable = {key for key, *_ in self.stand_ins}
        read = {FORWARD_KEY, *_SIGNATURE_KEYS, *self.choosing_keys, *replaceable}
        droppable = {*self.callers_session_keys, *replaceable}
        #: the headers whose values the gate reads: their positions, and their names in lower case
        self.read = [(index, key) for index, key in enumerate(keys) if key in read]
        #: the same headers: their names, and their names in lower case
        self.read_by_name = [(names[index], key) for index, key in self.read]
        #: The headers that a stamp may replace or remove: their positions, and their names in lower
        #: case. It does if it has the key.
        self.droppable = [(index, key) for index, key in enumerate(keys) if key in droppable]

    def find(self, items: Sequence[Header]) -> Headers:
        """Return the headers whose values the gate reads, by names in lower case.

        Of several with one name, the first counts whose value is neither empty nor the library's
        default; if there is none, a default, or else an empty one.

        :param items: all headers of a request.
        """
        if self.is_simple:  # the plain code is what follows
            return {key: items[index] for index, key in self.read}
        found: Headers = {}
        for index, key in self.read:
            before = found[key][-1] if key in found else None
            value = items[index][-1]
            if not before or (value and before in self.library.defaults.get(key, ())):
                found[key] = items[index]
        return found

    def find_by_name(self, headers: Mapping[Any, Any]) -> Headers:
        """Return the headers whose values the gate reads, from a mapping of all headers."""
        if self.is_simple:  # the plain code is what follows
            return {key: (name, headers[name]) for name, key in self.read_by_name}
        return self.find(list(headers.items()))


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
        self.root = "/".join(self.base.split("/")[:3])  #: and without its path
        self.origin = parts.origin
        #: The path that all URLs of the gateway begin with, without a slash at its end.
        #: It is often empty.
        self.path = urls.comparable(parts.path.rstrip("/"))
        self.place: Place = self.origin, self.path
        self.segments = urls.decoded_segments(parts.path) or []
        # aiohttp sends this as it is. The other libraries escape these characters themselves.
        pairs = quote(parts.query, safe="%!$&'()*+,/:;=?@").split("&")
        self.query = [(_query_name(pair), pair) for pair in pairs if pair]
        #: (name, value) by the name in lower case
        self.gateway_headers = {
            name.lower(): (name, value) for name, value in (gateway_headers or {}).items()
        }
        self.session_headers = tuple(_session_headers(gateway))
        #: the names of the session headers in lower case
        self.session_keys = frozenset(each.key for each in self.session_headers)
        parent = "" if gateway is None else gateway.parent_header or ""
        #: all of them but the parent's: a caller who sets one has chosen a session
        self.choosing_keys = self.session_keys - {parent.lower()}
        self.warned: dict[str, object] = {}  #: the warnings that have been said, each once
        #: plan(library, names) returns the :class:`Plan` for requests that have such headers.
        self.plan = functools.lru_cache(maxsize=256)(functools.partial(Plan, self))

    def owns(self, url: str) -> bool:
        """Return whether ``url`` lies at or below the gateway's URL, however it is read."""
        # These three lines save parsing most URLs of the gateway, which begin with its URL and go
        # on with nothing that needs decoding. "/." may begin a dot segment.
        is_below = url.startswith(self.base) and _is_plain(url, len(self.base))
        if is_below and not (self.path and "/." in url):
            return True
        # These save parsing most URLs of a gateway beside it, and of others.
        if url.startswith(self.root) and _is_plain(url, len(self.root)) and "/." not in url:
            end = len(self.root) + len(self.path)
            return url.startswith(self.path, len(self.root)) and url[end : end + 1] in "/?#"
        if self.origin.host not in url.lower() or not urls.is_printable(url):
            return False
        parts = urls.split(url)
        if parts is None or parts.has_user or parts.origin != self.origin:
            return False
        return not self.path or (
            not urls.has_dot_segment(parts.path)
            and f"{urls.comparable(parts.path)}/".startswith(f"{self.path}/")
        )

    def warn_once(self, what: str, message: str) -> None:
        """Warn once for each gateway, and once in this process for all URLs that none owns."""
        this_call = object()
        # setdefault() is atomic, so of several threads only one finds its own object.
        if self.warned.setdefault(what, this_call) is this_call:
            _log.warning("%s", message)

    def with_query(self, url: str) -> str:
        """Return ``url`` with the gateway's query parameters that it does not have yet."""
        if not self.query:
            return url
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

    A URL that a server could read as one of a deeper gateway, as ``/./openai`` with gateways at
    ``/`` and ``/openai``, belongs to neither: the outer gateway's headers must not reach the inner.

    :raises TypeError: for anything but gateways.
    :raises ValueError: for two different gateways with the same origin and path.
    """

    def __init__(self, *gateways: Gateway | None) -> None:
        self.gateways: dict[Place, Gateway] = {}
        #: The routes by host, those with the longest path first. An IPv6 address has no brackets.
        #: Empty if there is no gateway.
        self.hosts: dict[str, list[Route]] = {}
        self.hosts_in_bytes: set[bytes] = set()  #: the same hosts, as httpx keeps them
        #: the names of the session headers of all routes, in lower case
        self.session_keys = BARE.session_keys
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
                f"two different gateways are at {route.origin}{route.path}: give each to a client "
                "of its own, or give no gateway, as in GatewayAdapter() or instrument(), and "
                "headers=gateway_headers(...) with each call, which an SDK's client takes as "
                "default_headers="
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
        self.hosts_in_bytes.add(host.encode())
        bisect.insort(routes, route, key=lambda each: -len(each.path))
        self.session_keys |= route.session_keys
        self._only = route if len(self.gateways) == 1 else None

    def route(self, url: str) -> Route:
        """Return the route to the gateway that owns ``url``, or :data:`BARE`."""
        only = self._only  # another thread may be adding a gateway
        if only is not None:
            return only if only.owns(url) else BARE
        return _owner(self._at_host_of(url), url)

    def route_beside(self, other: Router, url: str) -> Route:
        """Return what :meth:`route` would, if this router had the gateways of ``other``, too."""
        routes = [*self._at_host_of(url), *other._at_host_of(url)]
        routes.sort(key=lambda each: -len(each.path))
        return _owner(list(dict.fromkeys(routes)), url)

    def _at_host_of(self, url: str) -> list[Route]:
        """Return the routes to the gateways on the host of ``url``, longest path first."""
        host = _host(url) if self.hosts else None
        return [] if host is None else self.hosts.get((host[1] or host[2] or "").lower(), [])

    def knows(self, url: str) -> bool:
        """Return whether a gateway of the same client owns ``url``."""
        return self.route(url) is not BARE

    def __reduce__(self) -> Any:
        return Router, tuple(self.gateways.values())


def _owner(routes: list[Route], url: str) -> Route:
    """Return the one of ``routes`` whose gateway owns ``url``, or :data:`BARE`.

    :param routes: those with the longest path first.
    """
    for position, route in enumerate(routes):
        if route.owns(url):
            # Those before it have longer paths.
            deeper = _deeper_one(routes[:position], url) if position else None
            if deeper is None:
                return route
            route.warn_once(
                "ambiguous",
                f"{urls.redacted(url)} could be read as a URL of the gateway at {route.base} or of "
                f"the one at {deeper.base}, so it is neither's: write its path without dot "
                "segments, further slashes and escapes. Further ones are not reported",
            )
            return BARE
    return BARE


def _deeper_one(routes: Iterable[Route], url: str) -> Route | None:
    """Return the first of ``routes`` whose gateway a server could read ``url`` as a URL of."""
    address = url.partition("#")[0].partition("?")[0]
    parts = urls.split(url) if _is_ambiguous(address, len("https://")) else None
    if parts is None:
        return None
    segments = urls.decoded_segments(parts.path)
    for route in routes:
        if route.origin == parts.origin and (
            segments is None or segments[: len(route.segments)] == route.segments
        ):
            return route
    return None


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


def identifiers_among(names: tuple[Any, ...], session_keys: frozenset[str]) -> tuple[Any, ...]:
    """Return those of the names of some headers that are names of identifiers.

    :param session_keys: the names of session headers, in lower case.
    """
    return tuple(name for name in names if is_identifier(lower(name), session_keys))


def _query_name(pair: str) -> str:
    return unquote_plus(pair.partition("=")[0])
