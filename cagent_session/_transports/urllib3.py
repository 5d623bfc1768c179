"""urllib3: the gate as a pool manager.

urllib3 follows redirects in two places. The manager sends each hop with the headers that its caller
gave. A pool that is used directly follows redirects itself, and sends each hop with the headers of
the last attempt. So the value of a header has to say by itself where it may be sent:

- The gate set a ``Stamped`` value. It comes off before each attempt, and the gate sets a new one.
- The caller set an identifier. Its value has a home (``homed_headers.py``), and comes off at any
  other origin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from urllib3 import HTTPConnectionPool, PoolManager, ProxyManager
from urllib3._collections import HTTPHeaderDict
from urllib3._version import __version__
from urllib3.util.proxy import connection_requires_http_tunnel

from .._gate import urls
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
from .._gate.passage import Passage, are_plain_text, attach, belongs_to_open, lower, passage_of
from .._gate.routes import (
    BARE,
    FORWARD_KEY,
    Library,
    Plan,
    Router,
    identifiers_among,
    is_identifier,
    may_get_identifiers,
)
from .guarded_headers import GuardedHeaders
from .homed_headers import (
    HomedHeaders,
    homed,
    is_for_another,
    origin_of,
    read_by_urllib3,
)
from .mappings import with_stamp, without
from .requests import JudgedMethod, judged_with

if TYPE_CHECKING:
    # To a type checker the mixins are what they are always mixed into.
    _Pool = HTTPConnectionPool
    _Manager = PoolManager
else:
    _Pool = _Manager = object

_IS_VERSION_1 = __version__.startswith("1.")
# urllib3 sends its own User-Agent where there is none, and this Accept to a proxy that forwards.
_URLLIB3 = Library({"user-agent": (None,)})
_OVER_A_PROXY = Library({"user-agent": (None,), "accept": ("*/*",)})


class GatewayPool(_Pool):
    """A connection pool that stamps each attempt.

    Implemented on the pool, because botocore and others bypass the manager.
    """

    router: Router
    base: str  #: scheme, host and port, as a URL

    def urlopen(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        # "pool" is the layer of a Passage; that of instrument() is "patch".
        return send(
            self.router, self, self.base, super().urlopen, "pool", method, url, args, kwargs
        )


class _GatewayManager(_Manager):
    """Mixin for pool managers: its pools stamp each attempt, and it ties identifiers to a home."""

    def __init__(self, *args: Any, gateway: Gateway | None, **kwargs: Any) -> None:
        self.gateway = gateway
        self._router = Router(gateway)
        super().__init__(*args, **kwargs)

    def _new_pool(self, *args: Any, **kwargs: Any) -> Any:
        # The plain code would be to set pool_classes_by_scheme. But botocore and others replace
        # that after construction.
        pool: Any = super()._new_pool(*args, **kwargs)
        pool.__class__ = _with_gate(pool.__class__)
        pool.router = self._router
        pool.base = base_of(pool)
        return pool

    def urlopen(  # type: ignore[override] # as in urllib3 itself
        self, method: str, url: str, redirect: bool = True, **kw: Any
    ) -> Any:
        # On a redirect, urllib3 calls this method again with the headers set here, so identifiers
        # keep their home.
        headers = with_homes(self._router, url, kw.get("headers", self.headers))
        if headers is not None:
            kw["headers"] = headers
        elif _IS_VERSION_1 and kw.get("headers") is not None:
            # On a redirect, urllib3 1.x takes Authorization off the object that the caller gave.
            kw["headers"] = kw["headers"].copy()
        return super().urlopen(method, url, redirect=redirect, **kw)


class GatewayPoolManager(_GatewayManager, PoolManager):
    """A ``PoolManager`` that puts the session in scope on every gateway-bound request.

    :param gateway: requests to its URLs are gateway-bound. Without a gateway, only requests that
        already carry the header ``X-Cagent-Forward`` are.
    :param pool_manager_kwargs: the keywords of urllib3's ``PoolManager``.

    Its connection pools do the same when they are used directly. ::

        http = GatewayPoolManager(gateway, maxsize=32)
        with session_scope("order-4711"):
            http.request("GET", gateway.endpoint("v1/models"))
    """

    def __init__(self, gateway: Gateway | None = None, **pool_manager_kwargs: Any) -> None:
        super().__init__(gateway=gateway, **pool_manager_kwargs)


class GatewayProxyManager(_GatewayManager, ProxyManager):
    """A ``ProxyManager`` that does what :class:`GatewayPoolManager` does, through a proxy.

    The request that opens a tunnel through the proxy carries no identifier.

    :param proxy_url: the proxy's URL.
    :param gateway: see :class:`GatewayPoolManager`.
    :param proxy_manager_kwargs: the keywords of urllib3's ``ProxyManager``.

    ::

        http = GatewayProxyManager("http://proxy.example:3128", gateway)
    """

    def __init__(
        self, proxy_url: str, gateway: Gateway | None = None, **proxy_manager_kwargs: Any
    ) -> None:
        if not isinstance(proxy_url, str):
            raise TypeError(
                f"proxy_url must be a str, not {type(proxy_url).__name__}: "
                "write GatewayProxyManager(proxy_url, gateway)"
            )
        super().__init__(proxy_url, gateway=gateway, **proxy_manager_kwargs)


class _InFlight(dict[str, Any]):
    """The headers of a gateway-bound attempt, and copies of them.

    The plain code would be a ``dict``, as values hold the passage, too. The attribute saves looking
    for it there, and also serves where the gate set no value.
    """

    passage: Passage | None = None

    def copy(self) -> Any:
        made = type(self)(self)
        made.passage = self.passage
        return made


def send(
    router: Router,
    pool: Any,
    base: str,
    pass_on: Callable[..., Any],
    layer: str,
    method: str,
    target: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Make one attempt of ``pool``, stamped if it is gateway-bound.

    :param base: the pool's scheme, host and port, as a URL.
    :param pass_on: the ``urlopen`` that sends.
    :param layer: of the caller: ``"pool"`` or ``"patch"``, see :class:`Passage`.
    :param target: a path, or a full URL.
    :param args: the positional arguments of ``urlopen`` after that: the body, the headers, the
        retries and so on. Like ``kwargs``, they are passed on as they were given, but for the
        headers.
    """
    given = args[1] if len(args) > 1 else kwargs.get("headers")
    url = full_url(pool, base, target)
    if layer == "patch" and _is_judged(router, method, given, url):
        if isinstance(method, str) and not isinstance(method, JudgedMethod):
            method = JudgedMethod(method, judged_with(given))
        return pass_on(method, target, *args, **kwargs)
    given = pool.headers if given is None else given
    # What is not changed is not passed on either: the library then gets what the caller gave.
    headers = before = _as_dict(given)
    if not _are_fit_to_send(headers, url):
        earlier = passage_of(headers, headers.items())
        if _has_passed(earlier, method, url, router, layer):
            return pass_on(method, target, *args, **kwargs)
        headers = _for_this_attempt(router, headers, url, target, earlier)
    # A manager follows redirects itself, and passes False to its pools.
    follows = kwargs.get("redirect", True)
    headers, passage = _through_gate(router, pool, headers, method, url, layer, follows)
    if headers is not before:
        args, kwargs = _with_headers(headers, args, kwargs)
    if passage is None:
        return pass_on(method, target, *args, **kwargs)
    if passage.url is not url:  # with_query() has made another one
        target = passage.url[len(base) :] if target.startswith("/") else passage.url
    try:
        response = pass_on(method, target, *args, **kwargs)
    finally:
        passage.is_open = False
    location = getattr(response, "get_redirect_location", lambda: None)()
    if isinstance(location, str):  # a mock has anything
        _note_redirect(router, passage, location, headers)
    return response


