"""What this package costs, next to what else one could do. Prints Markdown.

python benchmarks/bench.py             all of it, a few minutes
python benchmarks/bench.py send scope  some of it
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import httpx
import requests
import structlog
import urllib3
from harness import measure, median, ratio
from opentelemetry import baggage, context
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayPoolManager,
    current_session_id,
    gateway_headers,
    session_scope,
)
from cagent_session.headers import USER_AGENT
from cagent_session.integrations.httpx import GatewayTransport

FORWARD = "https://api.openai.com/v1"
GATEWAY = Gateway(
    "https://gateway.example/prefix",
    forward=FORWARD,
    provider="openai",
    model="gpt-4o-mini",
    model_name="main",
)
OWNED = GATEWAY.endpoint("v1/chat/completions")
ELSEWHERE = "https://api.example/v1/chat/completions"
PROMPT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}


class AddHeadersIdiom(HTTPAdapter):
    """Changes the caller's request, which a redirect then copies."""

    def add_headers(self, request: requests.PreparedRequest, **_: Any) -> None:
        request.headers["X-Cagent-Session-Id"] = current_session_id()


class CopyIdiom(HTTPAdapter):
    """Copies the whole request with the library's own method."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        request = request.copy()
        request.headers["X-Cagent-Session-Id"] = current_session_id()
        return super().send(request, **options)


def canned_response() -> requests.Response:
    response = requests.Response()
    response.status_code = 200
    response._content = b""
    response.raw = urllib3.HTTPResponse()
    return response


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """``HTTPAdapter.send`` and urllib3's pools answer at once."""
    answer, low_answer = canned_response(), urllib3.HTTPResponse(status=200)

    def send(self: HTTPAdapter, request: requests.PreparedRequest, **options: Any) -> Any:
        self.add_headers(request, **options)
        return answer

    def urlopen(self: Any, *args: Any, **options: Any) -> Any:
        return low_answer

    kept = HTTPAdapter.send, HTTPConnectionPool.urlopen
    HTTPAdapter.send, HTTPConnectionPool.urlopen = send, urlopen
    try:
        yield
    finally:
        HTTPAdapter.send, HTTPConnectionPool.urlopen = kept


def prepare(url: str, headers: dict[str, str] | None = None) -> requests.PreparedRequest:
    return requests.Session().prepare_request(
        requests.Request("POST", url, json=PROMPT, headers=headers)
    )


def sender(
    adapter: HTTPAdapter, request: requests.PreparedRequest, http: requests.Session | None = None
) -> Callable[[], object]:
    http = http or requests.Session()
    http.mount("https://", adapter)
    options = {"proxies": {}, "verify": True, "stream": False, "cert": None}
    return lambda: http.send(request, allow_redirects=False, **options)


def instrumented_session() -> type[requests.Session]:
    """A session of which alone OpenTelemetry's instrumentation traces the calls."""
    RequestsInstrumentor().instrument(tracer_provider=TracerProvider())
    send = requests.Session.send
    RequestsInstrumentor().uninstrument()
    return type("InstrumentedSession", (requests.Session,), {"send": send})


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs"


def bench_send() -> None:
    """requests, the network stubbed out."""
    marked = prepare(OWNED, gateway_headers(FORWARD, provider="openai"))
    plain, elsewhere = prepare(OWNED), prepare(ELSEWHERE)
    token = context.attach(baggage.set_baggage("session.id", "session-1"))
    with no_network(), session_scope("session-1"):
        times = measure(
            {
                "plain `HTTPAdapter`": sender(HTTPAdapter(), marked),
                "the `request.copy()` idiom": sender(CopyIdiom(), marked),
                "the `add_headers` idiom": sender(AddHeadersIdiom(), marked.copy()),
                "`GatewayAdapter()`, bound": sender(GatewayAdapter(), marked),
                "`GatewayAdapter()`, not bound": sender(GatewayAdapter(), plain),
                "`GatewayAdapter(gateway)`, owned": sender(GatewayAdapter(GATEWAY), plain),
                "`GatewayAdapter(gateway)`, not owned": sender(GatewayAdapter(GATEWAY), elsewhere),
                "OpenTelemetry's instrumentation, baggage": sender(
                    HTTPAdapter(), marked.copy(), instrumented_session()()
                ),
            }
        )
    context.detach(token)
    print_added("requests: cost added to the plain adapter", times)


def print_added(title: str, times: dict[str, list[float]]) -> None:
    """Cost added to the first case, as a ratio to what the second adds."""
    base, unit, *_ = times
    rows = []
    for name in list(times)[1:]:
        added = statistics.median(a - b for a, b in zip(times[name], times[base], strict=True))
        rows.append([name, microseconds(added), f"{ratio(times, name, unit, less=base):.2f} x"])
    table(title, ["case", "added", f"as a multiple of {unit}"], rows)


