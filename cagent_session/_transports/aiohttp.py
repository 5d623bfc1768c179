"""aiohttp: the gate for the hops of a call.

aiohttp makes each hop of a redirect from the headers that its caller gave. So headers that the gate
set for one hop never reach the next. But identifiers that the caller set would reach every hop, and
have to come off at another origin.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import aiohttp
from aiohttp import ClientOSError, ClientRequest, ClientResponse, ServerDisconnectedError
from aiohttp.hdrs import HOST
from aiohttp.http import SERVER_SOFTWARE
from multidict import CIMultiDict, CIMultiDictProxy, istr
from yarl import URL

from .._gate import urls
from .._gate.gate import Stamp, gate, has_passed, keys_to_keep, note_redirect, note_unbound
from .._gate.passage import (
    Passage,
    Stamped,
    are_plain_text,
    attach,
    belongs_to_open,
    is_stamped,
    passage_of,
)
from .._gate.protocol import RUNTIME
from .._gate.routes import (
    BARE,
    FORWARD_KEY,
    Library,
    Plan,
    Route,
    Router,
    identifiers_among,
    is_identifier,
    may_get_identifiers,
)
from ..headers import FORWARD, MODEL, MODEL_NAME, PROVIDER
from .copying import shallow_copy
from .watched_calls import WatchedCall, watch, watched_call_of

if TYPE_CHECKING:
    from .httpx import Httpx

Handler: TypeAlias = Callable[[ClientRequest], Awaitable[ClientResponse]]

HAS_MIDDLEWARES = hasattr(aiohttp, "ClientMiddlewareType")  # from 3.12 on

# The methods of a request that aiohttp sends again over a new connection.
_MAY_BE_SENT_AGAIN = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
_REDIRECTS = (301, 302, 303, 307, 308)
# What gateway_headers() makes.
_MARKS = frozenset(map(str.lower, (FORWARD, PROVIDER, MODEL, MODEL_NAME, *RUNTIME)))
_own: Any = ClientRequest.DEFAULT_HEADERS
_DEFAULTS = {
    "user-agent": (SERVER_SOFTWARE,),
    "accept": (_own["Accept"],),
    "accept-encoding": (_own["Accept-Encoding"],),
    "content-type": ("application/octet-stream",),  # of a body of bytes
}
_AIOHTTP = Library(_DEFAULTS, make_name=istr)


@functools.cache
def _over_aiohttp(httpx: Httpx) -> Library:
    """Return the library for requests of httpx that go over aiohttp: either adds its defaults."""
    both = {key: (*values, *httpx.defaults.get(key, ())) for key, values in _DEFAULTS.items()}
    return Library(both, make_name=istr)


class InFlightHeaders(CIMultiDict[str]):
    """The headers of a gateway-bound request, while it is being sent.

    The plain code would be a ``CIMultiDict``, as values hold the passage, too. The attribute saves
    letting all of them hold it, and looking for it there.
    """

    passage: Passage | None = None

    def copy(self) -> InFlightHeaders:
        return self.with_items(self.items())

    def with_items(self, items: Iterable[tuple[str, str]]) -> InFlightHeaders:
        """Return other headers of the same request."""
        made = InFlightHeaders(items)
        made.passage = self.passage
        return made


def _takes_subclasses() -> bool:
    """Return whether aiohttp can send such headers: not with multidict before 6.4."""
    try:
        CIMultiDictProxy(InFlightHeaders())
    except TypeError:
        return False
    return True


_TAKES_SUBCLASSES = _takes_subclasses()


class Hops:
    """The gate for one call of a client, or for one request of it: a client middleware."""

    _call: WatchedCall | None = None  #: if identifiers of the caller's have to come off later hops
    _library = _AIOHTTP

    def __init__(self, router: Router) -> None:
        self._router = router

    def use_defaults_of(self, httpx: Httpx) -> None:
        """Count the defaults of httpx, which makes this call over aiohttp, as defaults."""
        self._library = _over_aiohttp(httpx)

    async def __call__(self, request: ClientRequest, handler: Handler) -> ClientResponse:
        url = _as_http(str(request.url))
        self._call = self._call or watched_call_of(request)
        headers, has_passed = self._callers_headers(request, url)
        if has_passed:
            return await handler(self._with_headers(request, headers))
        route = BARE
        # A URL(..., encoded=True) keeps its capitals.
        if self._router.hosts and (request.url.raw_host or "").lower() in self._router.hosts:
            route = self._router.route(url)
        plan = route.plan(self._library, _names_of(headers))
        if route is BARE and not plan.has_forward:
            note_unbound(url)
            return await handler(self._with_headers(request, headers))
        passage = Passage(request.method, route.with_query(url), self._router)
        stamp = gate(url, plan, plan.find_by_name(headers), passage)
        if stamp is None:
            return await handler(self._with_headers(request, headers))
        # aiohttp puts the headers of the ClientSession into those for the proxy, too.
        for_proxy = tuple(request.proxy_headers or ())
        if plan.callers_identifiers or identifiers_among(for_proxy, route.session_keys):
            self._call = self._call or watch(request)
            self._call.add(_origin_of(url), _identifiers(headers, route.session_keys))
        passage.session_keys = self._session_keys | route.session_keys
        if self._call is not None:
            self._call.session_keys = passage.session_keys
        sent = _stamped(headers, plan, stamp, passage)
        outgoing = self._with_headers(request, sent)
        if route.query:
            outgoing.url = URL(passage.url, encoded=True).with_scheme(request.url.scheme)
        try:
            response = await handler(outgoing)
        except (ClientOSError, ServerDisconnectedError):
            # The client may send the body again. Before that it waits for the request that it knows
            # to have stopped writing, and that is not the outgoing one.
            if request.method in _MAY_BE_SENT_AGAIN:
                await outgoing.close()
            raise
        finally:
            passage.is_open = False
        if response.status in _REDIRECTS:
            self._note_redirect(route, url, response, sent)
        return response

    @property
    def _session_keys(self) -> frozenset[str]:
        return frozenset() if self._call is None else self._call.session_keys

    def _callers_headers(self, request: ClientRequest, url: str) -> tuple[CIMultiDict[str], bool]:
        """Return the headers that the caller set, less identifiers that are for another origin.

        The second item is whether another middleware of ours has stamped the request for its
        gateway; then its headers are stamped.
        """
        headers = request.headers
        # Looking for a passage in headers of plain text would find none.
        if headers.__class__ is CIMultiDict and are_plain_text(headers.values()):
            return self._for_origin_of(headers, url), False
        earlier = passage_of(headers, headers.items())
        if has_passed(earlier, request.method, url, self._router):
            return self._for_origin_of(headers, url, has_stamp=True), True
        if earlier is None or not (earlier.is_open or isinstance(headers, InFlightHeaders)):
            # The caller may have copied values of a request that is over.
            return self._for_origin_of(headers, url), False
        # A middleware of ours, further up, has stamped the request for another URL or method. One
        # in between has changed that, perhaps headers, too. The stamp has to come off, also where
        # the middleware sends a request again that is over.
        session_keys = self._session_keys | earlier.session_keys | earlier.route.session_keys
        staying = keys_to_keep(earlier, url, self._router)
        kept = CIMultiDict(
            (name, value)
            for name, value in headers.items()
            if name.lower() in staying
            or not (
                belongs_to_open(name, value)
                or (is_stamped(name, value) and value.passage is earlier)  # type: ignore[attr-defined]
            )
        )
        kept.extend([item for item in earlier.replaced if item[0] not in kept])
        headers = kept
        if not may_get_identifiers(earlier.url, url):
            headers = _less(headers, session_keys)
        return headers, False

    def _for_origin_of(
        self, headers: CIMultiDict[str], url: str, *, has_stamp: bool = False
    ) -> CIMultiDict[str]:
        """Return ``headers``, without the caller's identifiers if these are for another origin.

        :param has_stamp: whether another middleware of ours has stamped the request.
        """
        if self._call is None:
            return headers
        homes, origin = self._call.homes, _origin_of(url)
        elsewhere = [homes[home] for home in homes if home != origin]
        if not elsewhere:
            return headers
        away = frozenset[tuple[str, str]]().union(*elsewhere)
        here = homes.get(origin, frozenset())
        # A middleware above may have marked the request anew, for a gateway of another origin. That
        # is no part of a stamp.
        forward = headers.get(FORWARD)
        is_anew = (
            bool(forward)
            and (FORWARD_KEY, forward) not in away
            and not is_stamped(FORWARD, forward)
        )

        def stays(item: tuple[str, str]) -> bool:
            keyed = _keyed(item)
            return (
                not is_identifier(keyed[0], self._session_keys)
                or keyed in here
                or (has_stamp and belongs_to_open(*item))
                or (is_anew and (keyed[0] in _MARKS or keyed not in away))
            )

        return _with_items(headers, filter(stays, headers.items()))

    def _with_headers(self, request: ClientRequest, headers: CIMultiDict[str]) -> ClientRequest:
        """Return ``request`` with ``headers``, and without identifiers in what a proxy gets.

        Return a copy if that changes anything. A middleware above may send one request several
        times, also at once. So the request stays as it is, and the body, which can be read only
        once, is shared.
        """
        for_proxy: Any = request.proxy_headers
        if for_proxy and self._call is not None:
            for_proxy = _less(for_proxy, self._session_keys)
        if headers is request.headers and for_proxy is request.proxy_headers:
            return request
        copied = shallow_copy(request)
        copied.headers, copied.proxy_headers = headers, for_proxy
        return copied

    def _note_redirect(
        self, route: Route, url: str, response: ClientResponse, sent: CIMultiDict[str]
    ) -> None:
        location = response.headers.get("Location") or response.headers.get("URI")
        if location:
            in_session = any(sent.get(name) for name in route.choosing_keys)
            note_redirect(self._router, route, url, location, in_session)


def _origin_of(url: str) -> urls.Origin | str:
    """Return the origin of ``url``, or ``url`` if that is doubtful."""
    return urls.origin_of(url) or url


def _names_of(headers: CIMultiDict[str]) -> tuple[str, ...]:
    """Return the names of headers, as plans are found by them. Each value counts as a header."""
    names = tuple(headers)
    if len(names) == len(headers):
        return names
    return tuple([name for name, _ in headers.items()])  # multidict 7 iterates each name once


def _keyed(item: tuple[str, str]) -> tuple[str, str]:
    name, value = item
    return name.lower(), value


def _identifiers(
    headers: CIMultiDict[str], session_keys: frozenset[str]
) -> frozenset[tuple[str, str]]:
    items = map(_keyed, headers.items())
    return frozenset(item for item in items if is_identifier(item[0], session_keys))


def _less(headers: CIMultiDict[str], session_keys: frozenset[str]) -> CIMultiDict[str]:
    """Return a copy of ``headers`` without the caller's identifiers."""
    items = headers.items()
    return _with_items(
        headers, [item for item in items if not is_identifier(item[0].lower(), session_keys)]
    )


