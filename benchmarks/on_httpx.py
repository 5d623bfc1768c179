"""What a request of httpx or httpx2 costs more, the network stubbed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
from harness import Table, Within, added, measure, show, table_of_added
from opentelemetry.instrumentation.httpx import (
    SyncOpenTelemetryTransport,
    SyncOpenTelemetryTransportHttpx2,
)
from stubs import (
    ELSEWHERE,
    GATEWAY,
    MARKS,
    OWNED,
    PROMPT,
    SESSION_ID,
    TRACER_PROVIDER,
    in_baggage,
    instrumented,
    no_transports,
)

from cagent_session import current_session_id, session_scope
from cagent_session.integrations.httpx import GatewayTransport
from cagent_session.integrations.httpx2 import GatewayTransport as GatewayTransportHttpx2

UNIT = "the `Request(...)` idiom"


def tables() -> Iterator[Table]:
    for library, ours, traced in (
        (httpx, GatewayTransport, SyncOpenTelemetryTransport),
        (httpx2, GatewayTransportHttpx2, SyncOpenTelemetryTransportHttpx2),
    ):
        with no_transports(library):
            yield compare(library, ours, traced)


def compare(library: Any, gateway_transport: Any, traced_transport: Any) -> Table:
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
        transport: Any, url: str = OWNED, marks: dict[str, str] | None = None
    ) -> Callable[[], object]:
        request = client.build_request("POST", url, json=PROMPT, headers=marks)
        headers = request.headers

        def handle() -> object:
            # Each time those of a request that nobody has changed yet.
            request.headers = headers.copy()
            return transport.handle_request(request)

        return handle

    with session_scope("session-1"):
        times = measure(
            {
                "plain": handler(inner, OWNED, MARKS),
                UNIT: handler(CopyIdiom(), OWNED, MARKS),
                "setting the header in place": handler(InPlaceIdiom(), OWNED, MARKS),
                "`GatewayTransport()`, bound": handler(
                    gateway_transport(None, inner), OWNED, MARKS
                ),
                "`GatewayTransport(gateway)`, owned": handler(gateway_transport(GATEWAY, inner)),
                "`GatewayTransport()`, not bound": handler(gateway_transport(None, inner)),
                "`GatewayTransport(gateway)`, not owned": handler(
                    gateway_transport(GATEWAY, inner), ELSEWHERE
                ),
                "`instrument(gateway)`, owned": Within(
                    lambda: instrumented(GATEWAY), handler(inner)
                ),
                "`instrument(gateway)`, not owned": Within(
                    lambda: instrumented(GATEWAY), handler(inner, ELSEWHERE)
                ),
                "after `uninstrument()`": Within(
                    lambda: instrumented(GATEWAY, then_off=True), handler(inner)
                ),
                "OpenTelemetry's transport, baggage": Within(
                    in_baggage, handler(traced_transport(inner, TRACER_PROVIDER))
                ),
            }
        )
    plain = times.pop("plain")
    more = {case: added(times[case], plain) for case in times}
    return table_of_added(library.__name__, UNIT, more[UNIT], more)


if __name__ == "__main__":
    show(tables())
