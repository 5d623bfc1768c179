"""urllib3: the gate as a pool manager."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from urllib3 import HTTPConnectionPool, PoolManager, ProxyManager
from urllib3._collections import HTTPHeaderDict
from urllib3._version import __version__
from urllib3.util import parse_url

from .._gate import urls
from .._gate.gate import Defaults, Stamp, gate, is_bound
from .._gate.gateway import Gateway
from .._gate.routes import AGENT, NOBODY, Gateways
from .._session.scopes import current_lineage
from ..headers import FORWARD, by_lower_name, is_identifier, without

if TYPE_CHECKING:
    # To a type checker the mixins are what they are always mixed into.
    _Pool = HTTPConnectionPool
    _Manager = PoolManager
else:
    _Pool = _Manager = object

_Headers: TypeAlias = Mapping[str, str]

# urllib3 sends its own User-Agent where there is none, and this Accept to a proxy that forwards.
_DEFAULTS: Defaults = {"user-agent": (None,)}
_DEFAULTS_OF_A_PROXY: Defaults = {**_DEFAULTS, "accept": ("*/*",)}


class GatewayPool(_Pool):
    """A connection pool that stamps each attempt on its way out.

    Here rather than in the manager, which botocore and others pass by. The manager makes the next
    hop of a redirect from the caller's own headers.
    """

    gateways: Gateways

    def urlopen(  # type: ignore[override] # as in urllib3 itself
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: _Headers | None = None,
        retries: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        headers = self.headers if headers is None else headers
        url, headers = through_gate(self.gateways, self, url, headers, retries)
        return pass_on(super().urlopen, method, url, body, headers, retries, *args, **kwargs)


class _GatewayManager(_Manager):
    def __init__(self, *args: Any, gateway: Gateway | None, **kwargs: Any) -> None:
        self.gateway = gateway
        self._gateways = Gateways() if gateway is None else Gateways(gateway)
        super().__init__(*args, **kwargs)

    def _new_pool(self, *args: Any, **kwargs: Any) -> Any:
        # Whatever class the pool has: botocore and others put their own in after construction.
        pool: Any = super()._new_pool(*args, **kwargs)
        pool_class: Any = type(pool)
        pool.__class__ = _gated(pool_class)
        pool.gateways = self._gateways
        return pool

    if __version__.startswith("1."):

        def urlopen(  # type: ignore[override] # as in urllib3 itself
            self, method: str, url: str, redirect: bool = True, **kw: Any
        ) -> Any:
            # On a redirect, it takes headers such as Authorization off the caller's own.
            if kw.get("headers") is not None:
                kw["headers"] = kw["headers"].copy()
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


def pass_on(
    urlopen: Callable[..., Any],
    method: str,
    url: str,
    body: Any,
    headers: Any,
    retries: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call ``urlopen`` as managers do: a subclass or a wrapper may take keywords alone."""
    if args:
        return urlopen(method, url, body, headers, retries, *args, **kwargs)
    return urlopen(method, url, body=body, headers=headers, retries=retries, **kwargs)


def through_gate(
    gateways: Gateways, pool: HTTPConnectionPool, target: str, headers: _Headers, retries: Any
) -> tuple[str, _Headers]:
    """What an attempt of ``pool`` is to send in place of ``target`` and ``headers``."""
    if getattr(retries, "history", None):
        headers = _after_redirects(gateways, pool, target, headers, retries)
    url = full_url(pool, target)
    by_name = by_lower_name(headers.items())
    defaults = _DEFAULTS if pool.proxy is None else _DEFAULTS_OF_A_PROXY
    stamp = gate(url, gateways.owner(url), by_name, defaults)
    if stamp is None:
        return target, headers
    if stamp.url is not url:
        target = stamp.url[len(url) - len(target) :]
    return target, _stamped(headers, by_name, stamp)


