"""``cagent-session demo``: a small agent at work, and what its calls looked like on the wire."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import requests

from .. import Gateway, SessionThreadPoolExecutor, bind_session, session_from
from ..headers import COMPACTING, FORWARD, GENERATING_TITLE, PARENT_SESSION_ID, PREFIX, SESSION_ID
from ..testing import RecordedRequest, RecordingGateway
from .console import show

MAIN, SUB, NOBODY = "session-main", "session-sub", None
TITLE, COMPACTION = {GENERATING_TITLE: "1"}, {COMPACTING: "1"}
_TOKENS = ("prompt_tokens", "completion_tokens")


@dataclass
class Session:
    """One conversation with an agent."""

    id: str


class Agent:
    """A run loop as a generator, with tools, title generation and compaction around it."""

    def __init__(self, gateway: Gateway, provider_url: str) -> None:
        self.gateway = gateway
        self.provider_url = provider_url
        self.http: requests.Session = requests.Session()
        self.http.trust_env = False  # both servers are on this machine, past every proxy
        gateway.mount(self.http)

    def ask(self, work: str, content: str, headers: Mapping[str, str] | None = None) -> str:
        """One call of the model; ``work`` says in the records what it was for."""
        return self._post(self.gateway.endpoint("v1/chat/completions"), work, content, headers)

    def ask_directly(self, work: str, content: str) -> str:
        """The same at the provider, past the gateway."""
        return self._post(f"{self.provider_url}/v1/chat/completions", work, content)

    def _post(
        self, url: str, work: str, content: str, headers: Mapping[str, str] | None = None
    ) -> str:
        messages = [{"role": "user", "content": content}]
        prompt: Any = {"model": "demo-model", "messages": messages, "metadata": {"work": work}}
        response = self.http.post(url, json=prompt, headers=headers, timeout=10)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])

    @session_from("session.id")
    def run(self, session: Session, prompt: str) -> Iterator[str]:
        """Answer ``prompt`` step by step."""
        title = threading.Thread(target=bind_session(self.generate_title), args=(prompt,))
        title.start()
        yield self.ask("run loop, first turn", prompt)
        with SessionThreadPoolExecutor(max_workers=2) as pool:
            yield from pool.map(self.use_tool, ["weather", "calendar"])
        yield from self.delegate(prompt)
        yield self.ask_directly("direct provider call", "embed this")
        yield self.ask("run loop, last turn", "Put it all together.")
        title.join()

    def use_tool(self, tool: str) -> str:
        """What a tool asks the model, in a thread of the pool."""
        return self.ask(f"tool in a pool: {tool}", f"Which arguments does {tool} need?")

    def generate_title(self, prompt: str) -> str:
        """Run in the background, next to the run loop."""
        return self.ask("title in a thread", f"Give this a title: {prompt}", TITLE)

    def delegate(self, prompt: str) -> Iterator[str]:
        """Let a sub-agent work in a session of its own."""
        return self.run_sub_agent(Session(SUB), prompt)

    @session_from("session.id")
    def run_sub_agent(self, session: Session, prompt: str) -> Iterator[str]:
        """The loop of the sub-agent."""
        yield self.ask("sub-agent, first turn", prompt)
        yield self.ask("sub-agent, last turn", "Sum it up for the main agent.")

    @session_from("session.id")
    def compact(self, session: Session) -> str:
        """Shorten the conversation, when the user asks for it."""
        return self.ask("manual compaction", "Summarize the conversation so far.", COMPACTION)


@dataclass(frozen=True)
class Call:
    """What a call was for, where it should go, and with what on it."""

    work: str
    to_gateway: bool
    session_id: str | None
    parent: str | None = None
    marks: Mapping[str, str] = field(default_factory=dict)


EXPECTED = [
    Call("run loop, first turn", True, MAIN),
    Call("caller, between two steps", True, NOBODY),
    Call("tool in a pool: weather", True, MAIN),
    Call("tool in a pool: calendar", True, MAIN),
    Call("title in a thread", True, MAIN, marks=TITLE),
    Call("sub-agent, first turn", True, SUB, MAIN),
    Call("sub-agent, last turn", True, SUB, MAIN),
    Call("direct provider call", False, NOBODY),
    Call("run loop, last turn", True, MAIN),
    Call("manual compaction", True, MAIN, marks=COMPACTION),
]

LEGEND = """\
A small agent has run on this machine. Its calls of the model, as they arrived on the wire:

  TO       the gateway, or the provider past it
  SESSION  X-Cagent-Session-Id, who is billed
  PARENT   X-Cagent-Parent-Session-Id, for whom a sub-agent works
  MARK     X-Cagent-GeneratingTitle or X-Cagent-Compacting, what docker-agent says of such calls
  FORWARD  X-Cagent-Forward, the provider that the gateway is to relay to
  -        no such header
