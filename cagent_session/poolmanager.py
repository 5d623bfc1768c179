"""urllib3: the gate as a pool manager."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager
from urllib3._collections import HTTPHeaderDict
from urllib3._version import __version__

from . import urls
from .gateway import Gateway, check_gateway, gate, without_identifiers
from .headers import by_lower_name

if TYPE_CHECKING:
    # To a type checker the mixins are what they are always mixed into.
    _Pool = HTTPConnectionPool
    _Manager = PoolManager
else:
    _Pool = _Manager = object

# urllib3 sends its own where there is none.
_DEFAULT_AGENTS = (None,)
# On a redirect, urllib3 1.26 takes headers such as Authorization off the caller's own.
_TAKES_HEADERS_OFF = __version__.startswith("1.")


class _GatewayPool(_Pool):
    """Stamps each attempt on its way out.

    Here rather than in the manager, which builds a redirect's next hop from the headers that it
    has seen itself, and which botocore and others pass by.
    """

    gateway: Gateway | None
    base_url: str

    def urlopen(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *args: Any,
        came_from: str | None = None,
        **kwargs: Any,
    ) -> Any:
        # A proxy that forwards gets the full URL; everyone else gets what follows the host.
        base_url = "" if self.proxy is not None and not url.startswith("/") else self.base_url
        callers = self.headers if headers is None else headers
        stamp = gate(base_url + url, by_lower_name(callers.items()), self.gateway, _DEFAULT_AGENTS)
        if stamp is not None:
            full_url, stamped = stamp
            url = full_url[len(base_url) :]
            headers = _header_dict(callers.items())
            for name, value in stamped.values():
                headers[name] = value
        return super().urlopen(method, url, body, headers, *args, **kwargs)


class _GatewayHTTPPool(_GatewayPool, HTTPConnectionPool):
    pass


class _GatewayHTTPSPool(_GatewayPool, HTTPSConnectionPool):
    pass


class _GatewayManager(_Manager):
    gateway: Gateway | None

    def __init__(self, *args: Any, gateway: Gateway | None, **kwargs: Any) -> None:
        self.gateway = check_gateway(gateway)
        super().__init__(*args, **kwargs)
        self.pool_classes_by_scheme = {"http": _GatewayHTTPPool, "https": _GatewayHTTPSPool}

    def _new_pool(self, scheme: str, host: str, port: int, request_context: Any = None) -> Any:
        pool: Any = super()._new_pool(scheme, host, port, request_context)
        pool.gateway = self.gateway
        pool.base_url = f"{scheme}://{host}"
        if port != urls.DEFAULT_PORTS[scheme]:
            pool.base_url += f":{port}"
        return pool

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> Any:  # type: ignore[override]
        # urllib3 follows a redirect by calling this again with the keywords of the last hop. So
        # it is told there, and not to Retry, which each request may bring along in its own way.
        came_from = kw.get("came_from")
        if came_from is not None and urls.leaves_origin(came_from, url):
            items = kw["headers"].items()
            if gate(came_from, by_lower_name(items), self.gateway, _DEFAULT_AGENTS) is not None:
                kw["headers"] = _header_dict(without_identifiers(items, self.gateway))
        if _TAKES_HEADERS_OFF and came_from is None and kw.get("headers") is not None:
            kw["headers"] = kw["headers"].copy()
        kw["came_from"] = url
        return super().urlopen(method, url, redirect=redirect, **kw)


class GatewayPoolManager(_GatewayManager, PoolManager):
    """A ``PoolManager`` that says on every gateway-bound request which session sent it.

    :param gateway: requests to its URLs are marked as gateway-bound, and stamped with the
        session in scope. Without a gateway nothing is marked, and only those requests are
        stamped that carry the marker ``X-Cagent-Forward`` already.
    :param pool_manager_kwargs: what urllib3's ``PoolManager`` takes.

    Its connection pools do the same when they are used directly. ::

        http = GatewayPoolManager(gateway, maxsize=32)
        with session_scope("order-4711"):
            http.request("POST", gateway.endpoint("v1/chat/completions"), json=prompt)
    """

    def __init__(self, gateway: Gateway | None = None, **pool_manager_kwargs: Any) -> None:
        super().__init__(gateway=gateway, **pool_manager_kwargs)


class GatewayProxyManager(_GatewayManager, ProxyManager):
    """A ``ProxyManager`` that does what :class:`GatewayPoolManager` does, through a proxy.

    The proxy itself gets no identifier: none is in the request that opens a tunnel.

    :param proxy_url: the proxy's URL.
    :param gateway: see :class:`GatewayPoolManager`.
    :param proxy_manager_kwargs: what urllib3's ``ProxyManager`` takes.

    ::

        http = GatewayProxyManager("http://proxy.example:3128", gateway)
    """

    def __init__(
        self, proxy_url: str, gateway: Gateway | None = None, **proxy_manager_kwargs: Any
    ) -> None:
        super().__init__(proxy_url, gateway=gateway, **proxy_manager_kwargs)


def _header_dict(items: Iterable[tuple[Any, Any]]) -> HTTPHeaderDict:
    headers = HTTPHeaderDict()
    for name, value in items:
        headers.add(name if isinstance(name, str) else name.decode("latin-1"), value)
    return headers
