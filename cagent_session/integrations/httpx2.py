"""httpx2: the gate as a transport, for the openai, anthropic, mistral and other SDKs."""

from __future__ import annotations

from ..gateway import Gateway
from . import missing
from ._httpx import AsyncShell, KeepsRequest, SyncShell

try:
    import httpx2
except ImportError as error:
    raise ImportError(missing("httpx2", "httpx2")) from error


class _Response(KeepsRequest, httpx2.Response):
    pass


class GatewayTransport(SyncShell, httpx2.BaseTransport):
    """A transport that says on every gateway-bound request which session sent it.

    :param gateway: requests to its URLs are marked as gateway-bound, and stamped with the
        session in scope. Without a gateway nothing is marked, and only those requests are
        stamped that carry the marker ``X-Cagent-Forward`` already.
    :param transport: the transport that sends; ``httpx2.HTTPTransport()`` if left out.

    ::

        http = httpx2.Client(transport=GatewayTransport(gateway))
        client = openai.OpenAI(base_url=gateway.endpoint("v1"), http_client=http)
    """

    library = httpx2
    response_class = _Response

    def __init__(
        self, gateway: Gateway | None = None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        super().__init__(gateway, httpx2.HTTPTransport() if transport is None else transport)


class AsyncGatewayTransport(AsyncShell, httpx2.AsyncBaseTransport):
    """What :class:`GatewayTransport` is, for ``httpx2.AsyncClient``.

    :param gateway: see :class:`GatewayTransport`.
    :param transport: the transport that sends; ``httpx2.AsyncHTTPTransport()`` if left out.
    """

    library = httpx2
    response_class = _Response

    def __init__(
        self, gateway: Gateway | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        super().__init__(gateway, httpx2.AsyncHTTPTransport() if transport is None else transport)
