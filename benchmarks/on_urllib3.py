"""What a transport adds to a request of urllib3, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from comparison import Comparison, tables_of
from harness import Table, Within, show
from requests.adapters import HTTPAdapter
from stubs import (
    AT_GATEWAY,
    ELSEWHERE,
    GATEWAY,
    GATEWAY_HEADERS,
    SESSION_ID,
    CopyIdiom,
    instrumented,
    no_adapters,
    no_pools,
    prepare,
    sender,
    traced,
)

from cagent_session import GatewayPoolManager, current_session_id, session_scope

HEADERS = {"Content-Type": "application/json", "Accept": "*/*", "Authorization": "Bearer key"}


class InPlaceIdiom(urllib3.PoolManager):
    """Changes the caller's headers."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> Any:
        options["headers"][SESSION_ID] = current_session_id()
        return super().urlopen(method, url, redirect, **options)


class CopyHeadersIdiom(urllib3.PoolManager):
    """Copies the caller's headers."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> Any:
        options["headers"] = {**options["headers"], SESSION_ID: current_session_id()}
        return super().urlopen(method, url, redirect, **options)


def asker(
    http: urllib3.PoolManager, url: str, headers: dict[str, str] | None = None
) -> Callable[[], object]:
    headers = HEADERS | (headers or {})
    return lambda: http.urlopen("POST", url, headers=headers, body=b"")


UNIT = "requests' `request.copy()` idiom"


def tables() -> Iterator[Table]:
    return tables_of("on_urllib3", comparisons())


def comparisons() -> Iterator[Comparison]:
    cases = {
        "requests": sender(HTTPAdapter(), prepare(AT_GATEWAY, GATEWAY_HEADERS)),
        UNIT: sender(CopyIdiom(), prepare(AT_GATEWAY, GATEWAY_HEADERS)),
        "plain": asker(urllib3.PoolManager(), AT_GATEWAY, GATEWAY_HEADERS),
        "copying the headers": asker(CopyHeadersIdiom(), AT_GATEWAY, GATEWAY_HEADERS),
        "setting the header in place": asker(InPlaceIdiom(), AT_GATEWAY, GATEWAY_HEADERS),
        "`GatewayPoolManager()`, gateway-bound by header": asker(
            GatewayPoolManager(), AT_GATEWAY, GATEWAY_HEADERS
        ),
        "`GatewayPoolManager(gateway)`, gateway-bound by URL": asker(
            GatewayPoolManager(GATEWAY), AT_GATEWAY
        ),
        "`GatewayPoolManager()`, not gateway-bound": asker(GatewayPoolManager(), AT_GATEWAY),
        "`GatewayPoolManager(gateway)`, not gateway-bound": asker(
            GatewayPoolManager(GATEWAY), ELSEWHERE
        ),
        "`instrument(gateway)`, gateway-bound by URL": Within(
            lambda: instrumented(GATEWAY), asker(urllib3.PoolManager(), AT_GATEWAY)
        ),
        "`instrument(gateway)`, not gateway-bound": Within(
            lambda: instrumented(GATEWAY), asker(urllib3.PoolManager(), ELSEWHERE)
        ),
        "after `uninstrument()`": Within(
            lambda: instrumented(GATEWAY, then_off=True),
            asker(urllib3.PoolManager(), AT_GATEWAY),
        ),
        "OpenTelemetry's instrumentation, baggage": Within(
            lambda: traced("urllib3", "URLLib3Instrumentor"),
            asker(urllib3.PoolManager(), AT_GATEWAY),
        ),
    }
    with no_adapters(), no_pools(), session_scope("session-1"):
        yield Comparison("urllib3", UNIT, cases, plain="plain", plain_of_unit="requests")


if __name__ == "__main__":
    show(tables())
