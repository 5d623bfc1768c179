"""Haystack."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated

import pytest
from haystack import Document, Pipeline
from haystack.components.agents import Agent
from haystack.components.extractors import LLMMetadataExtractor
from haystack.components.generators.chat import (
    OpenAIChatGenerator,
    OpenAIResponsesChatGenerator,
)
from haystack.dataclasses import ChatMessage
from haystack.tools import tool
from haystack.utils import Secret
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_from, session_scope
from cagent_session.integrations.httpx import GatewayTransport

DOCUMENTS = [Document(content="a"), Document(content="b")]


def wired(gateway):
    """One transport, which Haystack gives to a blocking and to an asynchronous client."""
    return {
        "api_base_url": gateway.endpoint("v1"),
        "http_client_kwargs": {"transport": GatewayTransport(gateway), "follow_redirects": True},
    }


@pytest.fixture(
    params=[OpenAIChatGenerator, OpenAIResponsesChatGenerator], ids=["chat", "responses"]
)
def llm(request, is_instrumented, gateway):
    options = {} if is_instrumented else wired(gateway)
    return request.param(model="gpt-4o-mini", **options)


def asked(text):
    return [ChatMessage.from_user(text)]


def said(result):
    return result["messages"][-1].text


class TestBlocking:
    @pytest.fixture
    def agent(self, llm):
        @tool
        def ask(session_id: Annotated[str, "whose"]) -> str:
            """Ask the model."""
            return llm.run(asked(question(session_id)))["replies"][0].text

        @tool
        def research(session_id: Annotated[str, "whose"]) -> str:
            """Let a sub-agent work in a session of its own."""
            with session_scope(f"{session_id}-sub"):
                return said(sub_agent.run(asked(sub_prompt(session_id))))

        sub_agent = Agent(chat_generator=llm, tools=[ask])
        return Agent(chat_generator=llm, tools=[ask, research])

    def test_an_agent(self, agent, model):
        for session_id in ("s1", "s2"):
            with session_scope(session_id):
                assert said(agent.run(asked(prompt(session_id)))) == f"done for {session_id}"
        assert model.count == bill("s1", "s2")

    def test_streams_at_once(self, agent, model):
        """It streams to a callback, which is called where the agent runs."""
        parts = {"s1": [], "s2": []}

        @session_from("session_id")
        def work(session_id):
            streamed = parts[session_id]
            agent.run(asked(prompt(session_id)), lambda part: streamed.append(part.content))

        threads = [threading.Thread(target=work, args=(session_id,)) for session_id in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for session_id, streamed in parts.items():
            assert "".join(streamed).endswith(f"done for {session_id}")
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)


class TestAsync:
    @pytest.fixture
    def agent(self, llm):
        @tool
        async def ask(session_id: Annotated[str, "whose"]) -> str:
            """Ask the model."""
            return (await llm.run_async(asked(question(session_id))))["replies"][0].text

        @tool
        async def research(session_id: Annotated[str, "whose"]) -> str:
            """Let a sub-agent work in a session of its own."""
            with session_scope(f"{session_id}-sub"):
                return said(await sub_agent.run_async(asked(sub_prompt(session_id))))

        sub_agent = Agent(chat_generator=llm, tools=[ask])
        return Agent(chat_generator=llm, tools=[ask, research])

    def test_agents_at_once(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            return said(await agent.run_async(asked(prompt(session_id))))

        async def main():
            return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

        assert run(main()) == ["done for s1", "done for s2", "done for s3"]
        assert model.count == bill("s1", "s2", "s3")

    def test_streams_at_once(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            parts = []

            async def streamed(part):
                parts.append(part.content)

            await agent.run_async(asked(prompt(session_id)), streamed)
            return "".join(parts)

        async def main():
            return await asyncio.gather(work("s1"), work("s2"))

        for session_id, streamed in zip(("s1", "s2"), run(main()), strict=True):
            assert streamed.endswith(f"done for {session_id}")
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)

    def test_the_branches_of_a_pipeline(self, llm, is_instrumented, gateway, model, run):
        """Blocking tools and components run in threads, with the session."""

        @tool
        def ask(session_id: Annotated[str, "whose"]) -> str:
            """Ask the model."""
            return llm.run(asked(question(session_id)))["replies"][0].text

        pipeline = Pipeline()
        for name in ("a", "b"):
            options = {} if is_instrumented else wired(gateway)
            own_llm = type(llm)(model="gpt-4o-mini", **options)
            pipeline.add_component(name, Agent(chat_generator=own_llm, tools=[ask]))
        messages = {"messages": asked("session s1: ask(s1) ask(s1)")}
        data = {"a": messages, "b": messages}

        async def main():
            with session_scope("s1"):
                seen = [part async for part in pipeline.run_async_generator(data)]
                return await pipeline.run_async(data), seen[-1]

        for result in run(main()):
            assert {name: said(part) for name, part in result.items()} == dict.fromkeys(
                "ab", "done for s1"
            )
        assert model.count == {"s1": 2 * 2 * 4}


def test_the_page(run_section):
    run_section("Haystack")


class TestPitfalls:
    @pytest.fixture
    def extractor(self, is_instrumented, gateway):
        options = {} if is_instrumented else wired(gateway)
        return LLMMetadataExtractor(
            prompt="session s1: \n{{ document.content }}",
            chat_generator=OpenAIChatGenerator(model="gpt-4o-mini", **options),
            expected_keys=[],
        )

    def test_some_components_have_their_own_pool(self, extractor, model, run):
        with session_scope("s1"):
            extractor.run(DOCUMENTS)
            run(extractor.run_async(DOCUMENTS))
        assert model.count == {"s1": 4}

    def test_a_transport_cannot_be_saved(self, gateway):
        def pipeline(options):
            pipeline = Pipeline()
            component = OpenAIChatGenerator(
                api_key=Secret.from_env_var("OPENAI_API_KEY"), **options
            )
            pipeline.add_component("llm", component)
            return pipeline

        assert "OpenAIChatGenerator" in pipeline({}).dumps()
        with pytest.raises(Exception, match="GatewayTransport"):
            pipeline(wired(gateway)).dumps()

    def test_a_stream_reports_no_usage_unless_it_is_asked_for(
        self, is_instrumented, gateway, model
    ):
        options = {} if is_instrumented else wired(gateway)
        llm = OpenAIChatGenerator(model="gpt-4o-mini", **options)
        with session_scope("s1"):
            for more in {}, {"stream_options": {"include_usage": True}}:
                llm.run(asked(question("s1")), lambda part: None, generation_kwargs=more)
        assert [call.wants_usage for call in model.calls] == [False, True]
