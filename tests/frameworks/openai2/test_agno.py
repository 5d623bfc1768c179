"""agno, over OpenAI and over Gemini."""

from __future__ import annotations

from itertools import zip_longest

import page
import pytest
from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.models.google import Gemini
from agno.models.openai import OpenAIChat
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_from, session_scope


@pytest.fixture(params=["openai", "gemini"])
def make_agent(request, two_lines):
    """Makes an agent with the given tools."""
    model_of = {
        "openai": lambda: OpenAIChat(id="gpt-4o-mini"),
        "gemini": lambda: Gemini(id="gemini-2.5-flash"),
    }[request.param]
    return lambda *tools, **options: Agent(
        model=model_of(), tools=list(tools), telemetry=False, **options
    )


@pytest.fixture
def tools(make_agent):
    def ask(session_id: str) -> str:
        """Ask the model."""
        return make_agent().run(question(session_id)).content

    def research(session_id: str) -> str:
        """Let a sub-agent work in a session of its own."""
        with session_scope(f"{session_id}-sub"):
            return make_agent(ask).run(sub_prompt(session_id)).content

    return [ask, research]


def test_two_streams_in_turn(make_agent, tools, model):
    @session_from("session_id")
    def work(session_id):
        for event in make_agent(*tools).run(prompt(session_id), stream=True):
            yield event.content or ""

    in_turn = zip_longest(work("s1"), work("s2"), fillvalue="")
    texts = ["".join(parts) for parts in zip(*in_turn, strict=True)]
    assert texts == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")
    assert any(call.streamed for call in model.calls)


def test_agents_at_once(make_agent, tools, model, run_at_once):
    """Whose tools block, and run in threads."""

    async def work(session_id):
        return (await make_agent(*tools).arun(prompt(session_id))).content

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")


def test_memories_after_a_run(make_agent, model):
    """A pool that the agent keeps makes them, at the same time as the run."""
    assistant = make_agent(db=InMemoryDb(), update_memory_on_run=True)
    for session_id in ("s1", "s2"):
        with session_scope(session_id):
            assistant.run(question(session_id), user_id="u")
    assert model.count == {"s1": 2, "s2": 2}


def test_the_page(run_section):
    run_section("agno", page.TWO_LINES)
