"""Pydantic AI."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest

import httpx2
import openai
import pytest
from mock_model import bill, prompt, question, sub_prompt
from pydantic_ai import Agent
from pydantic_ai.capabilities import UseThreadExecutor
from pydantic_ai.models import create_async_httpx2_client
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from cagent_session import session_from, session_scope
from cagent_session.integrations.httpx2 import GatewayTransport


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def llm(request, is_instrumented, gateway):
    if is_instrumented:
        return request.param("gpt-4o-mini")
    http = create_async_httpx2_client(transport=GatewayTransport(gateway))
    provider = OpenAIProvider(base_url=gateway.endpoint("v1"), api_key="x", http_client=http)
    return request.param("gpt-4o-mini", provider=provider)


@pytest.fixture
def agent(llm):
    helper, sub_agent, agent = Agent(llm), Agent(llm), Agent(llm)

    @sub_agent.tool_plain
    @agent.tool_plain
    async def ask(session_id: str) -> str:
        return (await helper.run(question(session_id))).output

    @agent.tool_plain
    async def research(session_id: str) -> str:
        with session_scope(f"{session_id}-sub"):
            return (await sub_agent.run(sub_prompt(session_id))).output

    return agent


def test_agents_at_once(agent, model, run):
    @session_from("session_id")
    async def work(session_id):
        return (await agent.run(prompt(session_id))).output

    async def main():
        return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

    assert run(main()) == ["done for s1", "done for s2", "done for s3"]
    assert model.count == bill("s1", "s2", "s3")


def test_streams_at_once(agent, model, run):
    @session_from("session_id")
    async def work(session_id):
        async with agent.run_stream(prompt(session_id)) as stream:
            return [text async for text in stream.stream_text(debounce_by=None)][-1]

    async def main():
        return await asyncio.gather(work("s1"), work("s2"))

    assert run(main()) == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")
    chats = [call for call in model.calls if call.path.endswith("/chat/completions")]
    assert all(call.wants_usage for call in chats if call.streamed)
    assert any(call.streamed for call in model.calls)


def test_a_tool_in_a_session_of_its_own(llm, model, run):
    agent = Agent(llm)

    @agent.tool_plain
    @session_scope("s1-sub")
    async def research(topic: str) -> str:
        return (await Agent(llm).run(question("s1-sub"))).output

    with session_scope("s1"):
        assert run(agent.run("session s1: research(x)")).output == "done for s1"
    assert model.count == {"s1": 2, "s1-sub": 1}


def test_step_by_step(agent, model, run):
    """Each step takes the session of whoever asks for it."""

    async def main():
        async with agent.iter(prompt("s1")) as one, agent.iter(prompt("s2")) as two:
            runs = {"s1": aiter(one), "s2": aiter(two)}
            while runs:
                for session_id in list(runs):
                    with session_scope(session_id):
                        if await anext(runs[session_id], None) is None:
                            del runs[session_id]
        return one.result.output, two.result.output

    assert run(main()) == ("done for s1", "done for s2")
    assert model.count == bill("s1", "s2")


@pytest.mark.parametrize("is_instrumented", ["instrument"], indirect=True)
@pytest.mark.usefixtures("is_instrumented")
def test_what_the_names_of_models_stand_for(model):
    for name in ("openai", "openai-chat"):
        with session_scope("s1"):
            Agent(f"{name}:gpt-4o-mini").run_sync(question("s1"))
    assert [call.path for call in model.calls] == ["/v1/responses", "/v1/chat/completions"]


def test_its_client_keeps_its_defaults(gateway):
    ours = create_async_httpx2_client(transport=GatewayTransport(gateway))
    its = create_async_httpx2_client()
    assert ours.timeout == its.timeout != httpx2.AsyncClient().timeout
    assert ours.headers["User-Agent"] == its.headers["User-Agent"]


def test_the_page(run_section):
    run_section("Pydantic AI")


class TestBlocking:
    def test_agents_in_turn(self, agent, model):
        for session_id in ("s1", "s2"):
            with session_scope(session_id):
                assert agent.run_sync(prompt(session_id)).output == f"done for {session_id}"
        assert model.count == bill("s1", "s2")

    def test_two_streams_in_turn(self, agent, model):
        @session_from("session_id")
        def work(session_id):
            with agent.run_stream_sync(prompt(session_id)) as stream:
                yield from stream.stream_text(debounce_by=None, delta=True)

        parts = "".join(chain(*zip_longest(work("s1"), work("s2"), fillvalue="")))
        assert sorted(parts) == sorted("done for s1" + "done for s2")
        assert model.count == bill("s1", "s2")

    @pytest.mark.parametrize("is_ours", [False, True], ids=["its threads", "a pool of ours"])
    def test_tools_run_in_threads_with_the_session(
        self, llm, is_instrumented, gateway, model, is_ours
    ):
        options = {}
        if not is_instrumented:
            http = openai.DefaultHttpxClient(transport=GatewayTransport(gateway))
            options = {"base_url": gateway.endpoint("v1"), "http_client": http}
        messages = [{"role": "user", "content": question("s1")}]

        def ask(session_id: str) -> str:
            assert threading.current_thread() is not threading.main_thread()
            answer = client.chat.completions.create(model="gpt-4o-mini", messages=messages)
            return answer.choices[0].message.content

        with openai.OpenAI(**options) as client, ThreadPoolExecutor(2) as pool:
            capabilities = [UseThreadExecutor(pool)] if is_ours else []
            agent = Agent(llm, tools=[ask], capabilities=capabilities)
            with session_scope("s1"):
                assert agent.run_sync("session s1: ask(s1) ask(s1)").output == "done for s1"
        assert model.count == {"s1": 4}
