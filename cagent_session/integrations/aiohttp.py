"""aiohttp: the gate as a client middleware."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .._gate.gateway import Gateway
from .._gate.routes import Router
from . import missing

try:
    # First, and not by the next line: if instrument() waits for aiohttp, it needs that module then.
    import aiohttp  # noqa: F401

    from .._transports.aiohttp import HAS_MIDDLEWARES, Hops
except ImportError as _error:
    raise ImportError(missing("aiohttp", "aiohttp")) from _error

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

if not HAS_MIDDLEWARES:
    raise ImportError("GatewayMiddleware needs aiohttp 3.12 or later: pip install 'aiohttp>=3.12'")


class GatewayMiddleware:
    """A client middleware that puts the session in scope on every gateway-bound request.

    :param gateway: requests to its URLs are gateway-bound, those of ``ws_connect`` included.
        Without a gateway, only requests that already carry the header ``X-Cagent-Forward`` are.
    :raises ImportError: on import, with an aiohttp before 3.12, which has no client middlewares.

    Put it last in the list, so that it sees each request as it will be sent. ``middlewares=`` of a
    single call replaces those of the ``ClientSession``: repeat it there. ::

        async with aiohttp.ClientSession(middlewares=[GatewayMiddleware(gateway)]) as http:
            await http.post(gateway.endpoint("v1/chat/completions"), json=prompt)
    """

    def __init__(self, gateway: Gateway | None = None) -> None:
        self.gateway = gateway
        self._router = Router(gateway)
        # A middleware gets each hop as a request, and nothing else that tells the call. So these
        # are the calls, by the id() of the timer that all requests of a call share: hops, the
        # client's second attempts, and copies that another middleware makes.
        self._calls: dict[int, _Call] = {}
        self._under_way = 1  # how many of them were, when last counted

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send ``request``, stamped if it is gateway-bound."""
        timer = getattr(request, "_timer", request)
        call = self._calls.get(id(timer))
        if call is None:
            self._forget_calls_that_are_over()
            call = _Call(timer, request.loop, Hops(self._router))
            self._calls[id(timer)] = call
        return await call.hops(request, handler)

    def _forget_calls_that_are_over(self) -> None:
        # Not at each call, so that many at once do not cost the square of their number.
        if len(self._calls) < 2 * self._under_way:
            return
        for key, call in list(self._calls.items()):
            # A timer has its tasks. So a call that is pending as its loop is closed is over, too.
            if _references(call) <= _ALONE or call.loop.is_closed():
                self._calls.pop(key, None)
        self._under_way = max(1, len(self._calls))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_calls": {}}


class _Call:
    """A call of a client. As this keeps its timer, no other can have the id() of that."""

    def __init__(self, timer: object, loop: Any, hops: Hops) -> None:
        self.timer = timer
        self.loop = loop
        self.hops = hops


def _references(call: _Call) -> int:
    """Count the references to the timer of ``call``.

    The client has one until the call is over, and an idle connection has one to the timer of its
    last call. The plain code would be a weak reference, but timers allow none.
    """
    return sys.getrefcount(call.timer)


_ALONE = _references(_Call(object(), None, Hops(Router(None))))
