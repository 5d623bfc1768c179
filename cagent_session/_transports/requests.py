"""requests: the gate as a transport adapter."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from requests import PreparedRequest, RequestException, Response, Session
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import default_headers

from .._gate import urls
from .._gate.gate import Defaults, Stamp, gate, passing
from .._gate.routes import NOBODY, Gateways, Owner
from ..headers import PREFIX, by_lower_name, is_identifier, lower
from .guarded_headers import USUAL, SentHeaders, sent, with_store

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
        outgoing = through_gate(self._gateways, request, stream)
        stamped: Any = outgoing.headers
        watched = passing.request.set(outgoing) if passing.is_watched else None
        try:
            response = super().send(
                outgoing, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
            )
        except RequestException as error:
            if outgoing is not request:
                _was_sent_below(error, stamped)
            raise
        finally:
            if watched is not None:
                passing.request.reset(watched)
            if outgoing is not request:
                was_sent(outgoing, stamped)
        if outgoing is not request and getattr(response, "request", None) is not outgoing:
            _was_sent_below(response, stamped)
        return response


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


def through_gate(gateways: Gateways, request: PreparedRequest, stream: bool) -> PreparedRequest:
    """What to send in place of ``request``: itself, or a stamped copy of it if it is bound.

    Once a copy has been sent, well or not, :func:`was_sent` has to hear of it.
    """
    url = request.url or ""
    owner = gateways.owner(url) if gateways.hosts else NOBODY
    headers: Any = request.headers
    before: SentHeaders | None = None
    if isinstance(headers, SentHeaders):
        before = headers.of(request, owner)
        headers = before
        request.headers = headers
    # All that headers have in public is slower than the rest of the gate. A name in bytes is found
    # in their store by nobody else; what nobody owns is bound by that of the marker alone.
    is_usual = type(headers) in USUAL
    if is_usual and (owner is not NOBODY or "x-cagent-forward" in headers._store):
        is_usual = dict.keys(headers._store).isdisjoint(owner.in_bytes)
    elif is_usual:
        is_usual = b"x-cagent-forward" not in headers._store
    by_name = headers._store if is_usual else by_lower_name(headers.items())
    stamp = gate(url, owner, by_name, _DEFAULTS)
    if stamp is not None:
        if stream and by_name.get("accept-encoding", (None, None))[1] == _DEFAULT_ENCODING:
            # A compressor holds server-sent events back until its block is full.
            stamp.headers.setdefault("accept-encoding", ("Accept-Encoding", "identity"))
        if is_usual:
            stamped = with_store(_stamped_store(by_name, stamp), stamp.url, owner)
        else:
            stamped = sent(_stamped(headers, stamp), stamp.url, owner)
        if "x-cagent-forward" in by_name or _may_have_identifiers(by_name, owner):
            # It may be in use elsewhere, and so is not changed but replaced.
            if is_usual and before is None:
                marked: Any = with_store(by_name, url, owner)
            else:
                marked = sent(headers, url, owner)
            if before is None or not before.were_sent or before.are_of(request):
                marked.request = weakref.ref(request)  # else they were put back into a copy
            marked.were_sent = True
            request.headers = marked
        url = stamp.url
    elif before is not None and before.were_sent:
        stamped = sent(before.plain(), before.url, NOBODY)
    else:
        return request
    if before is not None:
        stamped.inherit(before)
    # PreparedRequest.copy() copies the cookie jar, too, which takes longer than all the rest. All
    # but the URL and the headers is shared, as it would be without us.
    outgoing: PreparedRequest = object.__new__(type(request))
    outgoing.__dict__.update(request.__dict__)
    outgoing.url, outgoing.headers = url, stamped  # type: ignore[assignment]
    return outgoing


def was_sent(request: PreparedRequest, stamped: SentHeaders) -> None:
    """Let copies of ``request`` leave the identifiers behind.

    Not earlier: urllib3 copies the headers on their way, and is to get all of them.

    :param stamped: the headers that it was to be sent with.
    """
    made: Any = request.headers
    if isinstance(made, SentHeaders) and made.were_sent:
        return  # they come from another request, and know where to
    if made is not stamped:  # an adapter below has replaced them
        made = sent(made, stamped.url, stamped.owner)
        made.inherit(stamped)
        request.headers = made
    made.were_sent = True


def _was_sent_below(result: Any, stamped: SentHeaders) -> None:
    """Let copies be as careful of the request in a response or an error, if it is a copy itself."""
    copied: Any = getattr(result, "request", None)
    # A test double can have anything there.
    if issubclass(type(copied), PreparedRequest) and isinstance(copied.headers, Mapping):
        was_sent(copied, stamped)


def _stamped_store(store: dict[str, tuple[Any, Any]], stamp: Stamp) -> dict[str, tuple[Any, Any]]:
    store = dict(dict.items(store))  # which is faster than what OrderedDict has for it
    store.update(stamp.headers)
    if stamp.removed is not None:
        store.pop(stamp.removed, None)
    return store


def _stamped(headers: Any, stamp: Stamp) -> Any:
    made = stamp.on(headers.plain() if isinstance(headers, SentHeaders) else headers)
    return CaseInsensitiveDict(made) if isinstance(headers, CaseInsensitiveDict) else made


def _may_have_identifiers(names: Iterable[Any], owner: Owner) -> bool:
    try:
        return PREFIX in "\n".join(names) or not owner.session_names.isdisjoint(names)
    except TypeError:  # a name is bytes
        return any(is_identifier(lower(name), owner.session_names) for name in names)
