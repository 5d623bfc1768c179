"""requests: the gate as a transport adapter.

``requests.Session`` follows redirects above the adapter. It makes each hop from a copy of the last
request; ``guarded_headers.py`` says what becomes of the identifiers then.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from requests import PreparedRequest, RequestException, Response
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.models import REDIRECT_STATI
from requests.structures import CaseInsensitiveDict
from requests.utils import default_headers
from urllib3._collections import HTTPHeaderDict

from .._gate.gate import Stamp, gate, has_passed, keys_to_keep, note_redirect, note_unbound
from .._gate.gateway import Gateway
from .._gate.passage import Passage, are_all_plain_text, belongs_to_open, lower, passage_in
from .._gate.routes import (
    BARE,
    FORWARD_KEY,
    Library,
    Plan,
    Route,
    Router,
    is_identifier,
    may_get_identifiers,
)
from .copying import shallow_copy
from .guarded_headers import GuardedHeaders, Item, guard, replaced_by, with_store
from .mappings import with_stamp

if TYPE_CHECKING:
    # To a type checker the mixin is the adapter that it is always mixed into.
    _Adapter = HTTPAdapter
else:
    _Adapter = object

_REDIRECTS = frozenset(REDIRECT_STATI)
_OPTIONS = ("stream", "timeout", "verify", "cert", "proxies")  # of HTTPAdapter.send, in order
_OF_THE_BODY = ("Content-Encoding", "Content-Length", "Content-Type", "Transfer-Encoding")
_own = default_headers()
_DEFAULTS = {
    # Where User-Agent has been taken out, urllib3 puts its own default in.
    "user-agent": (_own["User-Agent"], None),
    "accept": (_own["Accept"],),
    "accept-encoding": (_own["Accept-Encoding"],),
}
_REQUESTS = Library(_DEFAULTS)
# A compressor holds server-sent events back until its block is full.
_STREAMED = Library(_DEFAULTS, replacements={"Accept-Encoding": "identity"})


class GatewayMixin(_Adapter):
    """What :class:`GatewayAdapter` does, for any other ``HTTPAdapter`` subclass.

    :param gateway: see :class:`GatewayAdapter`.
    :param adapter_kwargs: the keywords of the class that it is mixed into.

    ::

        class CachedAdapter(GatewayMixin, CacheControlAdapter):
            pass

        http.mount("https://", CachedAdapter(gateway, cache=FileCache(".cache")))
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        classes = cls.__mro__
        if BaseAdapter in classes[: classes.index(GatewayMixin)]:
            raise TypeError(
                f"{cls.__name__} would never call GatewayMixin.send: write GatewayMixin before the "
                f"adapter, class {cls.__name__}(GatewayMixin, {cls.__bases__[0].__name__})"
            )

    def __init__(self, gateway: Gateway | None = None, **adapter_kwargs: Any) -> None:
        self.gateway = gateway
        self._router = Router(gateway)
        super().__init__(**adapter_kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # HTTPAdapter's has a fixed list of attributes. Others have none before Python 3.11.
        get_state = getattr(super(), "__getstate__", self.__dict__.copy)
        return {**get_state(), "gateway": self.gateway, "_router": self._router}

    def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
        """Send ``request``, or a stamped copy of it if it is gateway-bound.

        The session is the one that is in scope in the calling thread, now.

        :param arguments: those of ``HTTPAdapter.send``.
        :param options: the same by name, and what else the adapter takes. What is left out is left
            to the adapter.
        """
        if arguments:
            options.update(zip(_OPTIONS, arguments, strict=False))
        pass_on = super().send if self._behind is None else self._send_behind
        response = send(self._router, pass_on, request, options)
        if getattr(response, "connection", self) is not self:
            self._connect(response)
        return response

    send.__signature__ = inspect.signature(HTTPAdapter.send)  # type: ignore[attr-defined]

    def _connect(self, response: Any) -> None:
        """Have authentication handlers send the next request by this adapter."""
        if response.connection is not None:  # that of another adapter further down
            response.connection = self

    #: The adapter behind, whose settings this one shows; ``None`` if this one sends by itself.
    #: ``adapter_for()`` may choose another one for a request.
    _behind: BaseAdapter | None = None

    def _send_behind(self, request: PreparedRequest, **options: Any) -> Response:
        raise NotImplementedError


class GatewayAdapter(GatewayMixin, HTTPAdapter):
    """A transport adapter that puts the session in scope on every gateway-bound request.

    :param gateway: requests to the URLs of this :class:`Gateway` are gateway-bound. Without a
        gateway, only requests that already carry the header ``X-Cagent-Forward`` are.
    :param adapter: another adapter that does the sending: any ``BaseAdapter``, such as one with a
        cache or TLS settings of its own. ``close()`` closes it.
    :param adapter_kwargs: the keywords of requests' ``HTTPAdapter``; not together with ``adapter``.
    :raises TypeError: for an ``adapter`` that is none, or that comes with further keywords.

    All other requests are sent as ``HTTPAdapter`` sends them. The URL, the body and the headers of
    the caller's request stay as they are: ``response.request`` is the stamped copy that was sent. A
    copy of either request, made for a redirect or to send it again, has no identifiers. It gets
    them back when it is sent to the same origin. ::

        http = requests.Session()
        http.mount("https://", GatewayAdapter(gateway))     # or: gateway.mount(http)

        with session_scope("order-4711"):
            http.post(gateway.endpoint("v1/chat/completions"), json=prompt)
    """

    def __init__(
        self,
        gateway: Gateway | None = None,
        *,
        adapter: BaseAdapter | None = None,
        **adapter_kwargs: Any,
    ) -> None:
        if adapter is None:
            super().__init__(gateway, **adapter_kwargs)
            return
        if not isinstance(adapter, BaseAdapter):
            raise TypeError(
                f"adapter must be one of requests' adapters, not {type(adapter).__name__}: write "
                "GatewayAdapter(gateway, adapter=HTTPAdapter())"
            )
        if adapter_kwargs:
            raise TypeError(
                f"{', '.join(adapter_kwargs)} cannot be given together with adapter=: give it to "
                "that adapter"
            )
        # HTTPAdapter.__init__ would make pools that nobody uses. _behind comes last: from then on,
        # attributes that the adapter behind has, too, are set there.
        self.gateway = gateway
        self._router = Router(gateway)
        self._behind = adapter

    def adapter_for(self, request: PreparedRequest) -> Any:
        """Return the adapter behind that sends ``request``."""
        return self._behind

    def _send_behind(self, request: PreparedRequest, **options: Any) -> Response:
        response: Response = self.adapter_for(request).send(request, **options)
        return response

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools anew, of the adapter that sends."""
        if self._behind is None:
            super().init_poolmanager(*arguments, **options)
        else:
            behind: Any = self._behind
            behind.init_poolmanager(*arguments, **options)

    def close(self) -> None:
        """Close the adapter that sends."""
        if self._behind is None:
            super().close()
        else:
            self._behind.close()

    #: names of attributes that were deleted from the adapter behind
    _deleted: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Any:
        # Python calls this for missing attributes. In front of another adapter, max_retries,
        # poolmanager and all other settings are missing here, and read there.
        if self._behind is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._behind, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # What users set on a mounted adapter after it was made is set where it is read.
        if self._is_of_the_other(name):
            setattr(self._behind, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        # mock.patch.object() deletes what it has set, and sets what was there before.
        if self._is_of_the_other(name):
            delattr(self._behind, name)
            self._deleted |= {name}
        else:
            super().__delattr__(name)

    def _is_of_the_other(self, name: str) -> bool:
        """Return whether an attribute is that of the adapter behind."""
        is_own = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)
        return (
            self._behind is not None
            and not is_own
            and (name in self._deleted or hasattr(self._behind, name))
        )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() if self._behind is None else self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("_behind") is None:
            super().__setstate__(state)
        else:
            self.__dict__.update(state)


class _Judged(threading.local):
    """What this thread is sending, and the patch of requests has found to be nobody's."""

    def __init__(self) -> None:
        #: (headers, router, URL) of each request. The headers themselves could hold the other two,
        #: but code below may store or send those, pickled.
        self.requests: list[tuple[Any, Router, str]] = []


_judged = _Judged()


def judged_with(headers: Any) -> list[tuple[Router, str]]:
    """Return (router, URL) of the requests with these headers that are judged and being sent."""
    return [(router, url) for sent, router, url in _judged.requests if sent is headers]


def send(
    router: Router,
    pass_on: Callable[..., Response],
    request: PreparedRequest,
    options: dict[str, Any],
    *,
    by_instrument: bool = False,
) -> Response:
    """Send ``request``, or a stamped copy of it if it is gateway-bound.

    :param pass_on: the ``send`` of an adapter.
    :param options: what it gets besides the request: by name, as not every adapter takes these by
        position.
    :param by_instrument: whether this is not for an adapter of ours, but for the patch of requests.
    """
    stream = options.get("stream", False)
    outgoing, guarded, passage = _through_gate(router, request, stream, by_instrument)
    if by_instrument and passage is None:
        pass_on = functools.partial(_pass_on_judged, pass_on, router)
    if guarded is None:
        response = pass_on(outgoing, **options)
    else:
        try:
            response = _send_guarded(pass_on, request, outgoing, guarded, passage, options)
        finally:
            _replace_restored(request, guarded)
    if getattr(response, "status_code", None) in _REDIRECTS:
        if guarded is not None and passage is not None:
            _note_redirect(guarded, response)
        if not by_instrument and not _is_within_origin(request, response):
            _guard_nested(router, request)
    return response


def _send_guarded(
    pass_on: Callable[..., Response],
    request: PreparedRequest,
    outgoing: PreparedRequest,
    guarded: GuardedHeaders,
    passage: Passage | None,
    options: dict[str, Any],
) -> Response:
    """Send what :func:`_through_gate` has returned, and guard the headers of what comes back."""
    try:
        response = pass_on(outgoing, **options)
    except RequestException as error:
        # A subclass may have an __init__() of its own.
        _guard_replaced(getattr(error, "request", None), outgoing, guarded)
        raise
    finally:
        if passage is not None:
            passage.is_open = False  # from now on, copies of the headers leave identifiers behind
        if outgoing.body is not request.body and _is_one_shot(request):
            _keep_body(request, outgoing)
        # An adapter further down has put other headers there, or we have put plain ones.
        if outgoing.headers is not guarded:
            _guard_replaced(outgoing, None, guarded)
    copied: Any = getattr(response, "request", None)
    if copied is not outgoing:
        _guard_replaced(copied, outgoing, guarded)
        below = getattr(copied, "headers", None)
        if passage is None and isinstance(below, GuardedHeaders):
            # A gate further down has stamped it. The next request is a copy of either.
            guarded.session_keys = below.session_keys = guarded.session_keys | below.session_keys
    return response


def _is_one_shot(request: PreparedRequest) -> bool:
    """Return whether the body of ``request`` is used up by reading it: a generator or a file."""
    return request.headers is not None and not isinstance(request.body, str | bytes | None)


def _keep_body(request: PreparedRequest, outgoing: PreparedRequest) -> None:
    """Let ``request`` have the body that an adapter further down has put in place of its own.

    The next hop is sent with it, or the next attempt.
    """
    request.body = outgoing.body
    request._body_position = None  # there is nothing to rewind
    for name in _OF_THE_BODY:
        request.headers.pop(name, None)
        if name in outgoing.headers:
            request.headers[name] = outgoing.headers[name]


def _through_gate(
    router: Router, request: PreparedRequest, stream: bool, by_instrument: bool
) -> tuple[PreparedRequest, GuardedHeaders | None, Passage | None]:
    """Return the request to send, guarded headers, and the passage.

    - ``request, None, None``: send the request itself. It is not gateway-bound, or a gate above has
      stamped it.
    - ``copy, guarded, passage``: send the stamped copy, which has the guarded headers.
    - ``copy, guarded, None``: send the copy, which has plain headers. The request is not
      gateway-bound now, but carries identifiers, so the copy has to be guarded after sending.
    """
    url = request.url or ""
    # A request that was prepared by hand may have None.
    headers: Any = {} if request.headers is None else request.headers
    before: GuardedHeaders | None = None  # the request's headers, if they were guarded before
    if isinstance(headers, GuardedHeaders):
        if has_passed(headers.passage, request.method, url, router):
            if headers.is_nested:
                request = shallow_copy(request)
                request.headers = headers.nested(False)
            return request, None, None
        before = headers.restored_for(request)
        if not headers.is_in_flight:  # else code below another gate has made this request
            request.headers = before
        headers = before
    elif not are_all_plain_text(_items_of(headers)):
        earlier = passage_in(_items_of(headers))
        if earlier is not None and earlier.is_open:
            if has_passed(earlier, request.method, url, router):
                return request, None, None
            request = _less_stamp_of_another(router, request, earlier)
            headers = request.headers
    route = BARE
    if router.hosts:
        route = router.route(url)
    elif before is not None:
        # This gate has no gateways of its own: the copy goes where the request was stamped for.
        route, router = before.route_of_copy(request), before.router
    table = _table_of(headers)
    if route is BARE and not _carries_forward(headers, table):
        note_unbound(url)
        return (request, None, None) if before is None else _unbound(request, before)
    if (
        before is not None
        and FORWARD_KEY not in route.gateway_headers
        and not _carries_forward(headers, table)
        and not before.are_callers_own(request)
    ):
        headers = before.without_forward()
        table = _table_of(headers)
    plan, table, by_name = _read(headers, table, route, _STREAMED if stream else _REQUESTS)
    passage = Passage(request.method, route.with_query(url), router)
    stamp = gate(url, plan, by_name, passage)
    if stamp is None:
        return (request, None, None) if before is None else _unbound(request, before)
    session_keys = (
        route.session_keys if before is None else before.session_keys | route.session_keys
    )
    # The caller may have set identifiers.
    if plan.callers_identifiers or (before is not None and not plan.keys.isdisjoint(session_keys)):
        _guard_callers_headers(request, before, session_keys, by_instrument)
    outgoing = shallow_copy(request)
    outgoing.url = passage.url
    outgoing.headers = guarded = _stamped(headers, table, stamp, session_keys, passage)
    guarded.route, guarded.router = route, router
    return outgoing, guarded, passage


def _less_stamp_of_another(
    router: Router, request: PreparedRequest, earlier: Passage
) -> PreparedRequest:
    """Return a copy of ``request``, to which an adapter has copied a stamp, without that stamp.

    :param earlier: the passage of the stamped request.
    """
    url = request.url or ""
    is_home = may_get_identifiers(str(earlier.url), url)
    session_keys = router.session_keys | earlier.route.session_keys
    staying = keys_to_keep(earlier, url, router)
    kept: list[Item] = []
    back: list[Item] = []
    for item in _items_of(request.headers):
        if belongs_to_open(*item) and lower(item[0]) not in staying:
            back += replaced_by(item)
        elif is_home or not is_identifier(lower(item[0]), session_keys):
            kept.append(item)
    names = {lower(name) for name, _ in kept}
    kept += [item for item in back if lower(item[0]) not in names]
    kinds: Any = (CaseInsensitiveDict, HTTPHeaderDict)
    kind: Any = next((each for each in kinds if isinstance(request.headers, each)), dict)
    copied = shallow_copy(request)
    copied.headers = kind(kept)
    return copied


def _replace_restored(request: PreparedRequest, guarded: GuardedHeaders) -> None:
    """Replace headers of a sent ``request`` that is a copy and got its identifiers back for that.

    Not before it is sent: another thread may be sending it, too.

    :param guarded: the headers that were sent.
    """
    headers: Any = request.headers
    if not isinstance(headers, GuardedHeaders) or headers.left is not None:
        return
    if headers.are_callers_own(request) or headers.is_in_flight:
        return
    # An authentication handler sends a copy, and makes it the next response.request, which has to
    # show what was sent. The copy for a redirect leaves the identifiers behind again: an adapter
    # around this one may read its headers, to send them elsewhere.
    is_for_redirect = headers.url != request.url
    request.headers = guarded.guarded_copy() if is_for_redirect else guarded


class JudgedMethod(str):
    """The method of a request of which the patch of requests has found that it is nobody's.

    Where urllib3 tries once more, it passes on the same method, but a copy of the headers.

    :param judged: from :func:`judged_with`.
    """

    judged: tuple[tuple[Router, str], ...]

    def __new__(cls, method: str, judged: Iterable[tuple[Router, str]]) -> JudgedMethod:
        made = super().__new__(cls, method)
        made.judged = tuple(judged)
        return made

    def __reduce__(self) -> Any:
        return str, (str.__str__(self),)


def _pass_on_judged(
    pass_on: Callable[..., Response], router: Router, request: PreparedRequest, **options: Any
) -> Response:
    """Send a request that is not gateway-bound, and let the patch of urllib3 know that.

    urllib3 gets the URL without user info, and would take some for a gateway's.
    """
    this_one = (request.headers, router, request.url or "")
    _judged.requests.append(this_one)
    try:
        return pass_on(request, **options)
    finally:
        # remove() would compare headers.
        _judged.requests[:] = [each for each in _judged.requests if each is not this_one]


def _unbound(
    request: PreparedRequest, before: GuardedHeaders
) -> tuple[PreparedRequest, GuardedHeaders | None, None]:
    """Return what :func:`_through_gate` returns for a request that is not gateway-bound.

    :param before: its headers, which are guarded.
    """
    if before.left is not None:  # they have left the identifiers behind
        if request.headers is not before:
            request = shallow_copy(request)
            request.headers = before
        return request, None, None
    # urllib3 copies the headers to send them. Copies of guarded ones would lack identifiers that
    # the caller has set for this request, or may send to this origin.
    outgoing = shallow_copy(request)
    callers_own = before.are_callers_own(request)
    outgoing.headers = before.plain() if callers_own else before.without_forward()
    return outgoing, before, None


_FORWARD_IN_BYTES = FORWARD_KEY.encode()


def _carries_forward(headers: Any, table: dict[Any, Item] | None) -> bool:
    """Return whether headers, of which this is the table, may have an ``X-Cagent-Forward``."""
    # The plain code, below, goes through all headers. The table of requests' own class saves that;
    # a name in bytes is in there as bytes.
    if table is not None:
        return FORWARD_KEY in table or _FORWARD_IN_BYTES in table
    return any(lower(name) == FORWARD_KEY for name in headers)


def _table_of(headers: Any) -> dict[Any, Item] | None:
    """Return requests' own table of headers. The ``_store`` of another class may differ."""
    return getattr(headers, "_store", None) if isinstance(headers, CaseInsensitiveDict) else None


def _items_of(headers: Any) -> Iterable[Item]:
    # The plain code would be headers.items(), which is slow in requests' own class.
    is_usual = type(headers) is CaseInsensitiveDict
    return dict.values(headers._store) if is_usual else headers.items()


def _read(
    headers: Any, table: dict[Any, Item] | None, route: Route, library: Library
) -> tuple[Plan, dict[str, Item] | None, Mapping[str, Any]]:
    """Return the plan for a request, the table of its headers, and headers for the gate.

    There is no table if the headers are of another class, or if a name is in bytes.

    :param table: see :func:`_table_of`.
    """
    # The plain code would be the last three lines. Through the table, it is not necessary to go
    # through all headers in Python, which would be half of what the gate costs.
    if table is not None:
        # dict.keys(): the table is an OrderedDict, whose own keys() is slow.
        plan = route.plan(library, tuple(dict.keys(table)))
        if plan.is_simple:
            return plan, table, table
    items = list(headers.items())
    plan = route.plan(library, tuple([name for name, _ in items]))
    return plan, None, plan.find(items)


def _stamped(
    headers: Any,
    table: dict[str, Item] | None,
    stamp: Stamp,
    session_keys: frozenset[str],
    passage: Passage,
) -> GuardedHeaders:
    """Return a guarded copy of ``headers`` with the stamp.

    :param table: requests' own table of the headers, see :func:`_read`.
    """
    stamped, removed = stamp
    if table is None:
        plain = headers.plain() if isinstance(headers, GuardedHeaders) else headers
        made: Any = with_stamp(plain, stamped, removed)
        if isinstance(headers, CaseInsensitiveDict):
            made = CaseInsensitiveDict(made)
        return guard(made, passage.url, session_keys, passage)
    # The plain code would be table | stamped. For an OrderedDict that takes half as long again.
    store = dict(dict.items(table))
    for key in removed:
        del store[key]
    store.update(stamped)
    return with_store(store, passage.url, session_keys, passage)


def _guard_callers_headers(
    request: PreparedRequest,
    before: GuardedHeaders | None,
    session_keys: frozenset[str],
    by_instrument: bool,
) -> None:
    """Let copies of the caller's request leave behind the identifiers that the caller set.

    Another thread may be reading its headers, so they are replaced and not changed.
    """
    if before is not None and before.left is None and not before.are_callers_own(request):
        return  # they are another request's; _replace_restored() replaces them
    headers: Any = request.headers
    url = request.url or ""
    if type(headers) is CaseInsensitiveDict:
        guarded = with_store(headers._store, url, session_keys, None)
    else:
        guarded = guard(headers, url, session_keys)
    guarded.request, guarded.by_instrument = weakref.ref(request), by_instrument
    if before is not None and before.are_callers_own(request):
        guarded.by_instrument &= before.by_instrument  # an adapter of ours may have been first
    request.headers = guarded


def _guard_replaced(request: Any, sent: PreparedRequest | None, guarded: GuardedHeaders) -> None:
    """Guard the headers of a request from further down, unless they are guarded.

    :param request: of a response or an error; a test double can have anything there.
    :param sent: the request that we have guarded already, to be left alone; ``None`` to guard any.
    :param guarded: the headers that say where the identifiers may be sent.
    """
    if request is sent or not issubclass(type(request), PreparedRequest):
        return
    headers: Any = request.headers
    if isinstance(headers, GuardedHeaders) and headers.left is None:
        return
    if isinstance(headers, Mapping):
        request.headers = guard(headers, guarded.url, guarded.session_keys)
        request.headers.route, request.headers.router = guarded.route, guarded.router


def _guard_nested(router: Router, request: PreparedRequest) -> None:
    """Guard the headers of ``request`` that have a stamp from further up.

    Code below a gate may have made the request of one that is being sent, and have sent it by a
    ``requests.Session``, which makes the next hop from a copy.
    """
    headers: Any = request.headers or {}
    if isinstance(headers, GuardedHeaders):
        if headers.is_in_flight:
            request.headers = headers.nested(True)
    elif not are_all_plain_text(_items_of(headers)):
        earlier = passage_in(_items_of(headers))
        if earlier is not None and earlier.is_open:
            names = router.session_keys | earlier.route.session_keys
            kept = _less_stamp_of_another(router, request, earlier).headers
            request.headers = guard(kept, request.url or "", names)


def _is_within_origin(request: PreparedRequest, response: Response) -> bool:
    """Return whether ``response`` redirects ``request`` to its own origin."""
    url, location = request.url or "", response.headers.get("location")
    try:
        return may_get_identifiers(url, urljoin(url, location))
    except (TypeError, ValueError):  # a test double can have anything there
        return False


def _note_redirect(sent: GuardedHeaders, response: Response) -> None:
    location = response.headers.get("location")
    if isinstance(location, str):
        choosing = sent.route.choosing_keys
        in_session = any(lower(name) in choosing for name, value in sent.items() if value)
        note_redirect(sent.router, sent.route, sent.url, location, in_session)
