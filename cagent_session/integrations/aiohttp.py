"""aiohttp: the gate as a client middleware."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from .._gate.gateway import Gateway
from .._gate.routes import Router
from . import missing

try:
    # First, and not by the next line: if instrument() waits for aiohttp, it needs that module then.
    import aiohttp  # noqa: F401

    from .._transports.aiohttp import HAS_MIDDLEWARES, Hops, Sending, sending_of
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
        # The calls that are being redirected, by the id() of the timer that all hops of a call
        # share. A middleware gets each hop as a request, and nothing else that tells the call.
        self._redirected: dict[int, Hops] = {}
        # A middleware above may send a request several times, also at once, and to several hosts.
        self._sent: weakref.WeakKeyDictionary[Sending, Hops] = weakref.WeakKeyDictionary()

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send ``request``, stamped if it is gateway-bound."""
        timer, sending = getattr(request, "_timer", None), sending_of(request)
        hops = self._redirected.get(id(timer)) or self._sent.get(sending) or Hops(self._router)
        self._sent[sending] = hops
        response = await hops(request, handler)
        if hops.is_watched and response.status // 100 == 3 and timer is not None:
            # The client keeps this response, and with it the timer, until the call is over. Until
            # then no other timer can have this id().
            self._redirected[id(timer)] = hops
            hops.responses += 1
            weakref.finalize(response, self._forget, id(timer), hops).atexit = False
        return response

    def _forget(self, timer: int, hops: Hops) -> None:
        # A middleware above may have sent a hop several times.
        hops.responses -= 1
        if hops.responses == 0 and self._redirected.get(timer) is hops:
            del self._redirected[timer]

    def __reduce__(self) -> Any:
        return type(self), (self.gateway,)
