"""httpx2: the gate as a transport, for the openai, anthropic, mistral and other SDKs."""

from __future__ import annotations

from .._gate.gateway import Gateway
from .._transports.httpx import GatewayTransport as _GatewayTransport
from . import missing

try:
    import httpx2
except ImportError as _error:
    raise ImportError(missing("httpx2", "httpx2")) from _error


class GatewayTransport(_GatewayTransport, httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """A transport that puts the session in scope on every gateway-bound request.

    For blocking and for asynchronous clients alike; one object can serve both.

    :param gateway: requests to its URLs are gateway-bound. Without a gateway, only requests that
        already carry the header ``X-Cagent-Forward`` are.
    :param transport: the transport that sends. If left out, ``httpx2.HTTPTransport()`` or
        ``httpx2.AsyncHTTPTransport()``, made when it is first needed.
    :raises TypeError: for a transport that is not one of httpx2's; when a client uses it, for one
        that the client's kind cannot use.

    ::

        http = httpx2.Client(transport=GatewayTransport(gateway))
        client = openai.OpenAI(base_url=gateway.endpoint("v1"), http_client=http)
    """

    module = httpx2

    def __init__(
        self,
        gateway: Gateway | None = None,
        transport: httpx2.BaseTransport | httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(gateway, transport)


AsyncGatewayTransport = GatewayTransport
