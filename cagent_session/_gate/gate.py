"""The gate: decide which requests are gateway-bound, and which headers those get.

A transport reads a request's URL and headers, calls :func:`gate`, and sends a copy of the request
with the headers that :func:`gate` returns. Nothing here knows an HTTP library.
"""

from __future__ import annotations

import logging
from typing import Any, TypeAlias
from urllib.parse import urljoin

from .._session.scopes import Lineage, current_lineage
from . import urls
from .passage import Passage, Stamped, StampedBytes, attach
from .routes import BARE, Headers, Kit, Library, Route, Router

#: (the headers to set, the lower-case names of headers to remove). Remove first, then set: a name
#: can be in both.
Stamp: TypeAlias = "tuple[Headers, list[Any]]"

_log = logging.getLogger("cagent_session")
_DEBUG = logging.DEBUG
_MISSING = (None,)  # stands for a header that is not there: its last item, the value, is None

_IN_A_SESSION = (
    "inside session_scope(...) or a function decorated with session_from(...), and from a thread "
    "or a pool with bind_session(...)"
)


class SessionRequired(RuntimeError):
    """A request to a gateway with ``require_session=True`` was about to be sent outside a session.

    Nothing has been sent. Send the request inside ``session_scope(...)`` or a function decorated
    with ``session_from(...)``, and from a thread or a pool with ``bind_session(...)``.
    """

    __module__ = "cagent_session"  # tracebacks then show the name that users import


def is_bound(forward: str | bytes | None, route: Route) -> bool:
    """Return whether a request is gateway-bound.

    It is if it carries a non-empty ``X-Cagent-Forward``, or if a gateway owns its URL and the
    caller has not opted out with an empty one.

    :param forward: the request's ``X-Cagent-Forward``.
    """
    return route is not BARE if forward is None else bool(forward)


def gate(
    url: Any, route: Route, headers: Headers, library: Library, passage: Passage | None
) -> Stamp | None:
    """Decide whether a request is gateway-bound, and which headers it then gets.

    :param url: the request's; read with ``str()`` when it is logged.
    :param route: to the gateway that owns ``url``, or ``BARE``.
    :param headers: the request's by lower-case name; may be limited to ``route.names``.
    :param library: the HTTP library whose request it is.
    :param passage: of the request. A value that the gate sets holds it, so that a transport further
        down finds it in the headers. ``None`` only if nothing will be sent, or if the request
        cannot be gateway-bound.
    :returns: ``None`` for a request that is not gateway-bound, and must be sent unchanged.
    :raises SessionRequired: if there is no session, and the gateway requires one.
    """
    forward = headers.get(library.forward, _MISSING)[-1]
    if not is_bound(forward, route):
        if _log.isEnabledFor(_DEBUG):
            why = "no gateway owns it" if forward is None else "its X-Cagent-Forward is empty"
            _log.debug("not gateway-bound, as %s: %s", why, urls.redacted(str(url)))
        return None
    kit = route.kit(library)
    stamped = _gateway_headers(kit, headers, library)
    removed: list[Any] = []
    lineage = current_lineage()
    if lineage.session is not None:
        _add_session(stamped, removed, kit, headers, lineage, passage)
    else:
        attach(passage, stamped)  # inside a session, the values of its headers hold the passage
        # The caller may have set the session's headers, without a scope.
        if not any(headers.get(name, _MISSING)[-1] for name in kit.session_names):
            _outside_every_session(url, route, lineage)
    if _log.isEnabledFor(_DEBUG):
        why = "it has X-Cagent-Forward" if route is BARE else f"{urls.redacted(route.url)} owns it"
        where = "no session" if lineage.session is None else f"session {lineage.session}"
        _log.debug("gateway-bound, as %s, in %s: %s", why, where, urls.redacted(str(url)))
    return stamped, removed