def send_switched_off(
    pool: Any,
    base: str,
    pass_on: Callable[..., Any],
    method: str,
    target: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Make one attempt of ``pool`` after ``uninstrument()``, without the stamp of an earlier one.

    A pool that follows a redirect, or sends again, does so with the headers of the last attempt.
    """
    given = args[1] if len(args) > 1 else kwargs.get("headers")
    if isinstance(given, _InFlight | HTTPHeaderDict):
        url, earlier = full_url(pool, base, target), passage_of(given, given.items())
        router = Router()
        if earlier is not None and not _has_passed(earlier, method, url, router, "patch"):
            headers = _for_this_attempt(router, given, url, target, earlier)
            args, kwargs = _with_headers(headers, args, kwargs)
    return pass_on(method, target, *args, **kwargs)


def _has_passed(earlier: Passage | None, method: str, url: str, router: Router, layer: str) -> bool:
    """Return whether another hook, or the gate of another library, has stamped the attempt."""
    # urllib3 calls itself for each attempt, with the headers of the last one. Each has to be
    # stamped anew, so a hook ignores its own passages.
    return (earlier is None or earlier.layer != layer) and has_passed(earlier, method, url, router)


def _with_headers(
    headers: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of ``urlopen`` with other headers, where the caller gave them."""
    if len(args) > 1:
        return (args[0], headers, *args[2:]), kwargs
    return args, kwargs | {"headers": headers}


def _through_gate(
    router: Router,
    pool: Any,
    headers: Any,
    method: str,
    url: str,
    layer: str,
    follows_redirects: bool,
) -> tuple[Any, Passage | None]:
    """Return the headers to send, and the passage if the attempt is gateway-bound.

    :param url: of the attempt. That of the passage has the gateway's query, too.
    :param follows_redirects: whether the pool itself follows them, with these headers.
    """
    route = router.route(url) if router.hosts else BARE
    library = _URLLIB3 if pool.proxy is None else _OVER_A_PROXY
    plan = route.plan(library, names_of(headers))
    if route is BARE and not plan.has_forward:
        note_unbound(url)
        return headers, None
    passage = Passage(method, route.with_query(url), router, layer)
    stamp = gate(url, plan, plan.find_by_name(headers), passage)
    if stamp is None:
        return headers, None
    if follows_redirects:
        headers = homed(headers, plan, origin_of(url))
        attach(passage, stamp[0])
    return _stamped(headers, plan, stamp, passage), passage


def _is_judged(router: Router, method: Any, headers: Any, url: str) -> bool:
    """Return whether the patch of requests has found that the request is not gateway-bound."""
    notes: Iterable[tuple[Router, str]] = judged_with(headers)
    if not notes and isinstance(method, JudgedMethod):
        # An X-Cagent-Forward that has been set since the first attempt makes it gateway-bound.
        items = () if headers is None else headers.items()
        is_marked = any(value and lower(name) == FORWARD_KEY for name, value in items)
        notes = () if is_marked else method.judged
    return any(
        by is router
        and (
            urls.equivalent(judged, url)
            or urls.equivalent(read_by_urllib3(judged), url)
            # An adapter for a scheme of its own, http+unix, does not connect to the URL's host.
            or not judged.lower().startswith(("http:", "https:"))
        )
        for by, judged in notes
    )


def _as_dict(headers: Any) -> Any:
    """Return a dict of the same headers, or ``headers`` if a name has several values.

    urllib3 makes an ``HTTPHeaderDict`` for most requests, and each pass through one takes longer
    than all that the gate reads.
    """
    if headers.__class__ is not HTTPHeaderDict:
        return headers
    items = list(headers.items())
    made = dict(items)
    return made if len(made) == len(items) else headers


def _are_fit_to_send(headers: Any, url: str) -> bool:
    """Return whether nothing has to come off ``headers``: no stamp, no identifier of another home.

    False says that something may have to. The plain code would be to look for a passage, homes and
    guarded headers one after the other. This saves most of the cost of an attempt that is not
    gateway-bound.

    :param url: where they are sent.
    """
    if headers.__class__ is HomedHeaders:
        return bool(headers.home == origin_of(url))
    return headers.__class__ is dict and are_plain_text(headers.values())


def names_of(headers: Any) -> tuple[Any, ...]:
    """Return the names of headers, as plans are found by them. Each value counts as a header."""
    if isinstance(headers, dict):
        return tuple(headers)
    return tuple([name for name, _ in headers.items()])


def _for_this_attempt(
    router: Router, headers: Any, url: str, target: str, earlier: Passage | None
) -> Mapping[str, Any]:
    """Return ``headers`` less what is for an earlier attempt, or for another origin.

    :param url: of the attempt; empty if it is doubtful where the pool sends that.
    :param target: a path, or a full URL.
    :param earlier: the passage in the headers: of an earlier attempt, or of a request that was
        stamped further up and is now sent with another method or URL.
    """
    if earlier is not None and not earlier.is_open:
        earlier = None  # the caller has copied values of a request that is over
    # The pool follows a redirect itself, from inside the attempt that was redirected.
    if earlier is not None and earlier.layer and not urls.same_origin(earlier.url, url):
        _note_redirect(router, earlier, url or target, headers)
    if isinstance(headers, GuardedHeaders) and not may_get_identifiers(headers.url, url):
        return headers.guarded_copy()  # the URL was changed below an adapter of requests
    origin = origin_of(url)
    gone = {lower(name) for name, value in headers.items() if is_for_another(value, origin)}
    if earlier is not None:
        staying = keys_to_keep(earlier, url, router)
        is_away = origin_of(str(earlier.url)) != origin
        # Not the session headers of other gateways: code in between may have set one for this.
        session_keys = earlier.route.session_keys
        for name, value in headers.items():
            key = lower(name)
            is_of_stamp = belongs_to_open(name, value) and key not in staying
            if is_of_stamp or (is_away and is_identifier(key, session_keys)):
                gone.add(key)
    return without(headers, gone) if gone else headers


def _stamped(headers: Mapping[str, Any], plan: Plan, stamp: Stamp, passage: Passage) -> Any:
    """Return a copy of ``headers`` with the stamp.

    The plain code would be ``with_stamp(headers, *stamp)``, in the class that the headers have.
    That is mostly ``HTTPHeaderDict``. Copying one takes longer than all of this, and the class is
    needed only where a name occurs several times.
    """
    stamped, removed = stamp
    made: Any
    if not plan.is_simple:
        made = with_stamp(headers, stamped, removed)
        made = _InFlight(made) if isinstance(made, dict) else made
        made.passage = passage
        return made
    # urllib3's own class would join the values of a name, which bytes have no part in.
    made = _InFlight(headers if isinstance(headers, dict) else headers.items())
    made.passage = passage
    for index, key in plan.droppable:
        if key in stamped or key in removed:
            del made[plan.names[index]]
    made.update(stamped.values())
    return made


_identifiers_among = functools.lru_cache(maxsize=1024)(identifiers_among)


def with_homes(router: Router, url: str, given: Any) -> Any:
    """Return a copy of the headers for one hop of a manager, or ``None`` if they may stay.

    In the copy, identifiers keep their home, and what a gate above has stamped keeps its class. If
    the hop is gateway-bound, its origin becomes the home of those that have none. If it is made by
    code below another gate, from a request that is being sent, that request's origin does.
    Headers of a request of requests that has been sent leave the stamp behind, and at another
    origin all identifiers.

    :param given: the headers of the call or, if it has none, of the manager. ``None`` in the call
        means none at all.
    """
    if given is None:
        return None
    headers = _as_dict(given)
    earlier = passage_of(headers, headers.items())
    is_below_another = earlier is not None and earlier.is_open
    is_guarded = isinstance(headers, GuardedHeaders)
    if is_guarded and is_below_another:
        return None  # they know by themselves where they may be sent
    if is_guarded:
        is_home = origin_of(headers.url) == origin_of(url)
        headers = headers.without_stamp() if is_home else headers.guarded_copy()
    names = names_of(headers)
    if not (is_below_another or is_guarded or _identifiers_among(names, router.session_keys)):
        return None
    if is_below_another:
        url = str(earlier.url)  # type: ignore[union-attr]
    route = router.route(url)
    if route is BARE and router.hosts:
        # It may be a gateway's once urllib3 has read it: without user info, without dot segments.
        url = read_by_urllib3(url)
        route = router.route(url)
    plan = route.plan(_URLLIB3, names)
    forward = plan.find_by_name(headers)[FORWARD_KEY][-1] if plan.has_forward else None
    origin = origin_of(url) if is_below_another or is_bound(forward, route) else None
    made = homed(headers, plan, origin)
    return None if made is headers and not is_guarded else made


def _note_redirect(router: Router, passage: Passage, location: str, headers: Any) -> None:
    route = router.route(passage.url)
    in_session = any(lower(name) in route.choosing_keys for name, value in headers.items() if value)
    note_redirect(router, route, passage.url, location, in_session)


def full_url(pool: Any, base: str, target: str) -> str:
    """Return where ``pool`` sends a request for ``target``; empty if that is doubtful."""
    if " " in target:
        target = target.replace(" ", "%20")  # as it is sent; a URL with a space is no gateway's
    forwards = pool.proxy is not None and _may_forward(pool, pool.proxy, target)
    if target.startswith("/"):
        return "" if forwards else base + target  # the proxy takes a path for one of its own
    # A proxy that forwards sends the request where the full URL says. Another server may ignore
    # the host in it, so it must be the pool's.
    return target if forwards or urls.same_origin(base, target) else ""


def _may_forward(pool: Any, proxy: Any, target: str) -> bool:
    """Return whether ``pool`` sends requests for ``target`` to a proxy that forwards them."""
    # urllib3 sends all http requests through one pool, which is connected to the proxy. If that
    # pool follows a redirect to https, it sends the request to the proxy in the clear.
    if (pool.scheme, pool.port, pool.host) == (proxy.scheme, proxy.port, proxy.host.strip("[]")):
        return target[:5].lower() == "http:"
    # Other pools for http connect to their own host, whatever proxy they know.
    return pool.scheme == "https" and not connection_requires_http_tunnel(
        proxy, pool.proxy_config, "https"
    )


def base_of(pool: Any) -> str:
    """Return the scheme, host and port of ``pool`` as a URL."""
    return _base_of(pool.scheme, pool.host, pool.port)


@functools.lru_cache(maxsize=1024)
def _base_of(scheme: str, host: str, port: int | None) -> str:
    base = f"{scheme}://[{host}]" if ":" in host else f"{scheme}://{host}"
    return base if port in (None, urls.DEFAULT_PORTS.get(scheme)) else f"{base}:{port}"


@functools.lru_cache(maxsize=256)
def _with_gate(pool_class: Any) -> Any:
    """Return a subclass of a pool's class that stamps each attempt."""
    if issubclass(pool_class, GatewayPool):
        return pool_class
    return type(f"Gateway{pool_class.__name__}", (GatewayPool, pool_class), {})
