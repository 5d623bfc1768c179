"""httpx and httpx2, its successor with the same interface: the gate as a transport.

This is shared by the modules for the two libraries in ``integrations``, which add base classes and
types of their own.

The client follows redirects above the transport. It makes each hop from the request that it gave to
the transport. So the stamp on our copy never reaches the next hop. Identifiers that the caller set
are taken off the caller's request when a redirect to another origin arrives.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, TypeAlias

from .._gate.gate import (
    Stamp,
    gate,
    has_passed,
    is_bound,
    keys_to_keep,
    note_redirect,
    note_unbound,
)
from .._gate.gateway import Gateway
from .._gate.passage import Passage, belongs_to_open, lower, passage_of
from .._gate.routes import (
    BARE,
    DEFAULT_KEYS,
    Library,
    Plan,
    Route,
    Router,
    is_identifier,
    may_get_identifiers,
)
from ..headers import FORWARD
from .copying import shallow_copy

# A header as httpx keeps it: the name, the name in lower case, the value.
_Item: TypeAlias = tuple[bytes, bytes, bytes]

# A key in the extensions of a request, which the client hands on to the next hop. Its value is the
# names of the session headers of all gateway-bound hops so far; and until the next hop is sent, the
# URL of the last one, and the identifiers that it left for the next.
_IDENTIFIERS = "cagent_session"

_NO_HOP = (None, None, ())

_new: Any = object.__new__  # makes an object without __init__()


class Httpx:
    """The gate for the requests of one of the two libraries."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        # Where these are defined, because a test may have put a mock in the place of httpx.Client.
        clients, models = (getattr(module, name, module) for name in ("_client", "_models"))
        # A client knows its default headers. With a transport given, it makes none, which would
        # load TLS certificates.
        transport = module.MockTransport(lambda request: None)
        client = clients.Client(transport=transport, trust_env=False)
        self.defaults = {name: (client.headers.get(name),) for name in DEFAULT_KEYS}
        self._library = Library(self.defaults, in_bytes=True)
        self._request_class = models.Request
        self._headers_class = models.Headers
        # The plain code would be to make Headers in the public way. That checks all of them again,
        # which costs more than the gate. With other attributes than these, we take the public way.
        example = vars(models.Headers([("X-A", "b")]))
        self._has_known_layout = example == {"_list": [(b"X-A", b"x-a", b"b")], "_encoding": None}

    def knows(self, request: object) -> bool:
        """Return whether ``request`` is one of the library's own."""
        return isinstance(request, self._request_class)

    def send(
        self,
        router: Router,
        request: Any,
        pass_on: Callable[[Any], Any],
        *,
        by_instrument: bool = False,
    ) -> Any:
        """Send ``request`` by ``pass_on``, or a stamped copy of it if it is gateway-bound.

        :param by_instrument: whether this is not for a transport of ours, but for the patch.
        """
        self.check_home(request)
        unstamped = self._without_stamp_of_another(router, request)
        outgoing, route, passage = self._through_gate(router, unstamped)
        sent = outgoing.headers  # a gate further down may take some off the outgoing request
        try:
            response = pass_on(outgoing)
        finally:
            if passage is not None:
                passage.is_open = False
            self._keep_body(request, outgoing)
        if response.status_code // 100 != 3:
            return response
        return self._redirected(router, request, sent, route, response, by_instrument)

    async def send_async(
        self,
        router: Router,
        request: Any,
        pass_on: Callable[[Any], Awaitable[Any]],
        *,
        by_instrument: bool = False,
    ) -> Any:
        """Do what :meth:`send` does, asynchronously."""
        self.check_home(request)
        unstamped = self._without_stamp_of_another(router, request)
        outgoing, route, passage = self._through_gate(router, unstamped)
        sent = outgoing.headers  # a gate further down may take some off the outgoing request
        try:
            response = await pass_on(outgoing)
        finally:
            if passage is not None:
                passage.is_open = False
            self._keep_body(request, outgoing)
        if response.status_code // 100 != 3:
            return response
        return self._redirected(router, request, sent, route, response, by_instrument)

    def _without_stamp_of_another(self, router: Router, request: Any) -> Any:
        """Return ``request``, or a copy if a transport between ours has sent it elsewhere.

        The copy lacks the stamp, and the identifiers if it goes to another origin.
        """
        headers = self.less_stamp_of_another(router, request.headers, request.method, request.url)
        if headers is request.headers:
            return request
        copied = shallow_copy(request)
        copied.headers = headers
        return copied

    def has_passed(self, router: Router, headers: Any, method: Any, url: Any) -> bool:
        """Return whether a request with ``headers`` has been stamped further up."""
        passage = passage_of(headers, self._items_of(headers), 2)
        return has_passed(passage, method, url, router)

    def less_stamp_of_another(self, router: Router, headers: Any, method: Any, url: Any) -> Any:
        """Return ``headers``, or a copy if they were stamped for a request to another URL."""
        items = self._items_of(headers)
        passage = passage_of(headers, items, 2)
        if passage is None or not passage.is_open or has_passed(passage, method, url, router):
            return headers
        return self._less_stamp(router, headers, passage, str(url))

    def _less_stamp(self, router: Router, headers: Any, passage: Passage, url: str) -> Any:
        """Return a copy of ``headers`` for a request to ``url``, less the stamp of ``passage``.

        :param url: empty for one that may get no identifiers.
        """
        staying = keys_to_keep(passage, url, router)
        kept: list[_Item] = []
        for item in self._items_of(headers):
            replaced = getattr(item[2], "replaces", None)
            if not belongs_to_open(item[1], item[2]) or lower(item[1]) in staying:
                kept.append(item)
            elif replaced is not None:  # the library's own header comes back
                kept.append((item[0], item[1], replaced[1]))
        if not may_get_identifiers(str(passage.url), url):
            kept = _without_identifiers(kept, router.session_keys | passage.route.session_keys)
        return self._headers(kept, headers)

    def _through_gate(
        self, router: Router, request: Any
    ) -> tuple[Any, Route | None, Passage | None]:
        """Return the request to send; its route and passage, if it is a stamped copy."""
        if not isinstance(request, self._request_class):
            raise TypeError(
                f"this transport is for clients of {self.module.__name__}, not of "
                f"{type(request).__module__.partition('.')[0]}: import GatewayTransport from the "
                "module of that name in cagent_session.integrations"
            )
        url, route = request.url, BARE
        # str() composes the URL anew, so that is done for the hosts of gateways alone.
        if router.hosts and url.raw_host.lower() in router.hosts_in_bytes:
            url = str(url)
            route = router.route(url)
        items = self._items_of(request.headers)
        plan = route.plan(self._library, tuple([key for _, key, _ in items]))
        if route is BARE and not plan.has_forward:
            note_unbound(url)
            return request, None, None
        passage = passage_of(request.headers, items, 2)
        if has_passed(passage, request.method, request.url, router):
            return request, None, None
        passage = Passage(request.method, request.url, router)
        stamp = gate(url, plan, plan.find(items), passage)
        if stamp is None:
            return request, None, None
        outgoing = shallow_copy(request)
        outgoing.headers = self._stamped(items, plan, stamp, passage, request.headers)
        if route.query:
            passage.url = outgoing.url = self.module.URL(route.with_query(url))
        return outgoing, route, passage

    def _stamped(
        self, items: list[_Item], plan: Plan, stamp: Stamp, passage: Passage, like: Any
    ) -> Any:
        """Return headers with the stamp.

        :param items: all headers of the request.
        :param like: the request's ``Headers``, whose encoding the result gets.
        """
        stamped, removed = stamp
        sent: list[Any] = items.copy()
        for index, key in reversed(plan.droppable):  # from the end, as positions change after it
            if key in stamped or key in removed:
                del sent[index]
        sent += stamped.values()
        headers = self._headers(sent, like)
        headers.passage = passage  # a copy of the headers lacks this; then their values have it
        return headers

    def _redirected(
        self,
        router: Router,
        request: Any,
        sent: Any,
        route: Route | None,
        response: Any,
        by_instrument: bool,
    ) -> Any:
        """Prepare ``request`` for its next hop, and log where that leads.

        :param sent: the headers that were sent.
        :param route: the request's, if it was gateway-bound.
        """
        if not response.has_redirect_location:
            return response
        target = self._target(request, response)
        if self._redirected_below_another(router, request, target, is_judged_next=by_instrument):
            return response
        self._take_off(request, None if route is None else route.session_keys, target)
        if route is not None:
            in_session = any(sent.get(name) for name in route.choosing_keys)
            note_redirect(router, route, str(request.url), target, in_session)
        return response

    def _redirected_below_another(
        self, router: Router, request: Any, target: str, *, is_judged_next: bool
    ) -> bool:
        """Prepare ``request`` for its next hop, if a gate further up has stamped it.

        If the client of that hop does not know the request, code in between may send it again, so
        it stays as it is. But that code may have made a call of its own from it, by a client. That
        one loses the stamp if the redirect leads to another origin.

        :param is_judged_next: whether the next hop is judged anyway, as under ``instrument()``.
        :returns: whether one has.
        """
        earlier = passage_of(request.headers, self._items_of(request.headers), 2)
        if earlier is None or not earlier.is_open:
            return False
        is_own_call = getattr(request.headers, "passage", None) is None
        is_to_another_origin = not may_get_identifiers(str(request.url), target)
        if is_own_call and is_to_another_origin and not is_judged_next:
            request.headers = self._less_stamp(router, request.headers, earlier, "")
        return True

    def take_off_after_aiohttp(self, router: Router, request: Any, response: Any) -> None:
        """Do what :meth:`send` does after a redirect, for a request that aiohttp's patch judged."""
        if not self.knows(request) or not response.has_redirect_location:
            return
        target = self._target(request, response)
        # Its next hop may go by a transport of others, which nothing judges.
        if self._redirected_below_another(router, request, target, is_judged_next=False):
            return
        route = router.route(_read_by_yarl(str(request.url))) if router.hosts else BARE
        forward = request.headers.get(FORWARD)
        session_keys = route.session_keys if is_bound(forward, route) else None
        self._take_off(request, session_keys, target)

    def _take_off(self, request: Any, session_keys: frozenset[str] | None, target: str) -> None:
        """Take the identifiers off ``request``, which is redirected, if that is to another origin.

        The client makes the next hop from the request that it knows, which is not the outgoing
        one. Its headers are replaced, not changed, as another task may be reading them.

        :param session_keys: the names of the session headers, if this hop was gateway-bound.
        """
        earlier, _, _ = request.extensions.get(_IDENTIFIERS, _NO_HOP)
        if earlier is None and session_keys is None:
            return
        names, home = (earlier or frozenset()) | (session_keys or frozenset()), str(request.url)
        items = _items(request.headers)
        kept = _without_identifiers(items, names)
        left: list[_Item] = []
        if may_get_identifiers(home, target):
            left = [item for item in items if item not in kept]
        else:
            request.headers = self._headers(kept, request.headers)
        request.extensions = {**request.extensions, _IDENTIFIERS: (names, home, left)}

    def check_home(self, request: Any) -> None:
        """Take the identifiers off a hop that is not where the last one was redirected to.

        A hook of the client, or a transport around ours, may have changed the redirect. It may also
        have marked the hop for another gateway: only the very values that the last hop left go.
        """
        names, home, left = request.extensions.get(_IDENTIFIERS, _NO_HOP)
        if home is None:
            return
        # Once for each hop: a gate further down gets the stamped request, and is to leave it so.
        request.extensions = {**request.extensions, _IDENTIFIERS: (names, None, ())}
        if not may_get_identifiers(home, str(request.url)):
            gone = {(key, id(value)) for _, key, value in left}
            items = _items(request.headers)
            kept = [item for item in items if (item[1], id(item[2])) not in gone]
            request.headers = self._headers(kept, request.headers)

    def _keep_body(self, request: Any, outgoing: Any) -> None:
        """Let ``request`` have the body that a transport has read into memory.

        The client may send the request again, and a generator can be read only once.
        """
        if hasattr(outgoing, "_content") and not hasattr(request, "_content"):
            request._content = outgoing._content
            request.stream = self.module.ByteStream(outgoing._content)

    def _target(self, request: Any, response: Any) -> str:
        """Return where the client will follow ``response`` to; empty if that is doubtful."""
        try:
            target = self.module.URL(response.headers["Location"])
            if target.scheme and not target.raw_host:
                return ""  # the client keeps this host, but takes the default port of that scheme
            return str(target if target.scheme else request.url.join(target))
        except (self.module.InvalidURL, ValueError):
            return ""  # the client refuses it, too

    def _items_of(self, headers: Any) -> list[_Item]:
        items: list[_Item] = headers._list if self._has_known_layout else _items(headers)
        return items

    def _headers(self, items: list[_Item], like: Any) -> Any:
        if self._has_known_layout:
            made = _new(self._headers_class)
            made._list, made._encoding = items, like._encoding
            return made
        return self._headers_class([(name, value) for name, _, value in items], like.encoding)


