"""Semantic Kernel."""

from __future__ import annotations

import asyncio
import dataclasses

import page
import pytest
from mock_model import bill, prompt, question, sub_prompt
from semantic_kernel.agents import ChatCompletionAgent, ConcurrentOrchestration
from semantic_kernel.agents.runtime import InProcessRuntime
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.exceptions import ServiceResponseException
from semantic_kernel.functions import kernel_function

from cagent_session import SessionRequired, instrument, no_session, session_scope

pytestmark = pytest.mark.usefixtures("two_lines")


def agent(*plugins, name="assistant"):
    service = OpenAIChatCompletion(ai_model_id="gpt-4o-mini")
    return ChatCompletionAgent(service=service, name=name, plugins=list(plugins))


class Tools:
    @kernel_function
    async def ask(self, session_id: str) -> str:
        """Ask the model."""
        return str(await agent().get_response(question(session_id)))

    @kernel_function
    async def research(self, session_id: str) -> str:
        """Let a sub-agent work in a session of its own."""
        with session_scope(f"{session_id}-sub"):
            return str(await agent(Tools()).get_response(sub_prompt(session_id)))


def test_agents_at_once(model, run_at_once):
    async def work(session_id):
        return str(await agent(Tools()).get_response(prompt(session_id)))

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")


def test_streams_at_once(model, run_at_once):
    async def work(session_id):
        stream = agent(Tools()).invoke_stream(prompt(session_id))
        return "".join([str(part.message) async for part in stream])

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")
    assert any(call.streamed for call in model.calls)


async def orchestrate(session_id, runtime):
    """Let two agents answer at once, as messages of a runtime."""
    members = [agent(name="first"), agent(name="second")]
    orchestration = ConcurrentOrchestration(members=members)
    result = await orchestration.invoke(question(session_id), runtime=runtime)
    return sorted(map(str, await result.get(timeout=20)))


def test_a_runtime_per_run(model, run_at_once):
    async def work(session_id):
        runtime = InProcessRuntime()
        runtime.start()
        answers = await orchestrate(session_id, runtime)
        await runtime.stop_when_idle()
        return answers

    assert run_at_once(work, "s1", "s2") == [["done for s1"] * 2, ["done for s2"] * 2]
    assert model.count == {"s1": 2, "s2": 2}


def test_a_shared_runtime_works_in_the_session_that_started_it(unchecked_model, run):
    async def work(session_id, runtime):
        with session_scope(session_id):
            await orchestrate(session_id, runtime)

    async def main():
        runtime = InProcessRuntime()
        with session_scope("of-whoever-starts-it"):
            runtime.start()
        await asyncio.gather(work("s1", runtime), work("s2", runtime))
        await runtime.stop_when_idle()

    run(main())
    assert unchecked_model.count == {"of-whoever-starts-it": 4}


def test_a_shared_runtime_that_is_started_outside_every_session_is_refused(
    gateway, unchecked_model, run
):
    async def main():
        runtime = InProcessRuntime()
        with no_session():
            runtime.start()
        with session_scope("s1"), pytest.raises(ServiceResponseException) as caught:
            await orchestrate("s1", runtime)
        return caught.value

    with instrument(dataclasses.replace(gateway, require_session=True)):
        error = run(main())
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, SessionRequired)
    assert unchecked_model.calls == []


def test_the_page(run_section):
    run_section("Semantic Kernel", page.TWO_LINES)
