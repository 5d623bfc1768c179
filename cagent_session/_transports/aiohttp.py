"""aiohttp: the gate for the hops of a call.

aiohttp makes each hop of a redirect from the headers that its caller gave. So headers that the gate
set for one hop never reach the next. But identifiers that the caller set would reach every hop, and
have to come off at another origin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import urljoin

import aiohttp
from aiohttp import ClientRequest, ClientResponse
from aiohttp.http import SERVER_SOFTWARE
from multidict import CIMultiDict
from yarl import URL

from .._gate.gate import gate, note_redirect
from .._gate.passage import Passage, is_stamped, passage_of
from .._gate.routes import BARE, Library, Route, Router, is_identifier, may_get_identifiers

Handler: TypeAlias = Callable[[ClientRequest], Awaitable[ClientResponse]]

HAS_MIDDLEWARES = hasattr(aiohttp, "ClientMiddlewareType")  # from 3.12 on

_REDIRECTS = (301, 302, 303, 307, 308)
_own: Any = ClientRequest.DEFAULT_HEADERS
_AIOHTTP = Library(
    {
        "user-agent": (SERVER_SOFTWARE,),
        "accept": (_own["Accept"],),
        "accept-encoding": (_own["Accept-Encoding"],),
        "content-type": ("application/octet-stream",),  # of a body of bytes
    }
)


class InFlightHeaders(CIMultiDict[str]):
    """The headers of a gateway-bound request, while it is being sent."""

    passage: Passage
    identifiers: frozenset[str]  #: the names of session headers, in lower case
    callers: CIMultiDict[str]  #: the headers without the stamp


class Hops:
    """The gate for one call of a client, which may be redirected: a client middleware."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._home: str | None = None  # the URL of the first hop that was gateway-bound
        self._identifiers: frozenset[str] = frozenset()
        #: redirects of this call that the client still keeps; GatewayMiddleware counts them
        self.responses = 0

    @property
    def was_bound(self) -> bool:
        """Whether a hop was gateway-bound, so that later ones have to be watched."""
        return self._home is not None

    async def __call__(self, request: ClientRequest, handler: Handler) -> ClientResponse:
        before = request.url, request.headers
        url = _as_http(str(request.url))
        earlier = passage_of(request.headers, request.headers.items())
        if earlier is not None and earlier.covers(request.method, url):
            # Another middleware of ours has stamped it for its gateway.
            return await _send_with(self._without_identifiers(before[1], url), request, handler)
        headers = self._callers_headers(request.headers, url, earlier)
        route = BARE
        if self._router.hosts and request.url.raw_host in self._router.hosts:
            route = self._router.route(url)
        plan = route.plan(_AIOHTTP, tuple(headers))
        passage = Passage(request.method, url)
        stamp = gate(url, plan, plan.find_by_name(headers), passage)
        if stamp is None:
            return await _send_with(headers, request, handler)
        self._home = self._home or url
        self._identifiers |= route.identifiers
        if route.query:
            passage.url = route.with_query(url)
            request.url = URL(passage.url, encoded=True).with_scheme(request.url.scheme)
        sent = request.headers = _stamped(headers, stamp, passage, self._identifiers)
        try:
            response = await handler(request)
        finally:
            # A middleware above may send the request again, in another session or to another host.
            passage.is_open = False
            request.url, request.headers = before
        if response.status in _REDIRECTS:
            self._note_redirect(route, url, response, sent)
        return response

    def _callers_headers(
        self, headers: CIMultiDict[str], url: str, earlier: Passage | None
    ) -> CIMultiDict[str]:
        """Return the headers that the caller set, less identifiers that are for another origin.

        :param earlier: the passage in ``headers``, which does not cover this request.
        """
        if earlier is None or not earlier.is_open:
            return self._without_identifiers(headers, url)
        # A middleware of ours, further up, has stamped the request for another URL or method. One
        # in between has changed that, and the stamp has to come off.
        identifiers = self._identifiers
        if isinstance(headers, InFlightHeaders):
            identifiers |= headers.identifiers
            headers = headers.callers
        headers = CIMultiDict(item for item in headers.items() if not is_stamped(item[1]))
        if may_get_identifiers(earlier.url, url):
            return headers
        return _less(headers, identifiers)

    def _without_identifiers(self, headers: CIMultiDict[str], url: str) -> CIMultiDict[str]:
        """Return ``headers`` without the caller's identifiers, if they are not for ``url``."""
        # Comparing the URLs first saves parsing them for a request that is sent again.
        if self._home in (None, url) or may_get_identifiers(self._home, url):
            return headers
        return _less(headers, self._identifiers)

    def take_off(self, headers: Any, response: ClientResponse) -> None:
        """Take the caller's identifiers off the headers of httpx, if it will follow a redirect.

        httpx over aiohttp makes each hop a call of its own, with the headers of the last one.
        """
        location = response.headers.get("Location", "")
        if self._home is None or response.status not in _REDIRECTS:
            return
        if not may_get_identifiers(self._home, urljoin(self._home, location)):
            for name in list(headers):
                if is_identifier(name.lower(), self._identifiers):
                    headers.pop(name, None)

    def _note_redirect(
        self, route: Route, url: str, response: ClientResponse, sent: CIMultiDict[str]
    ) -> None:
        location = response.headers.get("Location") or response.headers.get("URI")
        if location:
            in_session = any(sent.get(name) for name in route.session_names)
            note_redirect(self._router, route, url, location, in_session)


async def _send_with(
    headers: CIMultiDict[str], request: ClientRequest, handler: Handler
) -> ClientResponse:
    """Send ``request`` with other headers, and put its own back: it may be sent again."""
    before, request.headers = request.headers, headers
    try:
        return await handler(request)
    finally:
        request.headers = before


def _less(headers: CIMultiDict[str], identifiers: frozenset[str]) -> CIMultiDict[str]:
    """Return a copy of ``headers`` without the caller's identifiers; what the gate set stays."""
    made = type(headers)(
        item
        for item in headers.items()
        if is_stamped(item[1]) or not is_identifier(item[0].lower(), identifiers)
    )
    if isinstance(headers, InFlightHeaders) and isinstance(made, InFlightHeaders):
        made.passage, made.identifiers = headers.passage, headers.identifiers
        made.callers = headers.callers
    return made


def _as_http(url: str) -> str:
    """Return ``url`` with http(s) in place of ws(s): a websocket's handshake is a GET request."""
    return f"http{url[2:]}" if url.startswith(("ws:", "wss:")) else url


def _stamped(
    headers: CIMultiDict[str], stamp: Any, passage: Passage, identifiers: frozenset[str]
) -> InFlightHeaders:
    """Return a copy of ``headers`` with the stamp."""
    stamped, removed = stamp
    sent = InFlightHeaders(headers)
    for key in removed:
        sent.popall(key, None)
    for name, value in stamped.values():
        sent[name] = value
    sent.passage, sent.identifiers, sent.callers = passage, identifiers, headers
    return sent
