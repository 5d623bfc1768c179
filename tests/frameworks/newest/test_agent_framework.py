"""Microsoft's Agent Framework, over the chat completions and the responses of OpenAI."""

from __future__ import annotations

import openai
import page
import pytest
from agent_framework import Agent
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_scope


@pytest.fixture(params=[OpenAIChatCompletionClient, OpenAIChatClient], ids=["chat", "responses"])
def make_agent(request, two_lines):
    """Makes an agent with the given tools."""
    client = request.param(model="gpt-4o-mini")
    # The conversation is sent with each call, as the model here stores none.
    return lambda *tools: Agent(client=client, tools=list(tools), default_options={"store": False})


@pytest.fixture
def tools(make_agent):
    async def ask(session_id: str) -> str:
        """Ask the model."""
        return (await make_agent().run(question(session_id))).text

    async def research(session_id: str) -> str:
        """Let a sub-agent work in a session of its own."""
        with session_scope(f"{session_id}-sub"):
            return (await make_agent(ask).run(sub_prompt(session_id))).text

    return [ask, research]


def test_agents_at_once(make_agent, tools, model, run_at_once):
    async def work(session_id):
        return (await make_agent(*tools).run(prompt(session_id))).text

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")


def test_streams_at_once(make_agent, tools, model, run_at_once):
    async def work(session_id):
        stream = make_agent(*tools).run(prompt(session_id), stream=True)
        return "".join([part.text async for part in stream])

    first, second = run_at_once(work, "s1", "s2")
    assert "done for s1" in first
    assert "done for s2" in second
    assert model.count == bill("s1", "s2")
    assert any(call.streamed for call in model.calls)


def test_blocking_tools_run_in_threads(make_agent, model, run_at_once):
    def ask(session_id: str) -> str:
        """Ask the model."""
        messages = [{"role": "user", "content": question(session_id)}]
        with openai.OpenAI() as client:
            answer = client.chat.completions.create(model="gpt-4o-mini", messages=messages)
        return answer.choices[0].message.content

    async def work(session_id):
        return (await make_agent(ask).run(f"session {session_id}: ask({session_id})")).text

    assert run_at_once(work, "s1") == ["done for s1"]
    assert model.count == {"s1": 3}


def test_the_page(run_section):
    run_section("Microsoft Agent Framework", page.TWO_LINES)