def _stamped(
    headers: _Headers, by_name: dict[str, tuple[Any, Any]], stamp: Stamp
) -> MutableMapping[str, str]:
    if isinstance(headers, HTTPHeaderDict) or len(by_name) < len(headers):
        return stamp.on(headers)  # there can be several of one name
    made = dict(headers)
    for key in by_name.keys() & {*stamp.headers, stamp.removed}:
        del made[by_name[key][0]]
    made.update(stamp.headers.values())
    return made


def _after_redirects(
    gateways: Gateways, pool: HTTPConnectionPool, target: str, headers: _Headers, retries: Any
) -> _Headers:
    """``headers``, less the identifiers if a redirect has left the origin that they were for.

    That is the origin of the first hop that was gateway-bound. ``Retry.history`` tells of all hops,
    however the retries were asked for. (``Retry.remove_headers_on_redirect`` would not do: behind a
    proxy that forwards, urllib3 takes the proxy for the host that a redirect leaves or does not.)
    """
    values = {key: value for key, (_, value) in by_lower_name(headers.items()).items()}
    marker = values.get("x-cagent-forward")
    if FORWARD.lower() in retries.remove_headers_on_redirect:
        marker = FORWARD  # off by now, if it was there
    home, owner, names = None, NOBODY, frozenset[str]()
    for url in _redirected(pool, retries.history):
        owner = gateways.owner(url)
        if is_bound(marker, owner):
            home = url if home is None else home
            names |= owner.session_names
    if home is None:
        return headers
    if not urls.same_origin(home, full_url(pool, _normalized(target, ""))):
        return without(headers, {key for key in values if is_identifier(key, names)})
    if retries.history[-1].url.startswith("/"):
        # The pool follows the redirect itself, with the headers that the last hop was stamped
        # with. What its owner set goes, and whoever owns this one sets its own.
        own: set[tuple[str, str | None]] = set()
        if owner is not NOBODY:
            own = {(name.lower(), value) for name, value in [*owner.marks.values(), AGENT]}
            own |= set(itertools.product(owner.session_names, current_lineage()[:2]))
        return without(headers, {key for key in values if (key, values[key]) in own})
    return headers


def full_url(pool: HTTPConnectionPool, target: str) -> str:
    """Where a request goes that ``pool`` sends with ``target``; empty if that is not certain."""
    base = _base_url(pool.scheme, pool.host, pool.port)
    if target.startswith("/"):
        return base + target
    # A proxy that forwards gets the full URL. Anyone else may take one for what it likes.
    return target if pool.proxy is not None or urls.same_origin(base, target) else ""


@functools.lru_cache(maxsize=1024)
def _base_url(scheme: str, host: str, port: int | None) -> str:
    base = f"{scheme}://[{host}]" if ":" in host else f"{scheme}://{host}"
    return base if port in (None, urls.DEFAULT_PORTS[scheme]) else f"{base}:{port}"


def _redirected(pool: HTTPConnectionPool, history: Any) -> list[str]:
    """The URLs that were answered by a redirect, as urllib3 reads them.

    What a pool writes down, for a redirect that it follows or an answer that it does not accept,
    is a path: on the host that the manager's next entry names, or on that of the pool in hand.
    """
    base = _base_url(pool.scheme, pool.host, pool.port)
    found = []
    for hop in reversed(history):
        url = _normalized(hop.url, base)
        base = parse_url(url)._replace(path=None, query=None).url
        if hop.redirect_location:
            found.append(url)
    return found[::-1]


def _normalized(url: str, base: str) -> str:
    """``url`` as urllib3 reads it, which may be a path at ``base``."""
    if url.startswith("/") and not url.startswith("//"):
        return base + url
    parsed = parse_url(url)
    return parsed._replace(scheme=parsed.scheme or "http", auth=None, fragment=None).url


@functools.cache
def _gated(pool_class: Any) -> Any:
    if issubclass(pool_class, GatewayPool):
        return pool_class
    return type(f"Gateway{pool_class.__name__}", (GatewayPool, pool_class), {})
