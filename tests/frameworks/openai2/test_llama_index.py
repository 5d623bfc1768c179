"""LlamaIndex."""

from __future__ import annotations

import asyncio
from itertools import chain, zip_longest

import openai
import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_from, session_scope
from cagent_session.integrations.httpx import GatewayTransport


def both_clients(gateway):
    transport = GatewayTransport(gateway)
    return {
        "api_base": gateway.endpoint("v1"),
        "http_client": openai.DefaultHttpxClient(transport=transport),
        "async_http_client": openai.DefaultAsyncHttpxClient(transport=transport),
    }


KINDS = {
    "chat": (OpenAI, {}),
    "responses": (OpenAIResponses, {}),
    "like": (OpenAILike, {"is_chat_model": True, "is_function_calling_model": True}),
}


@pytest.fixture(params=KINDS)
def llm(request, is_instrumented, gateway, monkeypatch):
    make, options = KINDS[request.param]
    if is_instrumented:
        monkeypatch.setenv("OPENAI_API_BASE", gateway.endpoint("v1"))
    else:
        options = options | both_clients(gateway)
    return make(model="gpt-4o-mini", **options)


def asked(session_id):
    return [ChatMessage(role="user", content=question(session_id))]


def test_the_page(run_section):
    assert len(run_section("LlamaIndex").requests) == 2


class TestAgents:
    @pytest.fixture
    def agent(self, llm):
        async def ask(session_id: str) -> str:
            """Ask the model."""
            return (await llm.achat(asked(session_id))).message.content

        async def research(session_id: str) -> str:
            """Let a sub-agent work in a session of its own."""
            sub_agent = FunctionAgent(tools=[ask], llm=llm)
            with session_scope(f"{session_id}-sub"):
                return str(await sub_agent.run(sub_prompt(session_id)))

        return FunctionAgent(tools=[ask, research], llm=llm)

    def test_at_once(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            return str(await agent.run(prompt(session_id)))

        async def main():
            return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

        assert run(main()) == ["done for s1", "done for s2", "done for s3"]
        assert model.count == bill("s1", "s2", "s3")

    def test_events_at_once(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            handler = agent.run(prompt(session_id))
            parts = [
                event.delta
                async for event in handler.stream_events()
                if isinstance(event, AgentStream)
            ]
            await handler
            return "".join(parts)

        async def main():
            return await asyncio.gather(work("s1"), work("s2"))

        assert run(main()) == ["done for s1", "done for s2"]
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)

    def test_a_tool_in_a_session_of_its_own(self, llm, model, run):
        @session_scope("s1-sub")
        async def research(topic: str) -> str:
            """Find out."""
            return (await llm.achat(asked("s1-sub"))).message.content

        async def main():
            with session_scope("s1"):
                agent = FunctionAgent(tools=[research], llm=llm)
                return str(await agent.run("session s1: research(x)"))

        assert run(main()) == "done for s1"
        assert model.count == {"s1": 2, "s1-sub": 1}

    def test_a_run_belongs_to_the_session_that_began_it(self, agent, model, run):
        """Whoever waits for it: it is made of tasks of its own."""

        async def main():
            with session_scope("s1"):
                begun = agent.run(prompt("s1"))
            with session_scope("s2"):
                return str(await begun)

        assert run(main()) == "done for s1"
        assert model.count == bill("s1")

    def test_tools_that_are_not_coroutines(self, llm, model, run):
        """They run in a pool, with the session."""

        def ask(session_id: str) -> str:
            """Ask the model."""
            return llm.chat(asked(session_id)).message.content

        async def main():
            with session_scope("s1"):
                return str(
                    await FunctionAgent(tools=[ask], llm=llm).run("session s1: ask(s1) ask(s1)")
                )

        assert run(main()) == "done for s1"
        assert model.count == {"s1": 4}


class TestBlocking:
    def test_calls(self, llm, model):
        with session_scope("s1"):
            assert llm.chat(asked("s1")).message.content == "done for s1"
            assert llm.complete(question("s1")).text == "done for s1"
        assert model.count == {"s1": 2}

    def test_two_streams_in_turn(self, llm, model):
        @session_from("session_id")
        def work(session_id):
            for part in llm.stream_chat(asked(session_id)):
                yield part.delta or ""

        parts = "".join(chain(*zip_longest(work("s1"), work("s2"), fillvalue="")))
        assert sorted(parts) == sorted("done for s1" + "done for s2")
        assert model.count == {"s1": 1, "s2": 1}

    def test_a_chat_engine_streams_from_a_thread(self, llm, model):
        engine = SimpleChatEngine.from_defaults(llm=llm)
        with session_scope("s1"):
            answer = engine.stream_chat(question("s1"))
        assert "".join(answer.response_gen) == "done for s1"
        assert model.count == {"s1": 1}


class TestPitfalls:
    @pytest.mark.parametrize("given", ["http_client", "async_http_client"])
    def test_one_client_leaves_the_other_way_unattributed(
        self, given, gateway, unchecked_model, run
    ):
        clients = both_clients(gateway)
        options = {"api_base": clients["api_base"], given: clients[given]}
        llm = OpenAI(model="gpt-4o-mini", api_key="x", **options)
        with session_scope("s1"):
            llm.chat(asked("s1"))
            run(llm.achat(asked("s1")))
        wired = [call.is_right for call in unchecked_model.calls]
        assert wired == [given == "http_client", given == "async_http_client"]

    @pytest.mark.parametrize("make", [OpenAI, OpenAIResponses])
    def test_another_variable_than_that_of_the_sdk(self, make, monkeypatch):
        monkeypatch.setenv("OPENAI_BASE_URL", "https://gateway.example/v1")
        assert make(model="gpt-4o-mini", api_key="x").api_base == "https://api.openai.com/v1"
        monkeypatch.setenv("OPENAI_API_BASE", "https://gateway.example/v1")
        assert make(model="gpt-4o-mini", api_key="x").api_base == "https://gateway.example/v1"

    def test_a_stream_reports_no_usage_unless_it_is_asked_for(self, gateway, model):
        asking = {"stream_options": {"include_usage": True}}
        for options in {}, {"additional_kwargs": asking}:
            llm = OpenAI(model="gpt-4o-mini", api_key="x", **both_clients(gateway), **options)
            with session_scope("s1"):
                list(llm.stream_chat(asked("s1")))
        assert [call.wants_usage for call in model.calls] == [False, True]