def bench_transports() -> None:
    """urllib3 and httpx, the network stubbed out."""
    headers = dict(prepare(OWNED).headers)
    marked = headers | gateway_headers(FORWARD)

    def ask(http: Any, url: str, with_headers: dict[str, str]) -> Callable[[], object]:
        return lambda: http.urlopen("POST", url, headers=with_headers, body=b"")

    with no_network(), session_scope("session-1"):
        times = measure(
            {
                "plain `PoolManager`": ask(urllib3.PoolManager(), OWNED, marked),
                "`GatewayPoolManager()`, bound": ask(GatewayPoolManager(), OWNED, marked),
                "`GatewayPoolManager()`, not bound": ask(GatewayPoolManager(), OWNED, headers),
                "`GatewayPoolManager(gateway)`, owned": ask(
                    GatewayPoolManager(GATEWAY), OWNED, headers
                ),
                "`GatewayPoolManager(gateway)`, not owned": ask(
                    GatewayPoolManager(GATEWAY), ELSEWHERE, headers
                ),
            }
        )
    print_added("urllib3: cost added to the plain manager", times)

    class Canned(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200)

    def handle(transport: httpx.BaseTransport, request: httpx.Request) -> Callable[[], object]:
        return lambda: transport.handle_request(request)

    def request(url: str, with_headers: dict[str, str]) -> httpx.Request:
        return httpx.Client().build_request("POST", url, headers=with_headers)

    inner = Canned()
    with session_scope("session-1"):
        times = measure(
            {
                "plain transport": handle(inner, request(OWNED, marked)),
                "`GatewayTransport()`, bound": handle(
                    GatewayTransport(None, inner), request(OWNED, marked)
                ),
                "`GatewayTransport()`, not bound": handle(
                    GatewayTransport(None, inner), request(OWNED, {})
                ),
                "`GatewayTransport(gateway)`, owned": handle(
                    GatewayTransport(GATEWAY, inner), request(OWNED, {})
                ),
                "`GatewayTransport(gateway)`, not owned": handle(
                    GatewayTransport(GATEWAY, inner), request(ELSEWHERE, {})
                ),
            }
        )
    print_added("httpx: cost added to the plain transport", times)


def serve(ready: Any) -> None:
    """Answers every request on every connection with the same bytes."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    def talk(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        while data := connection.recv(65536):
            received += data
            # The body of the benchmark's request ends like this, and nothing else does.
            if received.endswith(b"}]}"):
                received = b""
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        ready.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=talk, args=(connection,), daemon=True).start()


def bench_loopback() -> None:
    """End to end over loopback, keep-alive, the server in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    gateway = Gateway(url, forward=FORWARD, provider="openai")
    # What the plain clients send to put the same bytes on the wire.
    same = dict(gateway_headers(FORWARD, provider="openai"))
    same |= {"X-Cagent-Session-Id": "session-1", "User-Agent": USER_AGENT}
    body = json.dumps(PROMPT).encode()

    def with_requests(adapter: HTTPAdapter, headers: dict[str, str]) -> Callable[[], object]:
        http = requests.Session()
        http.mount("http://", adapter)
        request = http.prepare_request(requests.Request("POST", url, data=body, headers=headers))
        return lambda: http.send(request)

    def with_urllib3(http: urllib3.PoolManager, headers: dict[str, str]) -> Callable[[], object]:
        return lambda: http.request("POST", url, body=body, headers=headers)

    def with_httpx(http: httpx.Client, headers: dict[str, str]) -> Callable[[], object]:
        request = http.build_request("POST", url, content=body, headers=headers)
        return lambda: http.send(request)

    clients: dict[str, tuple[Any, Any, Any]] = {
        "requests": (with_requests, HTTPAdapter, GatewayAdapter),
        "urllib3": (with_urllib3, urllib3.PoolManager, GatewayPoolManager),
        "httpx": (
            with_httpx,
            httpx.Client,
            lambda gateway: httpx.Client(transport=GatewayTransport(gateway)),
        ),
    }
    rows = []
    with session_scope("session-1"):
        for name, (client, make_plain, make_ours) in clients.items():
            times = measure(
                {
                    "bare": client(make_plain(), {}),
                    "same": client(make_plain(), same),
                    "ours": client(make_ours(gateway), {}),
                },
                rounds=61,
                seconds=0.05,
            )
            rows.append(
                [
                    name,
                    f"{1 / median(times['bare']):.0f}/s",
                    f"{ratio(times, 'same', 'ours'):.3f}",
                    f"{ratio(times, 'bare', 'ours'):.3f}",
                ]
            )
    server.terminate()
    table(
        "End to end over loopback: marked and stamped by a `Gateway`, one thread",
        ["client", "plain", "throughput to plain, same bytes", "to plain, none of the headers"],
        rows,
    )