def _read_by_yarl(url: str) -> str:
    """Return ``url`` as aiohttp hands it to its patch: without user info, IPv6 addresses short."""
    yarl = sys.modules.get("yarl")
    try:
        return url if yarl is None else str(yarl.URL(url).with_user(None))
    except ValueError:
        return url


def _without_identifiers(items: list[_Item], names: frozenset[str]) -> list[_Item]:
    return [item for item in items if not is_identifier(item[1].decode("latin-1"), names)]


def _items(headers: Any) -> list[_Item]:
    return [(name, name.lower(), value) for name, value in headers.raw]


@functools.cache
def gate_for(module: ModuleType) -> Httpx:
    """Return the gate for ``module``, which is httpx or httpx2."""
    return Httpx(module)


class GatewayTransport:
    """Base class of the two modules' transports."""

    module: Any

    def __init__(self, gateway: Gateway | None, transport: Any) -> None:
        blocking, asynchronous = self.module.BaseTransport, self.module.AsyncBaseTransport
        name = type(self).__name__
        if isinstance(gateway, (blocking, asynchronous)):
            raise TypeError(
                f"the gateway comes first: write {name}(gateway, transport), or "
                f"{name}(transport=...) without a gateway"
            )
        if transport is not None and not isinstance(transport, (blocking, asynchronous)):
            raise TypeError(
                f"transport must be one of {self.module.__name__}'s, not "
                f"{type(transport).__name__}: write {name}(gateway, "
                f"{self.module.__name__}.HTTPTransport())"
            )
        self.gateway = gateway
        self._router = Router(gateway)
        self._gate = gate_for(self.module)
        self._given = transport
        self._made: dict[str, Any] = {}  # the transports that are made when they are first needed
        self._blocking = transport if isinstance(transport, blocking) else None
        self._asynchronous = transport if isinstance(transport, asynchronous) else None

    def handle_request(self, request: Any) -> Any:
        """Send ``request``, or a stamped copy of it if it is gateway-bound."""
        inner = self._inner_blocking()
        return self._gate.send(self._router, request, inner.handle_request)

    async def handle_async_request(self, request: Any) -> Any:
        """Send ``request``, or a stamped copy of it if it is gateway-bound."""
        inner = self._inner_asynchronous()
        return await self._gate.send_async(self._router, request, inner.handle_async_request)

    def __enter__(self) -> Any:
        self._inner_blocking().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._inner_blocking().__exit__(*exc_info)

    async def __aenter__(self) -> Any:
        await self._inner_asynchronous().__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._inner_asynchronous().__aexit__(*exc_info)

    def close(self) -> None:
        """Close the transport that sends for blocking clients."""
        if self._blocking is not None:
            self._blocking.close()

    async def aclose(self) -> None:
        """Close the transport that sends for asynchronous clients."""
        if self._asynchronous is not None:
            await self._asynchronous.aclose()

    def _inner_blocking(self) -> Any:
        """Return the transport that sends for blocking clients."""
        if self._blocking is None:
            self._check_kind("Client", "HTTPTransport")
            # The plain code would be an assignment, under a lock, which a fork could find held.
            # setdefault() is atomic, too: several threads get the transport of one of them.
            self._blocking = self._made.setdefault("blocking", self.module.HTTPTransport())
        return self._blocking

    def _inner_asynchronous(self) -> Any:
        """Return the transport that sends for asynchronous clients."""
        if self._asynchronous is None:
            self._check_kind("AsyncClient", "AsyncHTTPTransport")
            made = self._made.setdefault("asynchronous", self.module.AsyncHTTPTransport())
            self._asynchronous = made
        return self._asynchronous

    def _check_kind(self, client: str, default: str) -> None:
        if self._given is not None:
            name = self.module.__name__
            raise TypeError(
                f"{type(self).__name__} was given a {type(self._given).__name__}, which "
                f"{name}.{client} cannot use: give it an {name}.{default}, or none"
            )
