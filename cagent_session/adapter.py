"""requests: the gate as a transport adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from requests.utils import default_headers

from . import urls
from ._owners import Gateways, Owner
from ._sent_headers import SentCaseInsensitiveDict, SentHeaders, is_usual, sent
from .gate import Defaults, Stamp, gate, passing
from .headers import PREFIX, by_lower_name

if TYPE_CHECKING:
    # To a type checker the mixin is the adapter that it is always mixed into.
    _Adapter = HTTPAdapter
else:
    _Adapter = object

_DEFAULT_ENCODING = default_headers()["Accept-Encoding"]
_DEFAULTS: Defaults = {
    # Where User-Agent has been taken out, urllib3 puts its own default in.
    "user-agent": (default_headers()["User-Agent"], None),
    "accept": (default_headers()["Accept"],),
    "accept-encoding": (_DEFAULT_ENCODING,),
}


class GatewayMixin(_Adapter):
    """What :class:`GatewayAdapter` does, for any other ``HTTPAdapter`` subclass.

    :param gateway: the one whose URLs are to be marked; see :class:`GatewayAdapter`.
    :type gateway: Gateway | None
    :param adapter_kwargs: what the class that it is mixed into takes.

    ::

        class CachedAdapter(GatewayMixin, CacheControlAdapter):
            pass

        http.mount("https://", CachedAdapter(gateway, cache=FileCache(".cache")))
    """

    def __init__(self, gateway: Owner | None = None, **adapter_kwargs: Any) -> None:
        self.gateway = gateway
        self._gateways = Gateways() if gateway is None else Gateways(gateway)
        super().__init__(**adapter_kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state | {"gateway": self.gateway, "_gateways": self._gateways}

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Response:
        """Send ``request``, or a stamped copy of it if it is gateway-bound.

        The session is the one that is current in the calling thread, now.
        """
        outgoing, has_been_sent = through_gate(self._gateways, request, stream)
        try:
            return super().send(
                outgoing, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
            )
        finally:
            if has_been_sent is not None:
                has_been_sent()


class GatewayAdapter(GatewayMixin, HTTPAdapter):
    """A transport adapter that says on every gateway-bound request which session sent it.

    :param gateway: requests to the URLs of this :class:`Gateway` are marked as gateway-bound, and
        stamped with the session in scope. Without a gateway nothing is marked, and only those
        requests are stamped that carry the marker ``X-Cagent-Forward`` already.
    :type gateway: Gateway | None
    :param adapter_kwargs: what ``requests``' ``HTTPAdapter`` takes.

    All other requests leave as they would through ``HTTPAdapter``. The caller's request is
    never changed: ``response.request`` is the stamped copy that was sent. Whoever copies either
    of them, for a redirect or to send it again, gets a copy without the identifiers; they return
    when it is sent to the same origin. ::

        http = requests.Session()
        http.mount("https://", GatewayAdapter(gateway))     # or: gateway.mount(http)

        with session_scope("order-4711"):
            http.post(gateway.endpoint("v1/chat/completions"), json=prompt)
    """


def mount(session: Session, gateway: Owner, adapter: GatewayMixin) -> None:
    """Mount ``adapter`` on ``session`` for ``gateway``, next to the gateways that are there."""
    if not isinstance(session, Session):
        raise TypeError(
            f"mount takes a requests.Session, not {type(session).__name__}: for httpx there is "
            "GatewayTransport, for urllib3 GatewayPoolManager"
        )
    mounted = [(gateway, adapter)]
    for other in session.adapters.values():
        if not isinstance(other, GatewayMixin) or other.gateway is None:
            continue
        if other.gateway.origin == gateway.origin and other.gateway != gateway:
            mounted.append((other.gateway, other))
    # Each knows all, as a URL may be spelt such that it reaches another one than its own.
    gateways = Gateways(*(each for each, _ in mounted))
    for _, each in mounted:
        each._gateways = gateways
    _, at_origin = min(mounted, key=lambda pair: len(pair[0].path))
    scheme, host, port = gateway.origin
    origins = [f"{scheme}://{host}:{port}"]
    if port == urls.DEFAULT_PORTS[scheme]:
        origins.append(f"{scheme}://{host}")
    for origin in origins:
        session.mount(f"{origin}/", at_origin)
        if gateway.path:
            session.mount(origin + gateway.path, adapter)


def through_gate(
    gateways: Gateways, request: PreparedRequest, stream: bool
) -> tuple[PreparedRequest, Callable[[], None] | None]:
    """What to send in place of ``request``: itself, or a stamped copy of it if it is bound.

    Then what to do, if anything, once it has been sent, well or not.
    """
    url = request.url or ""
    owner = gateways.owner(url)
    if isinstance(request.headers, SentHeaders):
        request.headers = request.headers.of(request, owner)  # type: ignore[assignment]
    headers: Any = request.headers
    by_name, names = _by_lower_name(headers)
    stamp = gate(url, owner, by_name, _DEFAULTS)
    if stamp is None:
        if isinstance(headers, SentHeaders) and headers.has_identifiers:
            request = _copy(request, url, headers.plain())
            return request, _watched(request, partial(headers.were_sent_by, request))
        return request, _watched(request)
    if stream and by_name.get("accept-encoding", (None, None))[1] == _DEFAULT_ENCODING:
        # A compressor holds server-sent events back until its block is full.
        stamp.headers.setdefault("accept-encoding", ("Accept-Encoding", "identity"))
    stamped = _stamped(headers, by_name, stamp)
    outgoing = _copy(request, stamp.url, stamped)
    if PREFIX in names or not owner.session_names.isdisjoint(by_name):
        whose: PreparedRequest | None = request
        if isinstance(headers, SentHeaders) and headers.has_identifiers:
            whose = request if headers.are_of(request) else None  # put back into a copy
        made = sent(headers)
        made.were_sent(url, owner, headers, whose)
        request.headers = made

    def has_been_sent() -> None:
        # Not earlier: urllib3 copies them on their way, and is to get all of them. An adapter
        # below may have replaced them.
        made: Any = outgoing.headers
        if made is not stamped or not isinstance(made, SentHeaders):
            made = outgoing.headers = sent(made)
        made.were_sent(stamp.url, owner, headers)

    return outgoing, _watched(outgoing, has_been_sent)


def _watched(
    outgoing: PreparedRequest, then: Callable[[], None] | None = None
) -> Callable[[], None] | None:
    """``then``, after the time in which ``outgoing`` is being passed on."""
    if not passing.is_watched:
        return then
    before = passing.request.set(outgoing)

    def end() -> None:
        passing.request.reset(before)
        if then is not None:
            then()

    return end


def _copy(request: PreparedRequest, url: str, headers: Any) -> PreparedRequest:
    """``request`` with another URL and headers. All else is shared, as it would be without us."""
    # PreparedRequest.copy() copies the cookie jar, too, which takes longer than all the rest.
    outgoing: PreparedRequest = object.__new__(type(request))
    outgoing.__dict__.update(request.__dict__)
    outgoing.url = url
    outgoing.headers = headers
    return outgoing


def _by_lower_name(headers: Any) -> tuple[dict[str, tuple[Any, Any]], str]:
    """The headers by their names in lower case, and the names alone, one per line."""
    if is_usual(headers):
        # All that it has in public is slower than the rest of the gate.
        store = headers._store
        try:
            return store, "\n".join(store)
        except TypeError:
            pass  # a name in bytes
    by_name = by_lower_name(headers.items())
    return by_name, "\n".join(by_name)


def _stamped(headers: Any, by_name: dict[str, tuple[Any, Any]], stamp: Stamp) -> Any:
    """``headers`` as they are to be sent."""
    if by_name is getattr(headers, "_store", None):
        made: Any = SentCaseInsensitiveDict.__new__(SentCaseInsensitiveDict)
        made._store = {**by_name, **stamp.headers}
        if stamp.removed is not None:
            made._store.pop(stamp.removed, None)
        return made
    return stamp.on(headers)
