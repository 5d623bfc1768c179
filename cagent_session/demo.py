"""``cagent-session demo``: a small agent at work, and what its calls looked like on the wire."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import requests

from . import Gateway, SessionThreadPoolExecutor, bind_session, session_from
from .headers import FORWARD
from .testing import RecordedRequest, RecordingGateway

MAIN, SUB, NOBODY = "session-main", "session-sub", None


@dataclass
class Session:
    """One conversation with an agent."""

    id: str


class Agent:
    """A run loop as a generator, with tools, title generation and compaction around it."""

    def __init__(self, gateway: Gateway, provider_url: str) -> None:
        self.gateway = gateway
        self.provider_url = provider_url
        self.http = requests.Session()
        self.http.trust_env = False  # both servers are on this machine, past every proxy
        gateway.mount(self.http)

    def ask(self, work: str, content: str) -> str:
        """One call of the model; ``work`` says in the records what it was for."""
        return self._post(self.gateway.endpoint("v1/chat/completions"), work, content)

    def ask_directly(self, work: str, content: str) -> str:
        """The same at the provider, past the gateway."""
        return self._post(f"{self.provider_url}/v1/chat/completions", work, content)

    def _post(self, url: str, work: str, content: str) -> str:
        messages = [{"role": "user", "content": content}]
        prompt: Any = {"model": "demo-model", "messages": messages, "metadata": {"work": work}}
        response = self.http.post(url, json=prompt, timeout=10)
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
        return self.ask(f"tool call in a pool: {tool}", f"Which arguments does {tool} need?")

    def generate_title(self, prompt: str) -> str:
        """Run in the background, next to the run loop."""
        return self.ask("title generation in a thread", f"Give this a title: {prompt}")

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
        return self.ask("manual compaction", "Summarize the conversation so far.")


class Call(NamedTuple):
    """What a call was for, where it should go, and whose bill it should be on."""

    work: str
    to_gateway: bool
    session_id: str | None


EXPECTED = [
    Call("run loop, first turn", True, MAIN),
    Call("caller, between two steps", True, NOBODY),
    Call("tool call in a pool: weather", True, MAIN),
    Call("tool call in a pool: calendar", True, MAIN),
    Call("title generation in a thread", True, MAIN),
    Call("sub-agent, first turn", True, SUB),
    Call("sub-agent, last turn", True, SUB),
    Call("direct provider call", False, NOBODY),
    Call("run loop, last turn", True, MAIN),
    Call("manual compaction", True, MAIN),
]


def main() -> int:
    """Run the agent, print what arrived, and give back the exit status."""
    with RecordingGateway() as gateway, RecordingGateway() as provider:
        agent = Agent(Gateway(gateway.url, forward=provider.url, provider="demo"), provider.url)
        session = Session(MAIN)
        steps = agent.run(session, "What is on today, and shall I take an umbrella?")
        next(steps)
        agent.ask("caller, between two steps", "Are you there?")
        for _ in steps:
            pass
        agent.compact(session)
        agent.http.close()
        arrived = [(True, request) for request in gateway.requests]
        arrived += [(False, request) for request in provider.requests]
        bills = gateway.sessions
    wrong = _print_calls(arrived)
    _print_bills(bills)
    print()
    if wrong:
        print(f"WRONG: {wrong} of {len(EXPECTED)} calls were not attributed as they should be.")
        return 1
    print(f"All {len(EXPECTED)} calls were attributed rightly, as they arrived on the wire.")
    return 0


def _print_calls(arrived: list[tuple[bool, RecordedRequest]]) -> int:
    by_work: dict[str, list[tuple[bool, RecordedRequest]]] = {}
    for at_gateway, request in arrived:
        by_work.setdefault(_work(request), []).append((at_gateway, request))
    rows = [("WORK", "WENT TO", "SESSION ON THE WIRE", "MARKER ON THE WIRE", "")]
    wrong = 0
    for call in EXPECTED:
        found = by_work.get(call.work, [])
        is_right = len(found) == 1 and _is_right(call, *found[0])
        wrong += not is_right
        verdict = "ok" if is_right else "WRONG"
        for at_gateway, request in found:
            destination = "gateway" if at_gateway else "provider"
            session_id, forward = request.session_id or "-", request.forward or "-"
            rows.append((call.work, destination, session_id, forward, verdict))
        if not found:
            rows.append((call.work, "nowhere", "-", "-", verdict))
    _print_table(rows)
    return wrong


def _is_right(call: Call, at_gateway: bool, request: RecordedRequest) -> bool:
    identifiers = [name for name in request.headers if name.lower().startswith("x-cagent-")]
    return (
        at_gateway == call.to_gateway
        and request.session_id == call.session_id
        and (FORWARD in identifiers if call.to_gateway else not identifiers)
    )


def _work(request: RecordedRequest) -> str:
    return str(request.json["metadata"]["work"])


def _print_bills(bills: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = [("BILL FOR", "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS")]
    rows += [
        (
            session_id,
            *(str(usage[key]) for key in ("requests", "prompt_tokens", "completion_tokens")),
        )
        for session_id, usage in sorted(bills.items())
    ]
    print()
    _print_table(rows)


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
