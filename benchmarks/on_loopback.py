"""How many requests a client can send over loopback, to a server in another process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import instructions
import requests
import urllib3
from comparison import Comparison
from harness import Case, Table, Within, measure, median, ratio, show
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.instrumentation.httpx import (
    SyncOpenTelemetryTransport,
    SyncOpenTelemetryTransportHttpx2,
)
from stubs import (
    FORWARD,
    PROMPT,
    SESSION_ID,
    in_baggage,
    instrumented,
    traced,
    tracer_provider,
)

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayPoolManager,
    gateway_headers,
    session_scope,
)
from cagent_session._gate.protocol import USER_AGENT
from cagent_session.integrations.aiohttp import GatewayMiddleware
from cagent_session.integrations.httpx import GatewayTransport
from cagent_session.integrations.httpx2 import GatewayTransport as GatewayTransportHttpx2

SESSION = "session-1"
BODY = json.dumps(PROMPT).encode()
PLAIN, TRANSPORT = "plain", "transport"
INSTRUMENT, OPENTELEMETRY = "`instrument(gateway)`", "OpenTelemetry"


def tables() -> Iterator[Table]:
    counts = instructions.count("on_loopback") if instructions.wanted else {}
    rows = []
    for comparison in comparisons():
        library = comparison.name
        times = measure(comparison.cases, rounds=101)
        counted = counts.get(library, {})
        for case in comparison.cases:
            share = ratio(times[PLAIN], times[case])
            cells = [f"{1 / median(times[case]):.0f}", f"{share:.2f}", "-"]
            if case in counted:
                cells[2] = f"{ratio(counted[PLAIN], counted[case]):.2f}"
            rows.append([f"{library}, {case}", *cells])
    head = ["client", "requests a second", "share, by the clock", "share, in instructions"]
    yield Table("loopback", head, rows)


def comparisons() -> Iterator[Comparison]:
    with a_server() as url, contextlib.ExitStack() as opened, session_scope(SESSION):
        for library, cases in clients(url, opened).items():
            yield Comparison(library, PLAIN, cases)


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

    The requests are made beforehand, but for aiohttp's and urllib3's: setting so many headers by
    hand takes the libraries longer than our transports take.
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

    loop = asyncio.new_event_loop()
    opened.callback(loop.close)

    def with_aiohttp(headers: dict[str, str], **options: Any) -> Any:
        async def a_client() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(**options)

        http = loop.run_until_complete(a_client())
        opened.callback(lambda: loop.run_until_complete(http.close()))

        async def post() -> None:
            async with http.post(url, data=BODY, headers=headers) as response:
                await response.read()

        return lambda: loop.run_until_complete(post())

    adapter = requests.adapters.HTTPAdapter
    return (
        {
            "requests": cases_of(
                gateway,
                plain=with_requests(adapter(), told),
                ours=with_requests(GatewayAdapter(gateway), {}),
                untold=with_requests(adapter(), {}),
                theirs=Within(
                    lambda: traced("requests", "RequestsInstrumentor"),
                    with_requests(adapter(), told),
                ),
            ),
            "urllib3": cases_of(
                gateway,
                plain=with_urllib3(urllib3.PoolManager(), told),
                ours=with_urllib3(GatewayPoolManager(gateway), {}),
                untold=with_urllib3(urllib3.PoolManager(), {}),
                theirs=Within(
                    lambda: traced("urllib3", "URLLib3Instrumentor"),
                    with_urllib3(urllib3.PoolManager(), told),
                ),
            ),
        }
        | {
            library.__name__: cases_of(
                gateway,
                plain=with_httpx(library.Client(transport=library.HTTPTransport()), told),
                ours=with_httpx(library.Client(transport=ours(gateway)), {}),
                untold=with_httpx(library.Client(transport=library.HTTPTransport()), {}),
                theirs=Within(
                    in_baggage,
                    with_httpx(
                        library.Client(
                            transport=theirs(library.HTTPTransport(), tracer_provider())
                        ),
                        told,
                    ),
                ),
            )
            for library, ours, theirs in (
                (httpx, GatewayTransport, SyncOpenTelemetryTransport),
                (httpx2, GatewayTransportHttpx2, SyncOpenTelemetryTransportHttpx2),
            )
        }
        | {
            "aiohttp": cases_of(
                gateway,
                plain=with_aiohttp(told),
                ours=with_aiohttp({}, middlewares=[GatewayMiddleware(gateway)]),
                untold=with_aiohttp({}),
                theirs=Within(
                    in_baggage,
                    with_aiohttp(
                        told, trace_configs=[create_trace_config(tracer_provider=tracer_provider())]
                    ),
                ),
            ),
        }
    )


def cases_of(
    gateway: Gateway,
    *,
    plain: Callable[[], object],
    ours: Callable[[], object],
    untold: Callable[[], object],
    theirs: Case,
) -> dict[str, Case]:
    return {
        PLAIN: plain,
        TRANSPORT: ours,
        INSTRUMENT: Within(lambda: instrumented(gateway), untold),
        OPENTELEMETRY: theirs,
    }


if __name__ == "__main__":
    show(tables())