def bench_scope() -> None:
    """Entering and leaving."""
    variable: ContextVar[str] = ContextVar("variable")
    scope = session_scope("session-1")

    def bare() -> None:
        token = variable.set("session-1")
        variable.reset(token)

    def prebuilt() -> None:
        with scope:
            pass

    def ours() -> None:
        with session_scope("session-1"):
            pass

    def of_structlog() -> None:
        with structlog.contextvars.bound_contextvars(session_id="session-1"):
            pass

    def of_opentelemetry() -> None:
        context.detach(context.attach(context.set_value("session.id", "session-1")))

    times = measure(
        {
            "a bare `ContextVar.set` and `reset`": bare,
            "`with scope:`, one object entered again and again": prebuilt,
            '`with session_scope("session-1"):`': ours,
            "OpenTelemetry's `attach` and `detach`": of_opentelemetry,
            "structlog's `bound_contextvars`": of_structlog,
        }
    )
    base = next(iter(times))
    rows = [
        [name, microseconds(median(times[name])), f"{ratio(times, name, base):.1f} x"]
        for name in times
    ]
    table("Entering and leaving a scope", ["case", "time", f"to {base}"], rows)


def bench_growth() -> None:
    """With headers, threads and depth."""
    rows = []
    with no_network(), session_scope("session-1"):
        for count in (5, 20, 80):
            headers = {f"X-Header-{number}": "value" for number in range(count - 5)}
            request = prepare(OWNED, headers)
            times = measure(
                {
                    "plain": sender(HTTPAdapter(), request),
                    "copy": sender(CopyIdiom(), request),
                    "ours": sender(GatewayAdapter(GATEWAY), request),
                },
                rounds=11,
            )
            against = ratio(times, "ours", "copy", less="plain")
            rows.append([f"{len(request.headers)} headers", f"{against:.2f} x"])
    table("Growth: headers", ["request", "owned, to the `request.copy()` idiom"], rows)

    rows = []
    request = prepare(OWNED)
    with no_network():
        for count in (1, 8, 32):
            adapters = {"plain": HTTPAdapter(), "ours": GatewayAdapter(GATEWAY)}
            times = measure(
                {name: in_threads(count, adapter, request) for name, adapter in adapters.items()},
                rounds=11,
                seconds=0.2,
            )
            added = statistics.median(
                (a - b) / (count * SENDS)
                for a, b in zip(times["ours"], times["plain"], strict=True)
            )
            rows.append([str(count), microseconds(added)])
    table("Growth: threads that share one adapter", ["threads", "added per request"], rows)

    rows = []
    for depth in (1, 10, 100):
        with contextlib.ExitStack() as stack:
            for number in range(depth - 1):
                stack.enter_context(session_scope(f"s{number}"))
            scope = session_scope("innermost")

            def enter(scope: session_scope = scope) -> None:
                with scope:
                    current_session_id()

            times = measure({"enter": enter}, rounds=11)
        rows.append([str(depth), microseconds(median(times["enter"]))])
    table("Growth: depth of scopes", ["depth", "enter, read and leave the innermost"], rows)


SENDS = 200


def in_threads(
    count: int, adapter: HTTPAdapter, request: requests.PreparedRequest
) -> Callable[[], None]:
    send = sender(adapter, request)

    def work(number: int) -> None:
        with session_scope(f"s{number}"):
            for _ in range(SENDS):
                send()

    def run() -> None:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def bench_memory() -> None:
    """After a million scopes and a million requests."""
    request = prepare(OWNED)

    def scopes() -> None:
        with session_scope("session-1"):
            pass

    rows = []
    with no_network():
        for name, case in (
            ("scopes", scopes),
            ("requests", sender(GatewayAdapter(GATEWAY), request)),
        ):
            for _ in range(1000):
                case()
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(1_000_000):
                case()
            gc.collect()
            rows.append([f"1,000,000 {name}", str(sys.getallocatedblocks() - before)])
    table("Memory", ["after", "blocks more than before"], rows)


def bench_import() -> None:
    """On top of requests."""
    code = (
        "import time; a = time.perf_counter(); import requests; b = time.perf_counter(); "
        "import cagent_session; print(b - a, time.perf_counter() - b)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    ratios, times = [], []
    with tempfile.TemporaryDirectory() as compiled:
        command = [sys.executable, "-X", f"pycache_prefix={compiled}", "-c", code]
        for number in range(31):
            run = subprocess.run(command, capture_output=True, check=True, env=environment)
            of_requests, ours = map(float, run.stdout.split())
            if number:  # the first one compiles
                ratios.append(ours / of_requests)
                times.append(ours)
    share = f"{statistics.median(ratios) * 100:.1f} %"
    rows = [["`import cagent_session`", f"{statistics.median(times) * 1e3:.1f} ms", share]]
    table("Import", ["", "time", "of `import requests`"], rows)


BENCHES = {
    name.removeprefix("bench_"): bench
    for name, bench in list(globals().items())
    if name.startswith("bench_")
}


def main(names: list[str]) -> None:
    versions = {module.__name__: module.__version__ for module in (requests, urllib3, httpx)}
    print(f"Python {platform.python_version()}, {platform.machine()}, {versions}")
    for name in names or BENCHES:
        BENCHES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
