"""httpx: the gate as a transport."""

from __future__ import annotations

from ..gateway import Gateway
from . import missing
from ._httpx import AsyncShell, KeepsRequest, SyncShell

try:
    import httpx
except ImportError as error:
    raise ImportError(missing("httpx", "httpx")) from error


class _Response(KeepsRequest, httpx.Response):
    pass


class GatewayTransport(SyncShell, httpx.BaseTransport):
    """A transport that says on every gateway-bound request which session sent it.

    :param gateway: requests to its URLs are marked as gateway-bound, and stamped with the
        session in scope. Without a gateway nothing is marked, and only those requests are
        stamped that carry the marker ``X-Cagent-Forward`` already.
    :param transport: the transport that sends; ``httpx.HTTPTransport()`` if left out.

    ::

        http = httpx.Client(transport=GatewayTransport(gateway))
        client = openai.OpenAI(base_url=gateway.endpoint("v1"), http_client=http)
    """

    library = httpx
    response_class = _Response

    def __init__(
        self, gateway: Gateway | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        super().__init__(gateway, httpx.HTTPTransport() if transport is None else transport)


class AsyncGatewayTransport(AsyncShell, httpx.AsyncBaseTransport):
    """What :class:`GatewayTransport` is, for ``httpx.AsyncClient``.

    :param gateway: see :class:`GatewayTransport`.
    :param transport: the transport that sends; ``httpx.AsyncHTTPTransport()`` if left out.
    """

    library = httpx
    response_class = _Response

    def __init__(
        self, gateway: Gateway | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        super().__init__(gateway, httpx.AsyncHTTPTransport() if transport is None else transport)