"""


class Arrived(NamedTuple):
    """A call that arrived somewhere."""

    at_gateway: bool
    request: RecordedRequest


def main() -> int:
    """Run the agent, print what arrived, and give back the exit status."""
    with RecordingGateway() as gateway, RecordingGateway() as provider:
        where = Gateway(
            gateway.url, forward=provider.url, provider="demo", parent_header=PARENT_SESSION_ID
        )
        agent = Agent(where, provider.url)
        session = Session(MAIN)
        steps = agent.run(session, "What is on today, and shall I take an umbrella?")
        next(steps)
        agent.ask("caller, between two steps", "Are you there?")
        for _ in steps:
            pass
        agent.compact(session)
        agent.http.close()
    arrived = [Arrived(True, request) for request in gateway.requests]
    arrived += [Arrived(False, request) for request in provider.requests]
    rows, wrong = _calls(arrived, provider.url)
    if wrong:
        verdict = f"WRONG: {wrong} of {len(EXPECTED)} calls were not attributed as they should be."
    else:
        verdict = f"All {len(EXPECTED)} calls were attributed rightly, as they arrived on the wire."
    bill = ["What the gateway bills; a token is a word:", "", *_table(_bill(gateway), numbers=True)]
    lines = [LEGEND, *_table(rows), "", *bill, "", verdict, ""]
    return show("\n".join(lines)) or int(wrong > 0)


def _calls(arrived: list[Arrived], forward: str) -> tuple[list[tuple[str, ...]], int]:
    """A row for each call, and how many of them are wrong."""
    rows: list[tuple[str, ...]] = [("CALL", "TO", "SESSION", "PARENT", "MARK", "FORWARD", "")]
    wrong = 0
    for call in EXPECTED:
        found = [each for each in arrived if _work(each.request) == call.work]
        is_right = len(found) == 1 and _is_right(call, found[0], forward)
        wrong += not is_right
        verdict = "ok" if is_right else "WRONG"
        rows += [(call.work, *_on_the_wire(each), verdict) for each in found]
        if not found:
            rows.append((call.work, "nowhere", "-", "-", "-", "-", verdict))
    return rows, wrong


def _is_right(call: Call, arrived: Arrived, forward: str) -> bool:
    expected = {
        SESSION_ID: call.session_id,
        PARENT_SESSION_ID: call.parent,
        FORWARD: forward,
        GENERATING_TITLE: None,
        COMPACTING: None,
        **call.marks,
    }
    headers = arrived.request.headers
    if not call.to_gateway:
        identifiers = [name for name in headers if name.lower().startswith(PREFIX)]
        return not arrived.at_gateway and not identifiers
    as_expected = [headers.get(name) == value for name, value in expected.items()]
    return arrived.at_gateway and all(as_expected)


def _on_the_wire(arrived: Arrived) -> tuple[str, ...]:
    request = arrived.request
    marks = [name for name in (GENERATING_TITLE, COMPACTING) if name in request.headers]
    return (
        "gateway" if arrived.at_gateway else "provider",
        request.session_id or "-",
        request.parent_session_id or "-",
        ", ".join(mark.removeprefix("X-Cagent-") for mark in marks) or "-",
        request.forward or "-",
    )


def _work(request: RecordedRequest) -> str:
    return str(request.json["metadata"]["work"])


def _bill(gateway: RecordingGateway) -> list[tuple[str, ...]]:
    """A row for each session, a sub-agent's below its parent's, and one for no session."""
    parents = {each.session_id: each.parent_session_id for each in gateway.requests}
    sessions = gateway.sessions

    def rows_of(session_id: str, depth: int) -> Iterator[tuple[str, ...]]:
        yield _row("  " * depth + session_id, sessions[session_id])
        children = [child for child in sessions if parents[child] == session_id]
        for child in sorted(children):
            yield from rows_of(child, depth + 1)
        if children:
            yield _row("  " * depth + "  family total", gateway.family(session_id))

    rows: list[tuple[str, ...]] = [("BILL FOR", "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS")]
    for session_id in sorted(sessions):
        if parents[session_id] not in sessions:
            rows += rows_of(session_id, 0)
    outside = [each for each in gateway.audit_log if each["session_id"] is None]
    total = {key: sum(each[key] for each in outside) for key in _TOKENS}
    return [*rows, _row("(no session)", {"requests": len(outside), **total})]


def _row(name: str, usage: Mapping[str, int]) -> tuple[str, ...]:
    return (name, *(str(usage[key]) for key in ("requests", *_TOKENS)))


def _table(rows: Sequence[tuple[str, ...]], numbers: bool = False) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        align = str.rjust if numbers else str.ljust
        cells = [first.ljust(widths[0]), *map(align, others, widths[1:])]
        yield "  ".join(cells).rstrip()
