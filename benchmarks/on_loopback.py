"""How many requests a client can send, end to end over loopback, to a server of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import requests
import urllib3
from harness import Case, Table, Within, measure, median, ratio, show
from opentelemetry.instrumentation.httpx import (
    SyncOpenTelemetryTransport,
    SyncOpenTelemetryTransportHttpx2,
)
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from stubs import (
    FORWARD,
    PROMPT,
    SESSION_ID,
    TRACER_PROVIDER,
    in_baggage,
    instrumented,
    traced,
)

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayPoolManager,
    gateway_headers,
    session_scope,
)
from cagent_session.headers import USER_AGENT
from cagent_session.integrations.httpx import GatewayTransport
from cagent_session.integrations.httpx2 import GatewayTransport as GatewayTransportHttpx2

SESSION = "session-1"
BODY = json.dumps(PROMPT).encode()
TRANSPORT, INSTRUMENT, OPENTELEMETRY = "transport", "`instrument(gateway)`", "OpenTelemetry"


def tables() -> Iterator[Table]:
    rows, figures = [], {}
    with a_server() as url, contextlib.ExitStack() as opened, session_scope(SESSION):
        for library, cases in clients(url, opened).items():
            times = measure(cases, rounds=101)
            plain = times.pop("plain")
            shares = {case: ratio(plain, times[case]) for case in times}
            cells = map("{:.3f}".format, shares.values())
            rows.append([library, f"{1 / median(plain):.0f}/s", *cells])
            figures |= {f"{library}, {case}": share for case, share in shares.items()}
    head = ["client", "plain", TRANSPORT, INSTRUMENT, OPENTELEMETRY]
    yield Table("loopback", head, rows, figures)


@contextlib.contextmanager
def a_server() -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def clients(url: str, opened: contextlib.ExitStack) -> dict[str, dict[str, Case]]:
    """For each library, what sends one request. All but OpenTelemetry's send the same bytes.

    The requests are made beforehand: setting so many headers by hand takes the libraries longer
    than our transports take.
    """
    gateway = Gateway(url, forward=FORWARD, provider="openai")
    # What the others have to be told, and a transport of ours finds out.
    told = gateway_headers(FORWARD, provider="openai")
    told |= {SESSION_ID: SESSION, "User-Agent": USER_AGENT}

    def with_requests(adapter: requests.adapters.HTTPAdapter, headers: dict[str, str]) -> Any:
        http = opened.enter_context(requests.Session())
        http.trust_env = False
        http.mount("http://", adapter)
        request = http.prepare_request(requests.Request("POST", url, headers, data=BODY))
        return lambda: http.send(request)

    def with_urllib3(http: urllib3.PoolManager, headers: dict[str, str]) -> Any:
        opened.enter_context(http)
        return lambda: http.request("POST", url, body=BODY, headers=headers)

    def with_httpx(http: Any, headers: dict[str, str]) -> Any:
        opened.enter_context(http)
        request = http.build_request("POST", url, content=BODY, headers=headers)
        return lambda: http.send(request)

    adapter = requests.adapters.HTTPAdapter
    return {
        "requests": compare(
            gateway,
            plain=with_requests(adapter(), told),
            ours=with_requests(GatewayAdapter(gateway), {}),
            bare=with_requests(adapter(), {}),
            theirs=Within(lambda: traced(RequestsInstrumentor), with_requests(adapter(), told)),
        ),
        "urllib3": compare(
            gateway,
            plain=with_urllib3(urllib3.PoolManager(), told),
            ours=with_urllib3(GatewayPoolManager(gateway), {}),
            bare=with_urllib3(urllib3.PoolManager(), {}),
            theirs=Within(
                lambda: traced(URLLib3Instrumentor), with_urllib3(urllib3.PoolManager(), told)
            ),
        ),
    } | {
        library.__name__: compare(
            gateway,
            plain=with_httpx(library.Client(transport=library.HTTPTransport()), told),
            ours=with_httpx(library.Client(transport=ours(gateway)), {}),
            bare=with_httpx(library.Client(transport=library.HTTPTransport()), {}),
            theirs=Within(
                in_baggage,
                with_httpx(
                    library.Client(transport=theirs(library.HTTPTransport(), TRACER_PROVIDER)), told
                ),
            ),
        )
        for library, ours, theirs in (
            (httpx, GatewayTransport, SyncOpenTelemetryTransport),
            (httpx2, GatewayTransportHttpx2, SyncOpenTelemetryTransportHttpx2),
        )
    }


def compare(
    gateway: Gateway,
    *,
    plain: Callable[[], object],
    ours: Callable[[], object],
    bare: Callable[[], object],
    theirs: Case,
) -> dict[str, Case]:
    return {
        "plain": plain,
        TRANSPORT: ours,
        INSTRUMENT: Within(lambda: instrumented(gateway), bare),
        OPENTELEMETRY: theirs,
    }


if __name__ == "__main__":
    show(tables())