def _gateway_headers(kit: Kit, headers: Headers, library: Library) -> Headers:
    """Return the gateway headers for a request, less those that its caller has set."""
    stamped = kit.gateway_headers.copy()
    # dict.keys(): the headers of requests are an OrderedDict, whose own keys() is slow.
    if stamped and not stamped.keys().isdisjoint(dict.keys(headers)):
        for key in stamped.keys() & headers.keys():
            del stamped[key]
    if _is_signed(headers, library):
        # The signature may cover the library's default headers, and the absence of one.
        for key in library.default_names:
            stamped.pop(key, None)
        return stamped
    # Above, a default of the library's counted as set by the caller. Ours replaces it.
    for key, defaults, header in kit.stand_ins:
        if headers.get(key, _MISSING)[-1] in defaults:
            stamped[key] = header
    return stamped


def _is_signed(headers: Headers, library: Library) -> bool:
    """Return whether a request carries a signature of its headers: SigV4, or RFC 9421."""
    if library.signature_input in headers:
        return True
    value = headers.get(library.authorization, _MISSING)[-1]
    if isinstance(value, str):
        return "SignedHeaders=" in value
    return isinstance(value, bytes) and b"SignedHeaders=" in value


def _add_session(
    stamped: Headers,
    removed: list[Any],
    kit: Kit,
    headers: Headers,
    lineage: Lineage,
    passage: Passage | None,
) -> None:
    """Add the session headers to ``stamped``, and to ``removed`` what has to come off before."""
    for key, name, make in kit.session_headers:
        value = make(lineage)
        # The caller's header comes off even if this session has no value for it: it may name
        # another session. If there is a value, setting it alone would keep the place of the
        # caller's. Session headers are sent in the order in which the gateway names them.
        if value is None or key in headers:
            removed.append(key)
        if value is not None:
            if kit.in_bytes:
                encoded = StampedBytes(value.encode())
                encoded.passage = passage
                stamped[key] = name, key, encoded
            else:
                value = Stamped(value)
                value.passage = passage
                stamped[key] = name, value


def _outside_every_session(url: Any, route: Route, lineage: Lineage) -> None:
    """Refuse a gateway-bound request without a session, or warn of it, as the gateway wants."""
    if route.require_session:
        raise SessionRequired(
            f"no session is in scope for a request to {urls.redacted(str(url))}, and its gateway "
            f"requires one: send it {_IN_A_SESSION}"
        )
    if not lineage.is_deliberate:
        _warn_once(
            route,
            "outside",
            f"a request to {urls.redacted(str(url))} leaves outside every session: send it "
            f"{_IN_A_SESSION}. Gateway(require_session=True) refuses such requests; if this one is "
            "meant, send it inside no_session(). Further ones are not reported",
        )


def note_redirect(router: Router, route: Route, url: str, location: str, in_session: bool) -> None:
    """Log a redirect that takes a gateway-bound request to another origin; ignore all others.

    This is a warning where the target looks like a second address of the same gateway.

    :param route: of the request that was answered.
    :param url: of that request.
    :param location: the redirect's target, which may be relative to ``url``.
    :param in_session: whether the request carried a session, which the next hop will not.
    """
    try:
        target = urljoin(url, location)
    except ValueError:
        target = ""
    here, there = urls.origin_of(url), urls.origin_of(target)
    if here is not None and here == there:
        return
    is_same_host = here is not None and there is not None and here.host == there.host
    if is_same_host and in_session and router.route(target) is BARE:
        _warn_once(
            route,
            "redirect",
            f"{here} redirects a gateway-bound request to {there}, another origin, which gets no "
            "session: if the gateway listens there, write that URL in Gateway(...). Further "
            "redirects are not reported",
        )
    elif _log.isEnabledFor(_DEBUG):
        _log.debug(
            "redirected off the gateway's origin: from %s to %s",
            urls.redacted(url),
            urls.redacted(target),
        )


def _warn_once(route: Route, what: str, message: str) -> None:
    """Warn once for each gateway, and once in this process for all URLs that no gateway owns."""
    this_call = object()
    # setdefault() is atomic, so of several threads only one finds its own object.
    if route.warned.setdefault(what, this_call) is this_call:
        _log.warning("%s", message)
