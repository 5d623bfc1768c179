"""What a request of urllib3 costs more, the network stubbed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from harness import Table, Within, added, measure, show, table_of_added
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
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
    with no_adapters(), no_pools(), session_scope("session-1"):
        times = measure(
            {
                "requests": sender(HTTPAdapter(), prepare(OWNED, MARKS)),
                UNIT: sender(CopyIdiom(), prepare(OWNED, MARKS)),
                "plain": asker(urllib3.PoolManager(), OWNED, MARKS),
                "copying the headers": asker(CopyHeadersIdiom(), OWNED, MARKS),
                "setting the header in place": asker(InPlaceIdiom(), OWNED, MARKS),
                "`GatewayPoolManager()`, bound": asker(GatewayPoolManager(), OWNED, MARKS),
                "`GatewayPoolManager(gateway)`, owned": asker(GatewayPoolManager(GATEWAY), OWNED),
                "`GatewayPoolManager()`, not bound": asker(GatewayPoolManager(), OWNED),
                "`GatewayPoolManager(gateway)`, not owned": asker(
                    GatewayPoolManager(GATEWAY), ELSEWHERE
                ),
                "`instrument(gateway)`, owned": Within(
                    lambda: instrumented(GATEWAY), asker(urllib3.PoolManager(), OWNED)
                ),
                "`instrument(gateway)`, not owned": Within(
                    lambda: instrumented(GATEWAY), asker(urllib3.PoolManager(), ELSEWHERE)
                ),
                "after `uninstrument()`": Within(
                    lambda: instrumented(GATEWAY, then_off=True),
                    asker(urllib3.PoolManager(), OWNED),
                ),
                "OpenTelemetry's instrumentation, baggage": Within(
                    lambda: traced(URLLib3Instrumentor), asker(urllib3.PoolManager(), OWNED)
                ),
            }
        )
    unit = added(times.pop(UNIT), times.pop("requests"))
    plain = times.pop("plain")
    more = {case: added(times[case], plain) for case in times}
    yield table_of_added("urllib3", UNIT, unit, more)


if __name__ == "__main__":
    show(tables())
