"""``cagent-session demo``: run a small agent, and show what each of its calls sends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import requests

from .. import Gateway, SessionThreadPoolExecutor, bind_session, no_session, session_from
from .._gate.validation import PREFIX
from ..headers import COMPACTING, FORWARD, GENERATING_TITLE, PARENT_SESSION_ID, SESSION_ID
from ..testing import RecordedRequest, RecordingGateway, Usage
from .console import show

MAIN, SUB, NOBODY = "main", "sub", None
TITLE, COMPACTION = {GENERATING_TITLE: "1"}, {COMPACTING: "1"}


@dataclass
class Session:
    """One conversation with an agent."""

    id: str


class Agent:
    """A run loop that is a generator, with tools, title generation and compaction around it."""

    def __init__(self, gateway: Gateway, provider_url: str) -> None:
        self.gateway = gateway
        self.provider_url = provider_url
        self.http: requests.Session = requests.Session()
        self.http.trust_env = False  # both servers are on this machine, behind no proxy
        gateway.mount(self.http)

    def ask(self, work: str, content: str, headers: Mapping[str, str] | None = None) -> str:
        """Call the model; ``work`` says in the gateway's records what the call was for."""
        return self._post(self.gateway.endpoint("v1/chat/completions"), work, content, headers)

    def ask_directly(self, work: str, content: str) -> str:
        """Call the model at the provider itself, not through the gateway."""
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
        yield self.ask("run loop, turn 1", prompt)
        with SessionThreadPoolExecutor(max_workers=2) as pool:
            yield from pool.map(self.use_tool, ["weather", "calendar"])
        yield from self.delegate(prompt)
        yield self.ask_directly("direct provider call", "embed this")
        yield self.ask("run loop, turn 2", "Put it all together.")
        title.join()

    def use_tool(self, tool: str) -> str:
        """Ask the model, in a thread of the pool."""
        return self.ask(f"tool: {tool}", f"Which arguments does {tool} need?")

    def generate_title(self, prompt: str) -> str:
        """Ask the model for a title, in the background."""
        return self.ask("title generation", f"Give this a title: {prompt}", TITLE)

    def delegate(self, prompt: str) -> Iterator[str]:
        """Let a sub-agent work in a session of its own."""
        return self.run_sub_agent(Session(SUB), prompt)

    @session_from("session.id")
    def run_sub_agent(self, session: Session, prompt: str) -> Iterator[str]:
        """Answer ``prompt`` for the main agent, in the sub-agent's own session."""
        yield self.ask("sub-agent, turn 1", prompt)
        yield self.ask("sub-agent, turn 2", "Sum it up for the main agent.")

    @session_from("session.id")
    def compact(self, session: Session) -> str:
        """Shorten the conversation, because the user asked for it."""
        return self.ask("manual compaction", "Summarize the conversation so far.", COMPACTION)


@dataclass(frozen=True)
class Call:
    """What a call is for, what it should send and where, and what sees to that."""

    work: str
    session_id: str | None
    why: str
    parent: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    to_gateway: bool = True


EXPECTED = [
    Call("run loop, turn 1", MAIN, "@session_from on run"),
    Call("between the turns", NOBODY, "run is suspended, see (1)"),
    Call("tool: weather", MAIN, "SessionThreadPoolExecutor"),
    Call("tool: calendar", MAIN, "SessionThreadPoolExecutor"),
    Call("title generation", MAIN, "bind_session in a thread", labels=TITLE),
    Call("sub-agent, turn 1", SUB, "@session_from inside main", MAIN),
    Call("sub-agent, turn 2", SUB, "@session_from inside main", MAIN),
    Call("run loop, turn 2", MAIN, "run goes on"),
    Call("manual compaction", MAIN, "@session_from on compact", labels=COMPACTION),
    Call("direct provider call", NOBODY, "not the gateway, see (2)", to_gateway=False),
]

INTRODUCTION = """\
A small agent ran against a gateway on this machine. Its calls of the model, as
they arrived on the wire:
"""

LEGEND = """\
  SESSION  X-Cagent-Session-Id, who is billed
  PARENT   X-Cagent-Parent-Session-Id, for whom a sub-agent works
  LABEL    X-Cagent-GeneratingTitle or X-Cagent-Compacting, for work in the
           background, as docker-agent has them
  WHY      what sees to it in the agent's code
  -        no such header

  (1) The run loop is a generator, and its caller makes a call of its own
      between two steps. A "with session_scope(...)" around the yield would bill
      that call to main. @session_from covers the steps, not what is between.
  (2) The call is made in session main, but to another server: nothing is sent.
"""

