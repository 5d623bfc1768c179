"""The gate as a transport, for httpx and for httpx2, its successor with the same interface.

What the two libraries' modules share; each adds its own base classes and types.
"""

from __future__ import annotations

import functools
import threading
from types import ModuleType
from typing import Any, TypeAlias

from .._gate import urls
from .._gate.gate import Defaults, PassingOn, gate, passing
from .._gate.gateway import Gateway
from .._gate.routes import NOBODY, Gateways
from ..headers import is_identifier

# A header as httpx keeps it: the name, the name in lower case, the value.
_Item: TypeAlias = tuple[bytes, bytes, bytes]

_MARKER = b"x-cagent-forward"
# In the extensions of a request, which the client hands on to the next hop: that it was
# gateway-bound, and which names were given to its identifiers.
_WAS_BOUND = "cagent_session"

_creating = threading.Lock()


class Library:
    """The gate for the requests of one of the libraries."""

    def __init__(self, module: ModuleType) -> None:
        agent = f"python-{module.__name__}/{module.__version__}"
        self.module = module
        self._defaults: Defaults = {"user-agent": (agent.encode(),), "accept": (b"*/*",)}
        self._request_class = module.Request
        self._headers_class = module.Headers
        # What Headers has in public checks all of them again, and takes longer than the gate.
        example = vars(module.Headers([("X-A", "b")]))
        self._is_known = example == {"_list": [(b"X-A", b"x-a", b"b")], "_encoding": None}

    def knows(self, request: object) -> bool:
        """Whether ``request`` is one of the library's own."""
        return isinstance(request, self._request_class)

    def through_gate(self, gateways: Gateways, request: Any) -> tuple[Any, frozenset[str] | None]:
        """What to send in place of ``request``, which is itself if it is not bound.

        Then the names of its identifiers besides all ``X-Cagent-*``, or ``None`` if it has never
        been bound.
        """
        if not self.knows(request):
            raise TypeError(
                f"this transport is for clients of {self.module.__name__}, not of "
                f"{type(request).__module__.partition('.')[0]}"
            )
        items = request.headers._list if self._is_known else _items(request.headers)
        url, owner = request.url, NOBODY
        if gateways.hosts and url.raw_host in gateways.hosts:
            url = str(url)
            owner = gateways.owner(url)
        looked_at = owner.looked_at
        found = [item for item in items if item[1] in looked_at]
        callers = {looked_at[item[1]]: item for item in found}
        if "x-cagent-forward" in callers and not callers["x-cagent-forward"][2]:
            # Of several one that is not empty counts.
            callers |= {
                looked_at[item[1]]: item for item in found if item[1] == _MARKER and item[2]
            }
        stamp = gate(url, owner, callers, self._defaults)
        names: frozenset[str] | None = request.extensions.get(_WAS_BOUND)
        if stamp is None:
            return request, names
        sent = items.copy()
        for item in found:
            key = looked_at[item[1]]
            if key in stamp.headers or key == stamp.removed:
                sent.remove(item)
        encoded = owner.encoded
        for key, header in stamp.headers.items():
            sent.append(encoded.get(key) or _encoded(*header))
        # All but the headers and the URL is shared: a body that streams can be read only once.
        outgoing = object.__new__(type(request))
        outgoing.__dict__ = request.__dict__.copy()
        outgoing.headers = self._headers(sent, request.headers)
        if stamp.url is not url:
            outgoing.url = self.module.URL(stamp.url)
        return outgoing, owner.session_names if names is None else names | owner.session_names

    def answered(self, request: Any, response: Any, names: frozenset[str]) -> Any:
        """``response``, once the identifiers are off ``request`` if it leads to another origin.

        The client makes the next hop from the request that it knows, which is not the outgoing
        one. Its headers are replaced, not changed, as another task may be reading them.
        """
        if response.status_code // 100 != 3 or not response.has_redirect_location:
            return response
        request.extensions = {**request.extensions, _WAS_BOUND: names}
        try:
            target = self.module.URL(response.headers["Location"])
            if not target.scheme:
                target = request.url.join(target)
            elif not target.host:
                target = ""  # the client goes to this host, at the port of that scheme
        except (self.module.InvalidURL, ValueError):
            target = ""  # the client refuses it, too
        if not urls.same_origin(str(request.url), str(target)):
            items = _items(request.headers)
            kept = [item for item in items if not is_identifier(item[1].decode("latin-1"), names)]
            request.headers = self._headers(kept, request.headers)
        return response

    def _headers(self, items: list[_Item], like: Any) -> Any:
        if self._is_known:
            made = self._headers_class.__new__(self._headers_class)
            made._list, made._encoding = items, like._encoding
            return made
        return self._headers_class([(name, value) for name, _, value in items], like.encoding)


