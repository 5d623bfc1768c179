"""The gate: decide which requests are gateway-bound, and which headers those get.

A transport reads a request's URL and the names of its headers, calls :func:`gate`, and sends a copy
of the request with the headers that :func:`gate` returns. Nothing here knows an HTTP library.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias
from urllib.parse import urljoin

from .._session.scopes import OUTSIDE, Lineage, current_lineage
from . import urls
from .passage import Passage, Stamped, StampedBytes, attach
from .routes import (
    BARE,
    DEFAULT_KEYS,
    FORWARD_KEY,
    Header,
    Headers,
    Plan,
    Route,
    Router,
    may_get_identifiers,
)

#: (the headers to set, the lower-case names of headers to remove). Remove first, then set: a name
#: can be in both.
Stamp: TypeAlias = "tuple[Headers, tuple[str, ...]]"

_log = logging.getLogger("cagent_session")
_DEBUG = logging.DEBUG  # read twice for each request; the attribute of a module takes longer

_IN_A_SESSION = (
    "inside session_scope(...) or a function decorated with session_from(...), from a thread or a "
    "pool with bind_session(...), from a library's own pool with carry_session() of "
    "cagent_session.integrations.threads, and in a web service behind SessionMiddleware"
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
    url: Any, plan: Plan, headers: Mapping[str, Header], passage: Passage | None
) -> Stamp | None:
    """Decide whether a request is gateway-bound, and which headers it then gets.

    :param url: the request's; read with ``str()`` when it is logged.
    :param plan: of the route to the gateway that owns ``url``, or of ``BARE``, for the names of the
        request's headers.
    :param headers: the request's by lower-case name, at least those in ``plan.read``.
    :param passage: of the request. A value that the gate sets holds it, so that a transport further
        down finds it in the headers. ``None`` only if nothing will be sent.
    :returns: ``None`` for a request that is not gateway-bound, and must be sent unchanged.
    :raises SessionRequired: if there is no session, and the gateway requires one.
    """
    route = plan.route
    forward = headers[FORWARD_KEY][-1] if plan.has_forward else None
    if not is_bound(forward, route):
        note_unbound(url, forward)
        return None
    stamped = _gateway_headers(plan, headers)
    removed: tuple[str, ...] = ()
    lineage = current_lineage()
    if passage is not None:
        passage.lineage, passage.route = lineage, route
    if lineage.session is not None:
        removed = plan.callers_session_keys
        if not _add_session(stamped, plan, lineage, passage):
            attach(passage, stamped)
    else:
        attach(passage, stamped)
        # The caller may have set the session's headers, without a scope.
        if not any(headers[key][-1] for key in plan.choosing_keys):
            _outside_every_session(url, route, lineage)
    if _log.isEnabledFor(_DEBUG):
        why = "it has X-Cagent-Forward" if route is BARE else f"{urls.redacted(route.url)} owns it"
        where = "no session" if lineage.session is None else f"session {lineage.session}"
        _log.debug("gateway-bound, as %s, in %s: %s", why, where, urls.redacted(str(url)))
    return stamped, removed


def has_passed(passage: Passage | None, method: Any, url: Any, router: Router) -> bool:
    """Return whether a request has been stamped further up, so that it is sent unchanged.

    Code in between may have sent it to another URL of the same gateway. It keeps its stamp there,
    unless the place that asks knows the gateway, too, and can make a new one: code in between may
    have dropped parts of the stamp.

    :param passage: the one in the headers of the request.
    :param router: of the place that asks.
    """
    if passage is None or not passage.is_open:
        return False
    if passage.covers(method, url):
        return True
    url = str(url)
    return _is_home(passage, url, router) and not _is_same(router.route(url), router, passage)


def keys_to_keep(passage: Passage, url: str, router: Router) -> frozenset[str]:
    """Return the names of session headers that stay when a stamp comes off a request.

    The request gets a new stamp, and in a thread of its own that would lack the session.

    :param passage: whose stamp comes off.
    :param url: where the request is sent now.
    :param router: of the place that asks.
    """
    would_lose_session = current_lineage() == OUTSIDE and passage.lineage != OUTSIDE
    if would_lose_session and _is_home(passage, url, router):
        return passage.route.session_keys
    return frozenset()


def _is_home(passage: Passage, url: str, router: Router) -> bool:
    """Return whether ``url`` is one of the gateway for which a request was stamped."""
    return may_get_identifiers(str(passage.url), url) and _is_same(
        router.route_beside(passage.router, url), router, passage
    )


def _is_same(route: Route, router: Router, passage: Passage) -> bool:
    """Return whether ``route``, which ``router`` has found, is to the gateway of ``passage``."""
    if route is passage.route:
        return True
    here, there = router.gateways.get(route.place), passage.router.gateways.get(route.place)
    return route.place == passage.route.place and here is not None and here == there


def note_unbound(url: Any, forward: str | bytes | None = None) -> None:
    """Log a request that is not gateway-bound.

    :param forward: its ``X-Cagent-Forward``.
    """
    if _log.isEnabledFor(_DEBUG):
        why = "no gateway owns it" if forward is None else "its X-Cagent-Forward is empty"
        _log.debug("not gateway-bound, as %s: %s", why, urls.redacted(str(url)))


def _gateway_headers(plan: Plan, headers: Mapping[str, Header]) -> Headers:
    """Return the gateway headers for a request, less those that its caller has set."""
    stamped = plan.gateway_headers.copy()
    if plan.may_be_signed and _is_signed(headers):
        # The signature may cover the library's default headers, and the absence of one.
        for key in DEFAULT_KEYS:
            stamped.pop(key, None)
        return stamped
    # The plan counts all headers as set by the caller. Ours replaces a default of the library's.
    for key, defaults, header in plan.stand_ins:
        if headers[key][-1] in defaults:
            stamped[key] = header
    return stamped


def _is_signed(headers: Mapping[str, Header]) -> bool:
    """Return whether a request carries a signature of its headers: SigV4, or RFC 9421."""
    if "signature-input" in headers:
        return True
    value = headers["authorization"][-1]
    if isinstance(value, str):
        return "SignedHeaders=" in value
    # The plain code would be "in". That first tries to read its argument as a number.
    return isinstance(value, bytes) and value.find(b"SignedHeaders=") >= 0


def _add_session(stamped: Headers, plan: Plan, lineage: Lineage, passage: Passage | None) -> bool:
    """Add the session headers to ``stamped``; return whether there is one, to hold the passage."""
    before = len(stamped)
    for key, names, make in plan.session_headers:
        value = make(lineage)
        if value is not None:
            made = StampedBytes(value.encode()) if plan.library.in_bytes else Stamped(value)
            made.key, made.passage = key, passage
            stamped[key] = (*names, made)
    return len(stamped) > before


def _outside_every_session(url: Any, route: Route, lineage: Lineage) -> None:
    """Refuse a gateway-bound request without a session, or warn of it, as the gateway wants."""
    if route.require_session:
        _log.debug("refused, as its gateway requires a session: %s", urls.redacted(str(url)))
        message = (
            f"no session is in scope for a request to {urls.redacted(str(url))}, and its gateway "
            f"requires one: send it {_IN_A_SESSION}"
        )
        if lineage.is_deliberate:
            message += (
                ". require_session=True refuses requests inside no_session(), too: send this one "
                "inside session_scope(), or by a client of its own with "
                "dataclasses.replace(gateway, require_session=False)"
            )
        raise SessionRequired(message)
    if not lineage.is_deliberate:
        route.warn_once(
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
    if is_same_host and in_session and not router.knows(target):
        route.warn_once(
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
