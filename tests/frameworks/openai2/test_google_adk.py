"""Google's Agent Development Kit, whose calls of Gemini are all asynchronous."""

from __future__ import annotations

import page
import pytest
from google.adk.agents import LlmAgent, ParallelAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.runners import InMemoryRunner
from google.genai import types
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_from, session_scope

pytestmark = pytest.mark.usefixtures("two_lines")


def agent(name, *tools):
    return LlmAgent(name=name, model="gemini-2.5-flash", tools=list(tools))


async def run_agent(agent, text, **options):
    runner = InMemoryRunner(agent, app_name="agents")
    events = await runner.run_debug(text, quiet=True, **options)
    return "".join(part.text or "" for part in events[-1].content.parts)


async def ask(session_id: str) -> str:
    """Ask the model."""
    return await run_agent(agent("asked"), question(session_id))


async def research(session_id: str) -> str:
    """Let a sub-agent work in a session of its own."""
    with session_scope(f"{session_id}-sub"):
        return await run_agent(agent("researcher", ask), sub_prompt(session_id))


def test_agents_at_once(model, run_at_once):
    async def work(session_id):
        return await run_agent(agent("assistant", ask, research), prompt(session_id))

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")


def test_streams_at_once(model, run_at_once):
    async def work(session_id):
        config = RunConfig(streaming_mode=StreamingMode.SSE)
        assistant = agent("assistant", ask, research)
        return await run_agent(assistant, prompt(session_id), run_config=config)

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")
    assert any(call.streamed for call in model.calls)


def test_parallel_agents(model, run_at_once):
    async def work(session_id):
        both = ParallelAgent(name="both", sub_agents=[agent("first"), agent("second")])
        return await run_agent(both, question(session_id))

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == {"s1": 2, "s2": 2}


def test_blocking_runs_in_turn(model, run):
    """The runner works in a thread of its own, with the context of the first step."""
    runner = InMemoryRunner(agent("assistant", ask), app_name="agents")
    create_session = runner.session_service.create_session

    @session_from("session_id")
    def work(session_id):
        of = {"user_id": "someone", "session_id": session_id}
        run(create_session(app_name="agents", **of))
        message = types.UserContent(f"session {session_id}: ask({session_id})")
        yield from runner.run(new_message=message, **of)

    for _ in zip(work("s1"), work("s2"), strict=True):
        pass
    assert model.count == {"s1": 3, "s2": 3}


def test_the_page(run_section):
    run_section("Google ADK", page.TWO_LINES)
