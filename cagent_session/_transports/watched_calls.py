"""The calls of aiohttp whose caller has set identifiers, which have to come off at other origins.

A middleware gets each hop of a call as a request, and nothing else that tells the call. So a call
is known by the timer that all its requests share: hops, the client's second attempts, and copies
that another middleware makes. All gates of a call know it by that, for whatever gateways they are.
"""

from __future__ import annotations

import sys
from typing import Any

from .._gate import urls


class WatchedCall:
    """What the gate has seen of the caller's identifiers in one call of a client.

    :param timer: of the call.
    """

    #: the names of the session headers of its gateways, in lower case
    session_keys: frozenset[str] = frozenset()

    def __init__(self, timer: Any) -> None:
        self.key = timer
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
        return sys.getrefcount(self.key)


class _Kept(dict[Any, Any]):
    """Entries by their keys, until they are over.

    They are looked through each time their number has doubled. At each new one, many at once would
    cost the square of their number.
    """

    _left = 1  # when they were last looked through

    def get_or_add(self, kind: Any, key: Any) -> Any:
        entry = self.get(key)
        if entry is not None:
            return entry
        if len(self) >= 2 * self._left:
            for each in list(self.values()):
                if each.is_over():
                    self.pop(each.key, None)
            self._left = max(1, len(self))
        return self.setdefault(key, kind(key))


class _Loop(_Kept):
    """The watched calls of an event loop, by the timer.

    As an entry keeps the timer, no other can be taken for it. A timer has its loop. So these are
    kept by the loop, to be let go with it.
    """

    def __init__(self, loop: Any) -> None:
        self.key = loop

    def is_over(self) -> bool:
        return bool(self.key.is_closed())


_loops = _Kept()


def watched_call_of(request: Any) -> WatchedCall | None:
    """Return the watched call to which ``request`` belongs, if there is one."""
    of_loop = _loops.get(getattr(request, "loop", None)) if _loops else None
    return of_loop.get(_timer_of(request)) if of_loop else None


def watch(request: Any) -> WatchedCall:
    """Watch the call to which ``request`` belongs."""
    call: WatchedCall = _loops.get_or_add(_Loop, request.loop).get_or_add(
        WatchedCall, _timer_of(request)
    )
    return call


def _timer_of(request: Any) -> Any:
    return getattr(request, "_timer", request)


def _references_when_over() -> int:
    call = WatchedCall(object())
    _kept = {call.key: call}
    return call.references()


_ALONE = _references_when_over()
