"""What a request of requests costs more, the network stubbed out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests
from harness import Table, Within, added, measure, show, table_of_added
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from requests.adapters import HTTPAdapter
from stubs import (
    ELSEWHERE,
    GATEWAY,
    MARKS,
    OWNED,
    SESSION_ID,
    CopyIdiom,
    instrumented,
    no_adapters,
    prepare,
    sender,
    traced,
)

from cagent_session import GatewayAdapter, current_session_id, session_scope


class AddHeadersIdiom(HTTPAdapter):
    """Changes the caller's request, which a redirect then copies."""

    def add_headers(self, request: requests.PreparedRequest, **_: Any) -> None:
        request.headers[SESSION_ID] = current_session_id()


UNIT = "the `request.copy()` idiom"


def tables() -> Iterator[Table]:
    with no_adapters(), session_scope("session-1"):
        times = measure(
            {
                "plain": sender(HTTPAdapter(), prepare(OWNED, MARKS)),
                UNIT: sender(CopyIdiom(), prepare(OWNED, MARKS)),
                "the `add_headers` idiom": sender(AddHeadersIdiom(), prepare(OWNED, MARKS)),
                "`GatewayAdapter()`, bound": sender(GatewayAdapter(), prepare(OWNED, MARKS)),
                "`GatewayAdapter(gateway)`, owned": sender(GatewayAdapter(GATEWAY), prepare(OWNED)),
                "`GatewayAdapter()`, not bound": sender(GatewayAdapter(), prepare(OWNED)),
                "`GatewayAdapter(gateway)`, not owned": sender(
                    GatewayAdapter(GATEWAY), prepare(ELSEWHERE)
                ),
                "`instrument(gateway)`, owned": Within(
                    lambda: instrumented(GATEWAY), sender(HTTPAdapter(), prepare(OWNED))
                ),
                "`instrument(gateway)`, not owned": Within(
                    lambda: instrumented(GATEWAY), sender(HTTPAdapter(), prepare(ELSEWHERE))
                ),
                "after `uninstrument()`": Within(
                    lambda: instrumented(GATEWAY, then_off=True),
                    sender(HTTPAdapter(), prepare(OWNED)),
                ),
                "OpenTelemetry's instrumentation, baggage": Within(
                    lambda: traced(RequestsInstrumentor), sender(HTTPAdapter(), prepare(OWNED))
                ),
            }
        )
    plain = times.pop("plain")
    more = {case: added(times[case], plain) for case in times}
    yield table_of_added("requests", UNIT, more[UNIT], more)


if __name__ == "__main__":
    show(tables())
