"""requests: put the gate in front of the adapters that a ``requests.Session`` has."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterable
from typing import Any

from requests import PreparedRequest, Request, Response, Session
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.sessions import SessionRedirectMixin

from .._gate import urls
from .._gate.gateway import Gateway
from .._gate.routes import BARE, Place, Router
from .requests import GatewayAdapter, GatewayMixin

_log = logging.getLogger("cagent_session")
_warn_once = functools.cache(_log.warning)  # for each message and its arguments


class _Mounts(Router):
    """The gateways of one origin that are mounted on one ``requests.Session``.

    All adapters of ours that are mounted there share this router. requests picks an adapter by the
    text of the URL, so one spelling of a gateway's URL may reach the adapter of another gateway.
    """

    def __init__(self, *gateways: Gateway) -> None:
        super().__init__(*gateways)
        #: the adapters with settings of their own, by the place of their gateway
        self.adapters: dict[Place, HTTPAdapter] = {}
        #: a gateway for each place at which there ever was one on this requests.Session, whatever
        #: its origin
        self.everywhere = Router()

    #: whose adapters these are; ``None`` in a copy
    session: weakref.ref[Session] | None = None

    def are_of(self, session: Session) -> bool:
        """Return whether these are mounted on ``session``, not on one that it has adapters from."""
        return self.session is not None and self.session() is session

    def copy_for(self, session: Session) -> _Mounts:
        """Return the same for ``session``, which has adapters of another one."""
        made = _Mounts(*self.gateways.values())
        made.session = weakref.ref(session)
        made.adapters = self.adapters.copy()
        made.everywhere = _everywhere_on(session) or Router(*self.everywhere.gateways.values())
        return made

    def knows(self, url: str) -> bool:
        return self.everywhere.knows(url)

    def __reduce__(self) -> Any:
        state = {"adapters": self.adapters, "everywhere": self.everywhere}
        return _Mounts, tuple(self.gateways.values()), state


class _MountedAdapter(GatewayAdapter):
    """An adapter that ``Gateway.mount`` has put in front of another one.

    Which adapter sends depends on the request: the one that was made for its gateway by ``mount``
    with settings, or ``otherwise``.

    :param behind: the adapter whose settings this one shows, such as ``max_retries``.
    :param otherwise: the adapter that was mounted before. It sends requests to gateways without
        settings of their own, and to the rest of the origin.
    """

    def __init__(
        self, mounts: _Mounts, gateway: Gateway, behind: BaseAdapter, otherwise: BaseAdapter
    ) -> None:
        super().__init__(gateway, adapter=behind)
        self._router = self._mounts = mounts
        self._otherwise = otherwise
        #: the place of the gateway that ``behind`` was made for, if it was
        self._place = None if behind is otherwise else gateway._route.place
        #: an adapter with settings that ``otherwise`` has taken the place of
        self._instead_of: HTTPAdapter | None = None
        #: Adapters of this class further down. A user has replaced the adapter at the origin: their
        #: gateways are mounted here alone. Of all of them, the longest path is still to win.
        self._inner: tuple[_MountedAdapter, ...] = ()
        if isinstance(otherwise, _MountedAdapter):
            self._inner = (otherwise, *otherwise._inner)

    def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
        if not self._inner:
            return super().send(request, *arguments, **options)
        url = request.url or ""
        sender = max(self, *self._inner, key=lambda each: each._length_of_path(url))
        send: Any = super().send if sender is self else sender.send
        response: Response = send(request, *arguments, **options)
        if getattr(response, "connection", self) is not self:
            self._connect(response)
        return response

    def _length_of_path(self, url: str) -> int:
        """Return the length of the path of the gateway here that owns ``url``, or -1."""
        route = self._mounts.route(url)
        return -1 if route is BARE else len(route.path)

    def close(self) -> None:
        super().close()
        if self._otherwise is not self._behind:
            self._otherwise.close()

    def adapter_for(self, request: PreparedRequest) -> BaseAdapter:
        if not self._mounts.adapters and self._place is None:
            return self._otherwise
        place = self._mounts.route(request.url or "").place
        own: BaseAdapter | None = self._mounts.adapters.get(place)
        if own is None and place == self._place:  # it was mounted before the one at the origin
            own = self._behind
        return self._otherwise if own is None or own is self._instead_of else own


def mount(session: Session, gateway: Gateway, settings: dict[str, Any]) -> GatewayAdapter:
    """Put the gate for ``gateway`` in front of the adapters that ``session`` has for its origin.

    :param settings: the keywords of a new ``HTTPAdapter`` that sends the gateway's requests; with
        none, the adapters that are there send them.
    """
    # The plain code would ask for a requests.Session. Other libraries put a subclass in its place
    # for a time, as requests_cache.install_cache() does. Nobody replaces its base class.
    if not isinstance(session, SessionRedirectMixin):
        raise TypeError(
            f"mount takes a requests.Session, not {type(session).__name__}: for httpx there is "
            "GatewayTransport, for urllib3 GatewayPoolManager, for aiohttp GatewayMiddleware"
        )
    if not issubclass(type(session), SessionRedirectMixin):
        # A proxy, as Flask programs have for a requests.Session of each request: its mount() is of
        # the one that it stands for.
        session = getattr(session.mount, "__self__", session)
    route = gateway._route
    origins = _prefixes(route.origin)
    mounts = _mounts_at(session, origins)
    # The target of a redirect may have no path: requests gives one to prepared URLs alone. (The
    # origin and nothing else cannot be a prefix, as the names of other hosts begin with it, too.)
    without_path = [origin.rstrip("/") + mark for origin in origins for mark in "?#"]
    prefixes = origins if route.path else [*origins, *without_path]
    # requests ignores the case of prefixes, and of two equal ones the first counts. So ours replace
    # all adapters at or below the origin, under the very prefixes that these have.
    below, above = _below_and_above(session, prefixes)
    known = _made_by_hand([*below.values(), *above.values()], route.origin)
    # Check all before changing anything: an error leaves the requests.Session as it was. Router()
    # compares these gateways with each other, and check() with those that are mounted.
    coming = Router(*known, gateway).gateways
    for each in coming.values():
        mounts.check(each)

    def is_left_over(prefix: str) -> bool:
        # A user has replaced the adapter at the origin itself. Ours beside it would come back.
        adapter = below[prefix]
        if prefix not in without_path or not isinstance(adapter, _MountedAdapter):
            return False
        return adapter._mounts is not mounts and adapter._mounts.are_of(session)

    kept = [prefix for prefix in below if not is_left_over(prefix)]
    replaced = _replaced_by(mounts, coming, [below[prefix] for prefix in kept])
    # By the id() of what is behind: an adapter that has several prefixes gets one of ours.
    gates: dict[tuple[int, int], _MountedAdapter] = {}

    def gate_before(adapter: Any, prefix: str | None = None) -> _MountedAdapter:
        old = _outermost(adapter, [mounts, *replaced])
        if len(old) == 1 and adapter._mounts is mounts:
            return old[0]
        # The new one takes the place of the old ones, and shows what the outermost has shown.
        otherwise = old[-1]._otherwise if old else adapter
        shown: Any = next((each for each in old if each._behind is not each._otherwise), None)
        if shown is None:
            made = _MountedAdapter(mounts, gateway, otherwise, otherwise)
        else:
            of_shown = coming.get(shown.gateway._route.place, shown.gateway)
            made = _MountedAdapter(mounts, of_shown, shown._behind, otherwise)
        taken = [each._instead_of for each in old if each._instead_of is not None]
        if taken:
            made._instead_of = taken[0]
        elif prefix is not None and not isinstance(adapter, _MountedAdapter):
            made._instead_of = mounts.adapters.get(_place_at(route.origin, prefix))
        return gates.setdefault((id(adapter), id(made._instead_of)), made)

    missing = [prefix for prefix in prefixes if prefix not in kept]
    made = {prefix: gate_before(below[prefix], prefix) for prefix in kept}
    made |= {prefix: gate_before(_found(above, prefix)) for prefix in missing}
    for each in coming.values():
        mounts.add(each)
        if each._route.place not in mounts.everywhere.gateways:
            mounts.everywhere.add(each)
    _mount_all(session, made)
    if settings:
        _mount_own(session, mounts, gateway, HTTPAdapter(**settings), origins)
    # Preparing the URL spells it as requests will: "https://gateway.example" gets a slash.
    adapter: Any = session.get_adapter(Request("GET", gateway.url).prepare().url or "")
    if not isinstance(adapter, GatewayMixin):
        _warn_once(
            "%s.get_adapter() does not return the adapter that mount() put there, so requests to "
            "the gateway may lack the session: return GatewayAdapter(gateway, adapter=...) there, "
            "or call instrument(gateway)",
            type(session).__qualname__,
        )
    return adapter  # type: ignore[no-any-return]


def _mount_own(
    session: Session, mounts: _Mounts, gateway: Gateway, own: HTTPAdapter, origins: list[str]
) -> None:
    """Have ``own`` send the requests to ``gateway``, and no others.

    An adapter at the gateway's path shows the settings of ``own``. Where a URL is spelt such that
    requests picks another adapter of ours, that one finds ``own`` in ``mounts``.
    """
    _, path, _, _ = urls.check("gateway URL", gateway.url)
    path = urls.canonical(path.strip("/"))  # as requests spells it
    made: _MountedAdapter | None = None
    for origin in origins:
        before = session.get_adapter(origin + path)
        otherwise = before._otherwise if isinstance(before, _MountedAdapter) else before
        if made is None or made._otherwise is not otherwise:
            made = _MountedAdapter(mounts, gateway, own, otherwise)
        session.mount(origin + path, made)
    mounts.adapters[gateway._route.place] = own


def _place_at(origin: urls.Origin, prefix: str) -> Place:
    """Return the place of a gateway whose URL is ``prefix``, with a slash at its end or without."""
    path = "/" + prefix.split("/", 3)[-1]
    return origin, urls.comparable(path.rstrip("/"))


def _prefixes(origin: urls.Origin) -> list[str]:
    """Return the prefixes of all URLs of an origin: with its port, and without a default one."""
    prefixes = [f"{origin.scheme}://{origin.host}:{origin.port}/"]
    if origin.port == urls.DEFAULT_PORTS[origin.scheme]:
        prefixes.append(f"{origin.scheme}://{origin.host}/")
    return prefixes


def _mounts_at(session: Session, origins: list[str]) -> _Mounts:
    """Return the gateways that are mounted on ``session`` at an origin, or a new, empty object."""
    for origin in origins:
        adapter = session.adapters.get(origin)
        if isinstance(adapter, _MountedAdapter):
            known = adapter._mounts
            return known if known.are_of(session) else known.copy_for(session)
    made = _Mounts()
    made.session = weakref.ref(session)
    made.everywhere = _everywhere_on(session) or made.everywhere
    return made


def _outermost(adapter: Any, all_mounts: list[_Mounts]) -> list[_MountedAdapter]:
    """Return the adapters of ours, one behind the other, that belong to one of ``all_mounts``."""
    found = []
    while isinstance(adapter, _MountedAdapter) and adapter._mounts in all_mounts:
        found.append(adapter)
        adapter = adapter._otherwise
    return found


def _replaced_by(
    mounts: _Mounts, coming: dict[Place, Gateway], adapters: list[BaseAdapter]
) -> list[_Mounts]:
    """Return what ``adapters`` of ours belong to, if ``mounts`` will have all its gateways.

    They are of the ``requests.Session`` from which this one has its adapters, or they are left
    over: a user has replaced the adapter at the origin, but not those at longer prefixes.

    :param coming: the gateways that are to be added to ``mounts``.
    """
    ours = [each for each in adapters if isinstance(each, _MountedAdapter)]
    theirs = dict.fromkeys(each._mounts for outer in ours for each in (outer, *outer._inner))
    return [
        each
        for each in theirs
        if each is not mounts
        and all(place in mounts.gateways or place in coming for place in each.gateways)
    ]


def _everywhere_on(session: Session) -> Router | None:
    """Return the gateways of all origins that are mounted on ``session``, if there are any."""
    of_copies: Router | None = None
    for adapter in session.adapters.values():
        if isinstance(adapter, _MountedAdapter):
            known = adapter._mounts
            if known.are_of(session):
                return known.everywhere
            if known.session is None:  # these, too, are to know what is mounted from now on
                of_copies = known.everywhere
    return of_copies


def _made_by_hand(adapters: Iterable[Any], origin: urls.Origin) -> list[Gateway]:
    """Return the gateways of all ``GatewayAdapter`` that a user mounted with ``Session.mount``.

    :param adapters: that get requests to ``origin``.
    """
    found = []
    for adapter in adapters:
        each = adapter
        while isinstance(each, GatewayMixin):
            if isinstance(each, _MountedAdapter):
                each = each._otherwise
                continue
            if each.gateway is not None and each.gateway._route.origin == origin:
                found.append(each.gateway)
            each = getattr(each, "_behind", None)
    return found


def _below_and_above(
    session: Session, prefixes: list[str]
) -> tuple[dict[str, BaseAdapter], dict[str, BaseAdapter]]:
    """Return the adapters in ``session`` at prefixes below one of ``prefixes``, and above."""
    ours = tuple(prefixes)
    below: dict[str, BaseAdapter] = {}
    above: dict[str, BaseAdapter] = {}
    for prefix, adapter in session.adapters.items():
        key = prefix.lower()  # requests ignores the case of prefixes
        if key.startswith(ours):
            below[prefix] = adapter
        elif any(each.startswith(key) for each in ours):
            above.setdefault(key, adapter)  # of two spellings, requests finds the first
    return below, above


def _found(above: dict[str, BaseAdapter], prefix: str) -> BaseAdapter:
    """Return the adapter that sends requests to ``prefix``, or a new one if there is none."""
    for key, adapter in above.items():
        if prefix.startswith(key):
            return adapter
    return HTTPAdapter()  # a user has taken off the adapter for https:// or http://


def _mount_all(session: Session, made: dict[str, _MountedAdapter]) -> None:
    """Do what ``Session.mount`` does for each, in one look through the adapters."""
    adapters = session.adapters
    adapters.update(made)
    longest = max(map(len, made))
    # sorted() keeps the order of prefixes of one length.
    for prefix in sorted([each for each in adapters if len(each) < longest], key=len, reverse=True):
        adapters[prefix] = adapters.pop(prefix)
