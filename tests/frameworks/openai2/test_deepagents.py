"""deepagents on Gemini, whose asynchronous calls go over aiohttp."""

from __future__ import annotations

import page
import pytest
from deepagents import create_deep_agent
from langchain_google_genai import ChatGoogleGenerativeAI
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_scope


@pytest.fixture
def make_agent(two_lines):
    """Makes an agent with the given tools."""
    return lambda *tools: create_deep_agent(model=llm(), tools=list(tools))


def llm():
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash")


def said(state):
    return state["messages"][-1].text


def ask(session_id: str) -> str:
    """Ask the model."""
    return llm().invoke(question(session_id)).text


def test_blocking_agents(make_agent, model):
    def research(session_id: str) -> str:
        """Let a sub-agent work in a session of its own."""
        with session_scope(f"{session_id}-sub"):
            return said(make_agent(ask).invoke({"messages": sub_prompt(session_id)}))

    for session_id in ("s1", "s2"):
        with session_scope(session_id):
            state = make_agent(ask, research).invoke({"messages": prompt(session_id)})
        assert said(state) == f"done for {session_id}"
    assert model.count == bill("s1", "s2")


@pytest.fixture
def asynchronous_research(make_agent):
    async def research(session_id: str) -> str:
        """Let a sub-agent work in a session of its own."""
        with session_scope(f"{session_id}-sub"):
            return said(await make_agent(ask).ainvoke({"messages": sub_prompt(session_id)}))

    return research


def test_agents_at_once(make_agent, asynchronous_research, model, run_at_once):
    async def work(session_id):
        assistant = make_agent(ask, asynchronous_research)
        return said(await assistant.ainvoke({"messages": prompt(session_id)}))

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")


def test_streams_at_once(make_agent, asynchronous_research, model, run_at_once):
    async def work(session_id):
        assistant = make_agent(ask, asynchronous_research)
        messages = {"messages": prompt(session_id)}
        return "".join(
            [part.text async for part, _ in assistant.astream(messages, stream_mode="messages")]
        )

    first, second = run_at_once(work, "s1", "s2")
    assert "done for s1" in first
    assert "done for s2" in second
    assert model.count == bill("s1", "s2")
    assert any(call.streamed for call in model.calls)


def test_the_page(run_section):
    run_section("deepagents", page.TWO_LINES)