NEXT = """\
Next: watch your own agent. Start a gateway that has a page for the browser:

  cagent-session gateway --port 8080

and run the agent in another terminal, with http://127.0.0.1:8080/v1 as its base
URL and these lines around it:

  from cagent_session import Gateway, instrument, session_scope

  url, forward = "http://127.0.0.1:8080", "https://api.openai.com/v1"
  with instrument(Gateway(url, forward=forward)), session_scope("session-1"):
      ...
"""


class Arrived(NamedTuple):
    """A call that arrived somewhere."""

    at_gateway: bool
    request: RecordedRequest


def main() -> int:
    """Run the agent, print what arrived, and return the exit status."""
    with RecordingGateway() as gateway, RecordingGateway() as provider:
        _run_agent(gateway, provider)
    arrived = [Arrived(True, request) for request in gateway.requests]
    arrived += [Arrived(False, request) for request in provider.requests]
    rows, wrong = _calls(arrived, provider.url)
    if wrong:
        verdict = f"WRONG: {wrong} of {len(EXPECTED)} calls were not attributed as they should be."
    else:
        verdict = f"All {len(EXPECTED)} calls were attributed correctly."
    bill = ["What the gateway bills; a token is a word:", "", *_table(_bill(gateway), numbers=True)]
    lines = [INTRODUCTION, *_table(rows), "", LEGEND, *bill, "", verdict, "", NEXT]
    return show("\n".join(lines)) or int(wrong > 0)


def _run_agent(gateway: RecordingGateway, provider: RecordingGateway) -> None:
    where = Gateway(
        gateway.url, forward=provider.url, provider="demo", parent_header=PARENT_SESSION_ID
    )
    agent = Agent(where, provider.url)
    session = Session(MAIN)
    # The caller's own calls are meant to have no session. Without this, the first of them would
    # be logged as a probable mistake.
    with no_session():
        steps = agent.run(session, "What is on today, and shall I take an umbrella?")
        next(steps)
        agent.ask("between the turns", "Are you there?")
        for _ in steps:
            pass
        agent.compact(session)
    agent.http.close()


def _calls(arrived: list[Arrived], forward: str) -> tuple[list[tuple[str, ...]], int]:
    """Return a row for each call, and how many of the calls are wrong."""
    rows: list[tuple[str, ...]] = [("CALL", "SESSION", "PARENT", "LABEL", "WHY", "")]
    wrong = 0
    for call in EXPECTED:
        found = [each for each in arrived if _work(each.request) == call.work]
        is_right = len(found) == 1 and _is_right(call, found[0], forward)
        wrong += not is_right
        verdict = "ok" if is_right else "WRONG"
        for each in found:
            why = call.why
            if each.at_gateway != call.to_gateway:
                why = f"arrived at the {'gateway' if each.at_gateway else 'provider'}"
            rows.append((call.work, *_on_the_wire(each.request), why, verdict))
        if not found:
            rows.append((call.work, "-", "-", "-", "did not arrive anywhere", verdict))
    return rows, wrong


def _is_right(call: Call, arrived: Arrived, forward: str) -> bool:
    expected = {
        SESSION_ID: call.session_id,
        PARENT_SESSION_ID: call.parent,
        FORWARD: forward,
        GENERATING_TITLE: None,
        COMPACTING: None,
        **call.labels,
    }
    headers = arrived.request.headers
    if not call.to_gateway:
        identifiers = [name for name in headers if name.lower().startswith(PREFIX)]
        return not arrived.at_gateway and not identifiers
    as_expected = [headers.get(name) == value for name, value in expected.items()]
    return arrived.at_gateway and all(as_expected)


def _on_the_wire(request: RecordedRequest) -> tuple[str, ...]:
    labels = {GENERATING_TITLE: "title", COMPACTING: "compact"}
    return (
        request.session_id or "-",
        request.parent_session_id or "-",
        ",".join(label for name, label in labels.items() if name in request.headers) or "-",
    )


def _work(request: RecordedRequest) -> str:
    return str(request.json["metadata"]["work"])


def _bill(gateway: RecordingGateway) -> list[tuple[str, ...]]:
    """Return a row for each session, a sub-agent's below its parent's, and one for no session."""
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
    return [*rows, _row("(no session)", gateway.unattributed)]


def _row(name: str, usage: Usage) -> tuple[str, ...]:
    numbers = (usage.requests, usage.prompt_tokens, usage.completion_tokens)
    return (name, *map(str, numbers))


def _table(rows: Sequence[tuple[str, ...]], numbers: bool = False) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        align = str.rjust if numbers else str.ljust
        cells = [first.ljust(widths[0]), *map(align, others, widths[1:])]
        yield "  ".join(cells).rstrip()
