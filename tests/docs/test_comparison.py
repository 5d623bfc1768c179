"""Every cell of the first table in docs/comparison.md, with the code that is on that page."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
import urllib3
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from support.wire import Arrived, Server, redirect, response

from cagent_session import SessionRequired, bind_session, instrument

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "comparison.md").read_text(encoding="utf-8")
CODE = {
    section.partition("\n")[0]: code
    for section in PAGE.split("\n### ")[1:]
    for code in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
}
SECTION = PAGE.partition("\n## With requests\n")[2].partition("\n## ")[0]


def rows() -> Iterator[list[str]]:
    for line in re.findall(r"^\| (.*) \|$", SECTION, re.MULTILINE):
        yield [cell.strip() for cell in line.split("|")]


_, *WAYS = next(rows())
TABLE = {case: dict(zip(WAYS, cells, strict=True)) for case, *cells in list(rows())[1:]}


class Way:
    """One way to put the session into a header, with a gateway and a stranger to send it to."""

    def __init__(self, name: str, gateway: Server, stranger: Server) -> None:
        self.name = name
        self.gateway = gateway
        self.stranger = stranger
        names: dict[str, Any] = {}
        exec(CODE[name].replace("https://gateway.example", gateway.origin), names)
        self.names = names
        self.http: requests.Session = names["http"]
        self.session: Callable[[str], AbstractContextManager[object]] = names["session"]

    def get(self, path: str = "/") -> requests.Response:
        return self.http.get(self.gateway.origin + path, timeout=10)

    def at_gateway(self) -> list[str | None]:
        return [session_in(arrived) for arrived in self.gateway.arrived]

    def at_stranger(self) -> list[str | None]:
        return [session_in(arrived) for arrived in self.stranger.arrived]


def session_in(arrived: Arrived) -> str | None:
    baggage = re.search(r"session\.id=([\w-]+)", arrived.get("baggage") or "")
    return baggage[1] if baggage else arrived.session_id


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with Server() as gateway, Server() as stranger:
        way = Way(request.param, gateway, stranger)
        with way.http:
            yield way
        if "RequestsInstrumentor" in way.names:
            RequestsInstrumentor().uninstrument()


def carried_or_lost(sessions: list[str | None]) -> str:
    return {("s1",): "carried", (None,): "lost"}[tuple(sessions)]


def leaked_or_withheld(sessions: list[str | None]) -> str:
    return {("s1",): "leaked", (None,): "withheld"}[tuple(sessions)]


def a_call(way: Way, helper: str) -> str:
    with way.session("s1"):
        way.get()
    return carried_or_lost(way.at_gateway())


def two_threads(way: Way, helper: str) -> str:
    barrier = threading.Barrier(2, timeout=10)

    def work(session_id: str) -> None:
        with way.session(session_id):
            barrier.wait()
            way.get(f"/{session_id}")
            barrier.wait()

    threads = [threading.Thread(target=work, args=[session_id]) for session_id in ("s1", "s2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    attributed = {arrived.path: session_in(arrived) for arrived in way.gateway.arrived}
    return "right" if attributed == {"/s1": "s1", "/s2": "s2"} else "mixed up"


def helped(fn: Callable[..., Any], helper: str) -> Callable[..., Any]:
    if helper == "bind_session":
        return bind_session(fn)
    if helper == "copy_context":
        return functools.partial(contextvars.copy_context().run, fn)
    return fn


def a_new_thread(way: Way, helper: str) -> str:
    with way.session("s1"):
        thread = threading.Thread(target=helped(way.get, helper))
        thread.start()
        thread.join()
    return carried_or_lost(way.at_gateway())


def a_pool_of_a_library(way: Way, helper: str) -> str:
    if helper == "require_session":
        gateway = dataclasses.replace(way.names["gateway"], require_session=True)
        way.http = requests.Session()
        gateway.mount(way.http)
    with way.session("s1"), way.http, ThreadPoolExecutor() as pool:
        if isinstance(pool.submit(way.get).exception(), SessionRequired):
            assert way.gateway.arrived == []
            return "refused"
    if getattr(sys.flags, "thread_inherit_context", False):
        pytest.skip("the page speaks of threads that inherit no context")
    return carried_or_lost(way.at_gateway())


def a_suspended_generator(way: Way, helper: str) -> str:
    def steps() -> Iterator[None]:
        way.get("/inside")
        yield

    def steps_in_session() -> Iterator[None]:
        with way.session("inner"):
            yield from steps()

    generator = way.session("inner")(steps) if helper == "@session" else steps_in_session
    with way.session("outer"):
        for _ in generator():
            way.get("/outside")
    inside, outside = way.at_gateway()
    assert inside == "inner"
    return {"outer": "right", "inner": "the generator's"}[outside]


def a_retry(way: Way, helper: str) -> str:
    adapter = way.http.get_adapter(way.gateway.origin + "/")
    adapter.max_retries = urllib3.Retry(2, status_forcelist=[503], backoff_factor=0)
    answers = iter([response(503), response()])
    way.gateway.respond = lambda request: next(answers)
    with way.session("s1"):
        way.get()
    first, second = way.at_gateway()
    assert first == "s1"
    return carried_or_lost([second])


def the_same_again(way: Way, helper: str) -> str:
    with way.session("s1"):
        request = requests.Request("GET", way.gateway.origin)
        prepared = way.http.prepare_request(request)
        way.http.send(prepared)
    way.http.send(prepared)
    first, second = way.at_gateway()
    assert first == "s1"
    return {"s1": "the first one's", None: "without"}[second]


def a_redirect_within(way: Way, helper: str) -> str:
    way.gateway.respond = lambda request: (
        redirect(307, "/there") if request.path == "/" else response()
    )
    with way.session("s1"):
        way.get()
    first, second = way.at_gateway()
    assert first == "s1"
    return carried_or_lost([second])


def a_redirect_to_a_stranger(way: Way, helper: str) -> str:
    way.gateway.respond = lambda request: redirect(307, way.stranger.origin)
    with way.session("s1"):
        way.get()
    assert way.at_gateway() == ["s1"]
    return leaked_or_withheld(way.at_stranger())


def a_copy_to_a_stranger(way: Way, helper: str) -> str:
    def elsewhere(answer: requests.Response, **kwargs: Any) -> None:
        copy = answer.request.copy()
        copy.url = way.stranger.origin
        copy.hooks = {}
        with requests.Session() as other:
            other.send(copy)

    way.http.hooks["response"].append(elsewhere)
    with way.session("s1"):
        way.get()
    return leaked_or_withheld(way.at_stranger())


def a_call_to_a_stranger(way: Way, helper: str) -> str:
    with way.session("s1"):
        way.http.get(way.stranger.origin)
    return leaked_or_withheld(way.at_stranger())


def a_client_of_a_library(way: Way, helper: str) -> str:
    gateways = [way.names["gateway"]] if helper == "instrument" else []
    with instrument(*gateways), way.session("s1"):
        requests.get(way.gateway.origin, timeout=10)
    return carried_or_lost(way.at_gateway())


def under_responses(way: Way, helper: str) -> str:
    with responses.RequestsMock() as mock:
        mock.get(way.gateway.origin)
        with way.session("s1"):
            way.get()
        headers = mock.calls[0].request.headers
    return "seen" if {"X-Cagent-Session-Id", "baggage"} & set(headers) else "not seen"


MEASURED = {
    "This package": "`GatewayAdapter(gateway)`, gateway-bound by URL",
    "Baggage": "OpenTelemetry's instrumentation, baggage",
    "add_headers": "the `add_headers` idiom",
}


def its_cost(way: Way, helper: str) -> str:
    if way.name not in MEASURED:
        return "the measure" if way.name == "Copy idiom" else "not measured"
    figures = (DOCS / "performance.md").read_text(encoding="utf-8")
    row = rf"^\| {re.escape(MEASURED[way.name])} \|[^|]* \((-?[\d.]+) x\) \|"
    ratio = float(re.findall(row, figures, re.MULTILINE)[0])
    words = {0.1: "next to nothing", 1.1: "no more", 3: "more"}
    return next((word for limit, word in words.items() if ratio < limit), "many times")


CASES = {
    "a call in a session": a_call,
    "two threads, each in its own session, one client": two_threads,
    "a new thread": a_new_thread,
    "a thread pool that a library makes itself": a_pool_of_a_library,
    "the caller's calls while a generator is suspended": a_suspended_generator,
    "a retry by `Retry`": a_retry,
    "the same request again, outside every session": the_same_again,
    "a redirect within the gateway": a_redirect_within,
    "a redirect to a stranger": a_redirect_to_a_stranger,
    "the request that a response hook copies, to a stranger": a_copy_to_a_stranger,
    "a call to a stranger": a_call_to_a_stranger,
    "a client that a library makes itself": a_client_of_a_library,
    "a call under `responses`": under_responses,
    "its cost, next to the copy idiom's": its_cost,
}


def test_comparison_table_has_a_row_per_case_and_a_column_per_way():
    assert list(TABLE) == list(CASES)
    assert list(CODE) == WAYS


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_comparison_cell_is_what_happens(case, way, request):
    name = request.node.callspec.params["way"]
    outcome, _, helper = TABLE[case][name].partition(", with ")
    assert CASES[case](way, helper.strip("`")) == outcome
