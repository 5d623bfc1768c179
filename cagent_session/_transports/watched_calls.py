"""The calls of aiohttp whose caller has set identifiers, which have to come off at other origins.

A middleware gets each hop of a call as a request, and nothing else that tells the call. So a call
is known by the timer that all its requests share: hops, the client's second attempts, and copies
that another middleware makes. All gates of a call know it by that, for whatever gateways they are.
"""

from __future__ import annotations

import sys
from typing import Any

from .._gate import urls

_ATTRIBUTE = "_cagent_session_watched_calls"


class WatchedCall:
    """What the gate has seen of the caller's identifiers in one call of a client.

    :param timer: of the call.
    """

    #: the names of the session headers of its gateways, in lower case
    session_keys: frozenset[str] = frozenset()

    def __init__(self, timer: Any) -> None:
        self.timer = timer
        #: the identifiers, by the origins of the gateway-bound hops that had some
        self.homes: dict[urls.Origin | str, frozenset[tuple[str, str]]] = {}

    def add(self, home: urls.Origin | str, identifiers: frozenset[tuple[str, str]]) -> None:
        """Note the caller's identifiers at a gateway-bound hop."""
        self.homes[home] = self.homes.get(home, frozenset()) | identifiers

    def is_over(self) -> bool:
        return self.references() <= _ALONE

    def references(self) -> int:
        """Count the references to the timer.

        The client has one until the call is over, and an idle connection has one to the timer of
        its last call. The plain code would be a weak reference, but timers allow none.
        """
        return sys.getrefcount(self.timer)


class _Calls(dict[Any, WatchedCall]):
    """The watched calls of a client, by the timer.

    An entry keeps the timer, so that no other can be taken for it. A timer has its event loop. So
    these are an attribute of the client, to be let go with it: a table of ours, or of the loop,
    would keep the loops of clients that are gone.

    They are looked through each time their number has doubled. At each new one, many at once would
    cost the square of their number.
    """

    _left = 1  # when they were last looked through

    def get_or_add(self, timer: Any) -> WatchedCall:
        call = self.get(timer)
        if call is not None:
            return call
        if len(self) >= 2 * self._left:
            for each in list(self.values()):
                if each.is_over():
                    del self[each.timer]
            self._left = max(1, len(self))
        call = self[timer] = WatchedCall(timer)
        return call


def calls_of(client: Any) -> _Calls | None:
    """Return the watched calls of a client, if it has had some."""
    # Not by setattr() and getattr(): the client warns of attributes that it does not know.
    return getattr(client, "__dict__", {}).get(_ATTRIBUTE)


def watched_call_of(request: Any) -> WatchedCall | None:
    """Return the watched call to which ``request`` belongs, if there is one."""
    calls = calls_of(_client_of(request))
    return calls.get(_timer_of(request)) if calls else None


def watch(request: Any) -> WatchedCall:
    """Watch the call to which ``request`` belongs."""
    client = _client_of(request)
    if client is None:  # a request that a test made
        return WatchedCall(_timer_of(request))
    calls: _Calls = vars(client).setdefault(_ATTRIBUTE, _Calls())
    return calls.get_or_add(_timer_of(request))


def _client_of(request: Any) -> Any:
    return getattr(request, "_session", None)


def _timer_of(request: Any) -> Any:
    return getattr(request, "_timer", request)


def _references_when_over() -> int:
    call = WatchedCall(object())
    _kept = {call.timer: call}
    return call.references()


_ALONE = _references_when_over()