def _with_items(headers: CIMultiDict[str], items: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """Return other headers of the same class."""
    return (
        headers.with_items(items) if isinstance(headers, InFlightHeaders) else type(headers)(items)
    )


def _as_http(url: str) -> str:
    """Return ``url`` with http(s) in place of ws(s): a websocket's handshake is a GET request."""
    return f"http{url[2:]}" if url.startswith(("ws:", "wss:")) else url


def _stamped(
    headers: CIMultiDict[str],
    plan: Plan,
    stamp: Stamp,
    passage: Passage,
) -> CIMultiDict[str]:
    """Return a copy of ``headers`` with the stamp."""
    stamped, removed = stamp
    replaced: list[tuple[Any, str]] = []
    if _TAKES_SUBCLASSES:
        sent: CIMultiDict[str] = InFlightHeaders(headers)
        sent.passage = passage  # type: ignore[attr-defined]
    else:
        sent = CIMultiDict(headers)
        attach(passage, stamped)
        if not stamped and HOST in sent:
            # The stamp has no value that could hold the passage. So aiohttp's own header holds it.
            replaced.append((HOST, sent[HOST]))
            made = Stamped(sent[HOST])
            made.key, made.passage = "host", passage
            sent[HOST] = made
    for index, key in plan.droppable:
        if key in stamped or key in removed:
            replaced += [(plan.names[index], value) for value in sent.popall(key, ())]
    sent.extend(list(stamped.values()))
    passage.replaced = tuple(replaced)
    return sent
