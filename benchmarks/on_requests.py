"""What a transport adds to a request of requests, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests
from comparison import Comparison, tables_of
from harness import Table, Within, show
from requests.adapters import HTTPAdapter
from stubs import (
    AT_GATEWAY,
    ELSEWHERE,
    FORWARD,
    GATEWAY,
    GATEWAY_HEADERS,
    SESSION_ID,
    CopyIdiom,
    instrumented,
    no_adapters,
    prepare,
    sender,
    traced,
)

from cagent_session import Gateway, GatewayAdapter, current_session_id, session_scope


class AddHeadersIdiom(HTTPAdapter):
    """Changes the caller's request, which a redirect then copies."""

    def add_headers(self, request: requests.PreparedRequest, **_: Any) -> None:
        request.headers[SESSION_ID] = current_session_id()


def with_session_header(given: Any) -> Gateway:
    """Return the gateway of the other cases, with one more session header."""
    return Gateway(
        GATEWAY.url,
        forward=FORWARD,
        provider="openai",
        model="gpt-4o-mini",
        model_name="main",
        session_headers={"X-Session-Affinity": given},
    )


UNIT = "the `request.copy()` idiom"


def tables() -> Iterator[Table]:
    return tables_of("on_requests", comparisons())


def comparisons() -> Iterator[Comparison]:
    cases = {
        "plain": sender(HTTPAdapter(), prepare(AT_GATEWAY, GATEWAY_HEADERS)),
        UNIT: sender(CopyIdiom(), prepare(AT_GATEWAY, GATEWAY_HEADERS)),
        "the `add_headers` idiom": sender(AddHeadersIdiom(), prepare(AT_GATEWAY, GATEWAY_HEADERS)),
        "`GatewayAdapter()`, gateway-bound by header": sender(
            GatewayAdapter(), prepare(AT_GATEWAY, GATEWAY_HEADERS)
        ),
        "`GatewayAdapter(gateway)`, gateway-bound by URL": sender(
            GatewayAdapter(GATEWAY), prepare(AT_GATEWAY)
        ),
        "`GatewayAdapter()`, not gateway-bound": sender(GatewayAdapter(), prepare(AT_GATEWAY)),
        "`GatewayAdapter(gateway)`, not gateway-bound": sender(
            GatewayAdapter(GATEWAY), prepare(ELSEWHERE)
        ),
        "one more session header, from a template": sender(
            GatewayAdapter(with_session_header("{session}")), prepare(AT_GATEWAY)
        ),
        "one more session header, from a function": sender(
            GatewayAdapter(with_session_header(lambda session, parent, root: session)),
            prepare(AT_GATEWAY),
        ),
        "`instrument(gateway)`, gateway-bound by URL": Within(
            lambda: instrumented(GATEWAY), sender(HTTPAdapter(), prepare(AT_GATEWAY))
        ),
        "`instrument(gateway)`, not gateway-bound": Within(
            lambda: instrumented(GATEWAY), sender(HTTPAdapter(), prepare(ELSEWHERE))
        ),
        "after `uninstrument()`": Within(
            lambda: instrumented(GATEWAY, then_off=True),
            sender(HTTPAdapter(), prepare(AT_GATEWAY)),
        ),
        "OpenTelemetry's instrumentation, baggage": Within(
            lambda: traced("requests", "RequestsInstrumentor"),
            sender(HTTPAdapter(), prepare(AT_GATEWAY)),
        ),
    }
    with no_adapters(), session_scope("session-1"):
        yield Comparison("requests", UNIT, cases, plain="plain")


if __name__ == "__main__":
    show(tables())
