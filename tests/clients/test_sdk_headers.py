"""Every cell of the table about SDKs in docs/comparison.md, with the code that is on that page."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.wire import Server, redirect, response

from cagent_session import Gateway, instrument, session_scope

openai = pytest.importorskip("openai")

PAGE = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## With an SDK\n")[2].partition("\n## ")[0]
CODE = {
    section.partition("\n")[0]: code
    for section in PAGE.split("\n### ")[1:]
    for code in re.findall(r"^```py\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
}
ROWS = [line.split(" | ") for line in re.findall(r"^\| (.*) \|$", SECTION, re.MULTILINE)]
WAYS = ROWS[0][1:]
TABLE = {case: dict(zip(WAYS, cells, strict=True)) for case, *cells in ROWS[1:]}

CALL = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}
MESSAGE = {"role": "assistant", "content": "Hello!"}
ANSWER = response(
    body=json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o-mini",
            "choices": [{"index": 0, "finish_reason": "stop", "message": MESSAGE}],
        }
    ).encode()
)
# The SDK waits half a second, unless it is told to wait less.
BUSY = response(503, headers={"Retry-After-Ms": "1"})


class Way:
    """One way to have an SDK send the session, with a gateway and a stranger to send it to."""

    def __init__(self, name: str, gateway: Server, stranger: Server) -> None:
        self.gateway = gateway
        self.stranger = stranger
        gateway.respond = stranger.respond = lambda request: ANSWER
        names: dict[str, Any] = {}
        exec(CODE[name].replace("https://gateway.example", gateway.origin), names)
        self.client = names["client"]
        self.ask: Callable[..., object] = names["ask"]

    def sessions(self) -> list[str | None]:
        return [arrived.session_id for arrived in self.gateway.arrived]


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with Server() as gateway, Server() as stranger:
        way = Way(request.param, gateway, stranger)
        with way.client:
            yield way


def carried_or_lost(sessions: list[str | None]) -> str:
    return {("s1",): "carried", (None,): "lost"}[tuple(sessions)]


def a_call(way: Way, helper: str) -> str:
    way.ask("s1", **CALL)
    return carried_or_lost(way.sessions())


def a_retry(way: Way, helper: str) -> str:
    answers = iter([BUSY, ANSWER])
    way.gateway.respond = lambda request: next(answers)
    way.ask("s1", **CALL)
    first, second = way.sessions()
    assert first == "s1"
    return carried_or_lost([second])


def two_threads(way: Way, helper: str) -> str:
    barrier = threading.Barrier(2, timeout=10)

    def work(session_id: str) -> None:
        barrier.wait()
        way.ask(session_id, **CALL | {"user": session_id})

    threads = [threading.Thread(target=work, args=[session_id]) for session_id in ("s1", "s2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    attributed = {
        arrived.session_id: arrived.body for arrived in way.gateway.arrived if arrived.session_id
    }
    right = all(session_id.encode() in body for session_id, body in attributed.items())
    return "right" if right and len(attributed) == 2 else "mixed up"


def a_call_of_a_framework(way: Way, helper: str) -> str:
    """A framework that has your client makes a call of its own before yours."""
    completions = type(way.client.chat.completions)
    create = completions.create

    def framework(self: Any, **options: Any) -> Any:
        create(way.client.chat.completions, **CALL)
        return create(self, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completions, "create", framework)
        way.ask("s1", **CALL)
    return carried_or_lost(way.sessions()[:1])


def a_client_of_a_library(way: Way, helper: str) -> str:
    gateway = Gateway(way.gateway.origin, forward="https://api.openai.com/v1")
    gateways = [gateway] if helper == "instrument" else []
    with instrument(*gateways), session_scope("s1"):
        base_url = gateway.endpoint("v1")
        with openai.OpenAI(api_key="...", base_url=base_url) as client:
            client.chat.completions.create(**CALL)
    return carried_or_lost(way.sessions())


def a_redirect_to_a_stranger(way: Way, helper: str) -> str:
    way.gateway.respond = lambda request: redirect(307, way.stranger.origin)
    way.ask("s1", **CALL)
    assert way.sessions() == ["s1"]
    (arrived,) = way.stranger.arrived
    return {"s1": "leaked", None: "withheld"}[arrived.session_id]


CASES = {
    "a call in a session": a_call,
    "a retry by the SDK": a_retry,
    "two threads, each in its own session": two_threads,
    "a call that a framework makes with your client": a_call_of_a_framework,
    "a client that a library makes itself": a_client_of_a_library,
    "a redirect to a stranger": a_redirect_to_a_stranger,
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
