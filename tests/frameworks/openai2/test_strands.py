"""Strands Agents, over OpenAI and over Gemini."""

from __future__ import annotations

import page
import pytest
from mock_model import bill, prompt, question, sub_prompt
from strands import Agent, tool
from strands.models.gemini import GeminiModel
from strands.models.openai import OpenAIModel

from cagent_session import session_scope


@pytest.fixture(params=["openai", "gemini"])
def make_agent(request, two_lines):
    """Makes an agent with the given tools."""
    model_of = {
        "openai": lambda: OpenAIModel(model_id="gpt-4o-mini"),
        "gemini": lambda: GeminiModel(model_id="gemini-2.5-flash"),
    }[request.param]
    return lambda *tools: Agent(model=model_of(), tools=list(tools), callback_handler=None)


@pytest.fixture
def tools(make_agent):
    @tool
    def ask(session_id: str) -> str:
        """Ask the model."""
        return str(make_agent()(question(session_id)))

    @tool
    def research(session_id: str) -> str:
        """Let a sub-agent work in a session of its own."""
        with session_scope(f"{session_id}-sub"):
            return str(make_agent(ask)(sub_prompt(session_id)))

    return [ask, research]


def test_blocking_agents(make_agent, tools, model):
    """Each call runs in a thread."""
    for session_id in ("s1", "s2"):
        with session_scope(session_id):
            said = str(make_agent(*tools)(prompt(session_id)))
        assert said.strip() == f"done for {session_id}"
    assert model.count == bill("s1", "s2")


def test_streams_at_once(make_agent, tools, model, run_at_once):
    async def work(session_id):
        events = make_agent(*tools).stream_async(prompt(session_id))
        return "".join([event["data"] async for event in events if "data" in event])

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")


def test_the_page(run_section):
    run_section("Strands", page.TWO_LINES)
