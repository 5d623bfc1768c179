"""httpx: the gate as a transport, for the openai, anthropic and other SDKs."""

from __future__ import annotations

from types import TracebackType

from .. import urls
from ..gateway import Gateway, check_gateway, gate, without_identifiers
from ..headers import by_lower_name
from . import missing

try:
    import httpx
except ImportError as error:
    raise ImportError(missing("httpx", "httpx")) from error

_DEFAULT_AGENTS = (f"python-httpx/{httpx.__version__}".encode(),)


class GatewayTransport(httpx.BaseTransport):
    """A transport that says on every gateway-bound request which session sent it.

    :param gateway: requests to its URLs are marked as gateway-bound, and stamped with the
        session in scope. Without a gateway nothing is marked, and only those requests are
        stamped that carry the marker ``X-Cagent-Forward`` already.
    :param transport: the transport that sends; ``httpx.HTTPTransport()`` if left out.

    ::

        http = httpx.Client(transport=GatewayTransport(gateway))
        client = openai.OpenAI(base_url=gateway.endpoint("v1"), http_client=http)
    """

    def __init__(
        self, gateway: Gateway | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.gateway = check_gateway(gateway)
        self._transport = httpx.HTTPTransport() if transport is None else transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``, or a stamped copy of it if it is gateway-bound."""
        outgoing = _stamped(request, self.gateway)
        if outgoing is None:
            return self._transport.handle_request(request)
        response = self._transport.handle_request(outgoing)
        return _answered(response, outgoing, request, self.gateway)

    def __enter__(self) -> GatewayTransport:
        self._transport.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._transport.__exit__(exc_type, exc_value, traceback)

    def close(self) -> None:
        """Close the transport that sends."""
        self._transport.close()


class AsyncGatewayTransport(httpx.AsyncBaseTransport):
    """What :class:`GatewayTransport` is, for ``httpx.AsyncClient``.

    :param gateway: see :class:`GatewayTransport`.
    :param transport: the transport that sends; ``httpx.AsyncHTTPTransport()`` if left out.
    """

    def __init__(
        self, gateway: Gateway | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.gateway = check_gateway(gateway)
        self._transport = httpx.AsyncHTTPTransport() if transport is None else transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``, or a stamped copy of it if it is gateway-bound."""
        outgoing = _stamped(request, self.gateway)
        if outgoing is None:
            return await self._transport.handle_async_request(request)
        response = await self._transport.handle_async_request(outgoing)
        return _answered(response, outgoing, request, self.gateway)

    async def __aenter__(self) -> AsyncGatewayTransport:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        """Close the transport that sends."""
        await self._transport.aclose()


class _Response(httpx.Response):
    """Keeps the request that was really sent, where the client would put the caller's."""

    @property
    def request(self) -> httpx.Request:
        return super().request

    @request.setter
    def request(self, value: httpx.Request) -> None:
        pass


def _stamped(request: httpx.Request, gateway: Gateway | None) -> httpx.Request | None:
    url = str(request.url)
    stamp = gate(url, by_lower_name(request.headers.raw), gateway, _DEFAULT_AGENTS)
    if stamp is None:
        return None
    stamped_url, stamped = stamp
    # All but the headers and the URL is shared: a body that streams can be read only once.
    outgoing = httpx.Request.__new__(httpx.Request)
    vars(outgoing).update(vars(request))
    outgoing.headers = request.headers.copy()
    for name, value in stamped.values():
        outgoing.headers[name] = value
    if stamped_url != url:
        outgoing.url = httpx.URL(stamped_url)
    return outgoing


def _answered(
    response: httpx.Response,
    outgoing: httpx.Request,
    request: httpx.Request,
    gateway: Gateway | None,
) -> httpx.Response:
    if response.has_redirect_location and _leaves_origin(outgoing, response):
        # httpx builds the next hop from the caller's request. Its headers are replaced, not
        # changed, as another task may be reading them.
        request.headers = httpx.Headers(
            without_identifiers(request.headers.raw, gateway), request.headers.encoding
        )
    response.request = outgoing
    if type(response) is httpx.Response:
        response.__class__ = _Response
    return response


def _leaves_origin(outgoing: httpx.Request, response: httpx.Response) -> bool:
    try:
        target = outgoing.url.join(response.headers["Location"])
    except (httpx.InvalidURL, ValueError):
        return True  # a target that httpx refuses, too
    return urls.leaves_origin(str(outgoing.url), str(target))
