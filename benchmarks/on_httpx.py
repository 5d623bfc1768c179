"""What a transport adds to a request of httpx or httpx2, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
from comparison import Comparison, tables_of
from harness import Table, Within, show
from opentelemetry.instrumentation.httpx import (
    SyncOpenTelemetryTransport,
    SyncOpenTelemetryTransportHttpx2,
)
from stubs import (
    AT_GATEWAY,
    ELSEWHERE,
    GATEWAY,
    GATEWAY_HEADERS,
    PROMPT,
    SESSION_ID,
    in_baggage,
    instrumented,
    no_transports,
    tracer_provider,
)

from cagent_session import current_session_id, session_scope
from cagent_session.integrations.httpx import GatewayTransport
from cagent_session.integrations.httpx2 import GatewayTransport as GatewayTransportHttpx2

UNIT = "the `Request(...)` idiom"


def tables() -> Iterator[Table]:
    return tables_of("on_httpx", comparisons())


def comparisons() -> Iterator[Comparison]:
    for library, ours, traced in (
        (httpx, GatewayTransport, SyncOpenTelemetryTransport),
        (httpx2, GatewayTransportHttpx2, SyncOpenTelemetryTransportHttpx2),
    ):
        with no_transports(library), session_scope("session-1"):
            yield comparison(library, ours, traced)


def comparison(library: Any, gateway_transport: Any, traced_transport: Any) -> Comparison:
    inner = library.HTTPTransport()
    client = library.Client(transport=inner)

    class CopyIdiom(library.BaseTransport):
        """Makes another request with the library's own class."""

        def handle_request(self, request: Any) -> Any:
            outgoing = library.Request(
                request.method,
                request.url,
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions,
            )
            outgoing.headers[SESSION_ID] = current_session_id()
            return inner.handle_request(outgoing)

    class InPlaceIdiom(library.BaseTransport):
        """Changes the client's request, as an event hook does, and a redirect then copies it."""

        def handle_request(self, request: Any) -> Any:
            request.headers[SESSION_ID] = current_session_id()
            return inner.handle_request(request)

    def handler(
        transport: Any, url: str = AT_GATEWAY, own: dict[str, str] | None = None
    ) -> Callable[[], object]:
        request = client.build_request("POST", url, json=PROMPT, headers=own)
        headers = request.headers

        def handle() -> object:
            # Each time those of a request that nobody has changed yet.
            request.headers = headers.copy()
            return transport.handle_request(request)

        return handle

    cases = {
        "plain": handler(inner, AT_GATEWAY, GATEWAY_HEADERS),
        UNIT: handler(CopyIdiom(), AT_GATEWAY, GATEWAY_HEADERS),
        "setting the header in place": handler(InPlaceIdiom(), AT_GATEWAY, GATEWAY_HEADERS),
        "`GatewayTransport()`, gateway-bound by header": handler(
            gateway_transport(None, inner), AT_GATEWAY, GATEWAY_HEADERS
        ),
        "`GatewayTransport(gateway)`, gateway-bound by URL": handler(
            gateway_transport(GATEWAY, inner)
        ),
        "`GatewayTransport()`, not gateway-bound": handler(gateway_transport(None, inner)),
        "`GatewayTransport(gateway)`, not gateway-bound": handler(
            gateway_transport(GATEWAY, inner), ELSEWHERE
        ),
        "`instrument(gateway)`, gateway-bound by URL": Within(
            lambda: instrumented(GATEWAY), handler(inner)
        ),
        "`instrument(gateway)`, not gateway-bound": Within(
            lambda: instrumented(GATEWAY), handler(inner, ELSEWHERE)
        ),
        "after `uninstrument()`": Within(
            lambda: instrumented(GATEWAY, then_off=True), handler(inner)
        ),
        "OpenTelemetry's transport, baggage": Within(
            in_baggage, handler(traced_transport(inner, tracer_provider()))
        ),
    }
    return Comparison(library.__name__, UNIT, cases, plain="plain")


if __name__ == "__main__":
    show(tables())
