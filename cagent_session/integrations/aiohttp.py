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
        # are the calls that are under way, by the id() of what only their requests share.
        self._calls: weakref.WeakValueDictionary[int, _Call] = weakref.WeakValueDictionary()

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send ``request``, stamped if it is gateway-bound."""
        # All hops of a call share the timer. A copy that another middleware makes of a hop shares
        # the headers, too. Who keeps an entry keeps that object, so no other can have its id().
        timer, headers = getattr(request, "_timer", request), request.headers
        earlier = self._calls.get(id(timer)) or self._calls.get(id(headers))
        hops = earlier.hops if earlier else Hops(self._router)
        by_timer = self._calls.setdefault(id(timer), _Call(hops))
        by_headers = self._calls.setdefault(id(headers), _Call(hops))
        try:
            response = await hops(request, handler)
        finally:
            if hops.is_watched:
                _keep(by_timer, request)
                _keep(by_headers, headers)
        if hops.is_watched:
            # The client keeps a response while it follows redirects. It has the timer, unless
            # another middleware has made it.
            has_timer = getattr(response, "_timer", None) is timer
            _keep(by_timer, response, None if has_timer else timer)
        return response

    def __reduce__(self) -> Any:
        return type(self), (self.gateway,)


class _Call:
    """An entry of GatewayMiddleware, which it has for as long as somebody keeps this."""

    def __init__(self, hops: Hops) -> None:
        self.hops = hops


def _keep(call: _Call, owner: object, timer: object = None) -> None:
    """Keep ``call`` and ``timer`` for as long as ``owner`` exists."""
    weakref.finalize(owner, _nothing, call, timer).atexit = False


def _nothing(*kept: object) -> None:
    """Do nothing: a finalizer has what it is called with until then."""
