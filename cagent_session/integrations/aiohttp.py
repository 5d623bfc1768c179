"""aiohttp: the gate as a client middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send ``request``, stamped if it is gateway-bound."""
        return await Hops(self._router)(request, handler)
