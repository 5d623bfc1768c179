"""AutoGen."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import openai
import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ModelClientStreamingChunkEvent
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow
from autogen_core import (
    AgentId,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    message_handler,
)
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_from, session_scope
from cagent_session.integrations.httpx2 import GatewayTransport


def wired(gateway, client=openai.DefaultAsyncHttpxClient):
    http = client(transport=GatewayTransport(gateway))
    return {"base_url": gateway.endpoint("v1"), "http_client": http}


@pytest.fixture
def llm(is_instrumented, gateway):
    options = {} if is_instrumented else wired(gateway)
    return OpenAIChatCompletionClient(model="gpt-4o-mini", **options)


async def answer(llm, session_id):
    message = UserMessage(content=question(session_id), source="user")
    return (await llm.create([message])).content


@pytest.fixture
def agent(llm):
    async def ask(session_id: str) -> str:
        """Ask the model."""
        return await answer(llm, session_id)

    async def research(session_id: str) -> str:
        """Let a sub-agent work in a session of its own."""
        with session_scope(f"{session_id}-sub"):
            return await said(assistant([ask]), sub_prompt(session_id))

    def assistant(tools):
        return AssistantAgent(
            "assistant", llm, tools=tools, max_tool_iterations=5, model_client_stream=True
        )

    return lambda: assistant([ask, research])


async def said(agent, task):
    return (await agent.run(task=task)).messages[-1].content


class TestAgents:
    def test_at_once(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            return await said(agent(), prompt(session_id))

        async def main():
            return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

        assert run(main()) == ["done for s1", "done for s2", "done for s3"]
        assert model.count == bill("s1", "s2", "s3")

    def test_two_streams_in_turn(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            async for part in agent().run_stream(task=prompt(session_id)):
                if isinstance(part, ModelClientStreamingChunkEvent):
                    yield part.content

        async def main():
            streams, parts = [work("s1"), work("s2")], []
            while streams:
                stream = streams.pop(0)
                async for part in stream:
                    parts.append(part)
                    streams.append(stream)
                    break
            return parts

        assert sorted(run(main())) == ["done for s1", "done for s2"]
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)

    def test_the_branches_of_a_team(self, llm, model, run):
        """A team has a runtime of its own, which starts with each run, in the session of then."""
        builder = DiGraphBuilder()
        first, *branches = [AssistantAgent(name, llm) for name in ("first", "a", "b")]
        builder.add_node(first)
        for branch in branches:
            builder.add_node(branch)
            builder.add_edge(first, branch)
        team = GraphFlow([first, *branches], builder.build())

        async def main():
            for session_id in ("s1", "s2"):
                with session_scope(session_id):
                    await team.run(task=question(session_id))
                    await team.reset()

        run(main())
        assert model.count == {"s1": 3, "s2": 3}


def test_the_page(run_section):
    run_section("AutoGen")


@dataclass
class Question:
    session_id: str


class TestPitfalls:
    def test_a_stream_reports_no_usage_unless_it_is_asked_for(
        self, is_instrumented, gateway, model, run
    ):
        options = {} if is_instrumented else wired(gateway)

        async def main():
            for more in {}, {"stream_options": {"include_usage": True}}:
                llm = OpenAIChatCompletionClient(model="gpt-4o-mini", **options, **more)
                agent = AssistantAgent("assistant", llm, model_client_stream=True)
                with session_scope("s1"):
                    await said(agent, question("s1"))

        run(main())
        assert [call.wants_usage for call in model.calls] == [False, True]

    def test_blocking_tools_run_in_the_pool_of_the_event_loop(
        self, llm, is_instrumented, gateway, model, run
    ):
        options = {} if is_instrumented else wired(gateway, openai.DefaultHttpxClient)
        client = openai.OpenAI(**options)

        def ask(session_id: str) -> str:
            """Ask the model."""
            messages = [{"role": "user", "content": question(session_id)}]
            completion = client.chat.completions.create(model="m", messages=messages)
            return completion.choices[0].message.content

        async def main():
            agent = AssistantAgent("assistant", llm, tools=[ask], max_tool_iterations=5)
            with session_scope("s1"):
                return await said(agent, "session s1: ask(s1) ask(s1)")

        assert asyncio.run(main()) == "done for s1"
        assert model.count == {"s1": 4}

    def test_a_runtime_works_in_the_session_of_whoever_started_it(self, llm, unchecked_model, run):
        """Unless its agents take the session from the messages."""

        class Careless(RoutedAgent):
            @message_handler
            async def work(self, message: Question, ctx: MessageContext) -> str:
                return await answer(llm, message.session_id)

        class Careful(RoutedAgent):
            @message_handler
            @session_from("message.session_id")
            async def work(self, message: Question, ctx: MessageContext) -> str:
                return await answer(llm, message.session_id)

        async def main():
            runtime = SingleThreadedAgentRuntime()
            for kind in (Careless, Careful):
                await kind.register(runtime, kind.__name__, lambda kind=kind: kind(""))
            with session_scope("starter"):
                runtime.start()
            for kind in (Careless, Careful):
                for session_id in ("s1", "s2"):
                    with session_scope(session_id):
                        recipient = AgentId(kind.__name__, "default")
                        await runtime.send_message(Question(session_id), recipient)
            await runtime.stop()

        run(main())
        sessions = [call.session_id for call in unchecked_model.calls]
        assert sessions == ["starter", "starter", "s1", "s2"]
