"""aiohttp: the gate for the hops of a call.

aiohttp makes each hop of a redirect from the headers that its caller gave. So headers that the gate
set for one hop never reach the next. But identifiers that the caller set would reach every hop, and
have to come off at another origin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import aiohttp
from aiohttp import ClientRequest, ClientResponse
from aiohttp.http import SERVER_SOFTWARE
from multidict import CIMultiDict
from yarl import URL

from .._gate.gate import gate, note_redirect
from .._gate.passage import Passage, is_stamped, passage_of
from .._gate.routes import BARE, Headers, Library, Route, Router, is_identifier, may_get_identifiers

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
        self.responses = 0  #: redirects of this call that the client still keeps

    @property
    def was_bound(self) -> bool:
        """Whether a hop was gateway-bound, so that later ones have to be watched."""
        return self._home is not None

    async def __call__(self, request: ClientRequest, handler: Handler) -> ClientResponse:
        before = request.url, request.headers
        url = _as_http(str(request.url))
        earlier = passage_of(request.headers, request.headers.items())
        if earlier is not None and earlier.covers(request.method, url):
            return await handler(request)  # another middleware of ours has stamped it
        headers = self._callers_headers(request.headers, url, earlier)
        route = BARE
        if self._router.hosts and request.url.raw_host in self._router.hosts:
            route = self._router.route(url)
        passage = Passage(request.method, url)
        stamp = gate(url, route, _by_name(headers, route), _AIOHTTP, passage)
        if stamp is None:
            request.headers = headers
            try:
                return await handler(request)
            finally:
                request.headers = before[1]
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
        home, identifiers = self._home, self._identifiers
        if earlier is not None and earlier.is_open:
            # A middleware of ours, further up, has stamped the request for another URL or method.
            # One in between has changed that, and the stamp has to come off.
            home = earlier.url
            if isinstance(headers, InFlightHeaders):
                identifiers |= headers.identifiers
                headers = headers.callers
            headers = CIMultiDict(item for item in headers.items() if not is_stamped(item[1]))
        if home is None or may_get_identifiers(home, url):
            return headers
        return CIMultiDict(
            item for item in headers.items() if not is_identifier(item[0].lower(), identifiers)
        )

    def _note_redirect(
        self, route: Route, url: str, response: ClientResponse, sent: CIMultiDict[str]
    ) -> None:
        location = response.headers.get("Location") or response.headers.get("URI")
        if location:
            in_session = any(sent.get(name) for name in route.session_names)
            note_redirect(self._router, route, url, location, in_session)


def _as_http(url: str) -> str:
    """Return ``url`` with http(s) in place of ws(s): a websocket's handshake is a GET request."""
    return f"http{url[2:]}" if url.startswith(("ws:", "wss:")) else url


def _by_name(headers: CIMultiDict[str], route: Route) -> Headers:
    """Return the headers that matter by their lower-case names."""
    by_name: Headers = {}
    for name, value in headers.items():
        key = name.lower()
        if key in route.names and not (key in by_name and by_name[key][1]):
            by_name[key] = name, value
    return by_name


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
