"""The calls of aiohttp whose caller has set identifiers, which have to come off at other origins.

A middleware gets each hop of a call as a request, and nothing else that tells the call. So a call
is known by the timer that all its requests share: hops, the client's second attempts, and copies
that another middleware makes. All gates of a call know it by that, for whatever gateways they are.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

from .._gate import urls


class WatchedCall:
    """What the gate has seen of the caller's identifiers in one call of a client.

    :param request: a request of the call.
    """

    #: the names of the session headers of its gateways, in lower case
    session_keys: frozenset[str] = frozenset()

    def __init__(self, request: Any) -> None:
        self.timer, self.loop = _timer_of(request), request.loop
        #: the identifiers, by the origins of the gateway-bound hops that had some
        self.homes: dict[urls.Origin | str, frozenset[tuple[str, str]]] = {}

    def add(self, home: urls.Origin | str, identifiers: frozenset[tuple[str, str]]) -> None:
        """Note the caller's identifiers at a gateway-bound hop."""
        self.homes[home] = self.homes.get(home, frozenset()) | identifiers


# By the timer. As this keeps the timer, no other can be taken for it.
_calls: dict[Any, WatchedCall] = {}
_under_way = 1  # how many of them were, when last counted
# That have had such a call. With each new one, those that are closed are let go.
_loops: WeakSet[Any] = WeakSet()


def watched_call_of(request: Any) -> WatchedCall | None:
    """Return the watched call to which ``request`` belongs, if there is one."""
    return _calls.get(_timer_of(request)) if _calls else None


def watch(request: Any) -> WatchedCall:
    """Watch the call to which ``request`` belongs."""
    timer = _timer_of(request)
    # Not at each call, so that many at once do not cost the square of their number.
    if timer not in _calls and (request.loop not in _loops or len(_calls) >= 2 * _under_way):
        _loops.add(request.loop)
        _forget_calls_that_are_over()
    return _calls.setdefault(timer, WatchedCall(request))


def _timer_of(request: Any) -> Any:
    return getattr(request, "_timer", request)


def _forget_calls_that_are_over() -> None:
    global _under_way
    for call in list(_calls.values()):
        # A timer has its tasks. So a call that is pending as its loop is closed is over, too.
        if _references(call) <= _ALONE or call.loop.is_closed():
            _calls.pop(call.timer, None)
    _under_way = max(1, len(_calls))


def _references(call: WatchedCall) -> int:
    """Count the references to the timer of ``call``.

    The client has one until the call is over, and an idle connection has one to the timer of its
    last call. The plain code would be a weak reference, but timers allow none.
    """
    return sys.getrefcount(call.timer)


def _references_when_over() -> int:
    call = WatchedCall(SimpleNamespace(_timer=object(), loop=None))
    _kept = {call.timer: call}
    return _references(call)


_ALONE = _references_when_over()