def _items(headers: Any) -> list[_Item]:
    return [(name, name.lower(), value) for name, value in headers.raw]


@functools.cache
def library_of(module: ModuleType) -> Library:
    """The one for ``module``."""
    return Library(module)


@functools.lru_cache(maxsize=1024)
def _encoded(name: str, value: str) -> _Item:
    return name.encode(), name.lower().encode(), value.encode()


class GatewayTransport:
    """What the transports of the two modules share."""

    module: Any

    def __init__(self, gateway: Gateway | None, transport: Any) -> None:
        blocking, asynchronous = self.module.BaseTransport, self.module.AsyncBaseTransport
        if transport is not None and not isinstance(transport, (blocking, asynchronous)):
            raise TypeError(
                f"transport must be one of {self.module.__name__}'s, not {type(transport).__name__}"
            )
        self.gateway = gateway
        self._gateways = Gateways() if gateway is None else Gateways(gateway)
        self._library = library_of(self.module)
        self._given = transport
        self._blocking = transport if isinstance(transport, blocking) else None
        self._asynchronous = transport if isinstance(transport, asynchronous) else None

    def handle_request(self, request: Any) -> Any:
        """Send ``request``, or a stamped copy of it if it is gateway-bound."""
        inner = self._blocking or self._make_blocking()
        outgoing, names = self._library.through_gate(self._gateways, request)
        if passing.is_watched:
            with PassingOn(outgoing):
                response = inner.handle_request(outgoing)
        else:
            response = inner.handle_request(outgoing)
        return response if names is None else self._library.answered(request, response, names)

    async def handle_async_request(self, request: Any) -> Any:
        """Send ``request``, or a stamped copy of it if it is gateway-bound."""
        inner = self._asynchronous or self._make_asynchronous()
        outgoing, names = self._library.through_gate(self._gateways, request)
        if passing.is_watched:
            with PassingOn(outgoing):
                response = await inner.handle_async_request(outgoing)
        else:
            response = await inner.handle_async_request(outgoing)
        return response if names is None else self._library.answered(request, response, names)

    def __enter__(self) -> Any:
        (self._blocking or self._make_blocking()).__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        (self._blocking or self._make_blocking()).__exit__(*exc_info)

    async def __aenter__(self) -> Any:
        await (self._asynchronous or self._make_asynchronous()).__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await (self._asynchronous or self._make_asynchronous()).__aexit__(*exc_info)

    def close(self) -> None:
        """Close the transport that sends for blocking clients."""
        if self._blocking is not None:
            self._blocking.close()

    async def aclose(self) -> None:
        """Close the transport that sends for asynchronous clients."""
        if self._asynchronous is not None:
            await self._asynchronous.aclose()

    def _make_blocking(self) -> Any:
        self._check_kind("Client", "HTTPTransport")
        with _creating:
            self._blocking = self._blocking or self.module.HTTPTransport()
        return self._blocking

    def _make_asynchronous(self) -> Any:
        self._check_kind("AsyncClient", "AsyncHTTPTransport")
        with _creating:
            self._asynchronous = self._asynchronous or self.module.AsyncHTTPTransport()
        return self._asynchronous

    def _check_kind(self, client: str, default: str) -> None:
        if self._given is not None:
            name = self.module.__name__
            raise TypeError(
                f"{type(self).__name__} was given a {type(self._given).__name__}, which "
                f"{name}.{client} cannot use: give it an {name}.{default}, or none"
            )
