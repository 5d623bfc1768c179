"""CrewAI."""

from __future__ import annotations

import asyncio
from itertools import zip_longest

import httpx
import pytest
from crewai import LLM, Agent, Crew, Task
from crewai.flow.flow import Flow, and_, listen, start
from crewai.llms.hooks.base import BaseInterceptor
from crewai.tools import tool
from mock_model import FORWARD, bill, prompt, question, sub_prompt
from support.wire import Server, redirect

from cagent_session import Gateway, session_from, session_scope


class Stamp(BaseInterceptor[httpx.Request, httpx.Response]):
    def __init__(self, gateway):
        self.gateway = gateway

    def on_outbound(self, message):
        message.headers.update(self.gateway.headers_for(str(message.url)))
        return message

    def on_inbound(self, message):
        return message

    async def aon_outbound(self, message):
        return self.on_outbound(message)

    async def aon_inbound(self, message):
        return message


def wired(gateway):
    return {"base_url": gateway.endpoint("v1"), "interceptor": Stamp(gateway)}


@pytest.fixture(params=["completions", "responses"])
def llm(request, is_instrumented, gateway):
    options = {} if is_instrumented else wired(gateway)
    return LLM(model="openai/gpt-4o-mini", api=request.param, **options)


# Of a response that is streamed, CrewAI drops the tool calls.
without_responses = pytest.mark.parametrize("llm", ["completions"], indirect=True)


def crew(llm, tools, text, **options):
    agent = Agent(role="researcher", goal="know", backstory="none", llm=llm, tools=tools)
    task = Task(description=text, expected_output="text", agent=agent)
    return Crew(agents=[agent], tasks=[task], **options)


@pytest.fixture
def tools(llm):
    @tool
    def ask(session_id: str) -> str:
        """Ask the model."""
        return llm.call(question(session_id))

    @tool
    def research(session_id: str) -> str:
        """Let a crew work in a session of its own."""
        with session_scope(f"{session_id}-sub"):
            return crew(llm, [ask], sub_prompt(session_id)).kickoff().raw

    return [ask, research]


class TestBlocking:
    def test_a_crew(self, llm, tools, model):
        for session_id in ("s1", "s2"):
            with session_scope(session_id):
                assert (
                    crew(llm, tools, prompt(session_id)).kickoff().raw == f"done for {session_id}"
                )
        assert model.count == bill("s1", "s2")

    @without_responses
    def test_two_streams_in_turn(self, llm, tools, model):
        @session_from("session_id")
        def work(session_id):
            for part in crew(llm, tools, prompt(session_id), stream=True).kickoff():
                yield part.content

        in_turn = zip_longest(work("s1"), work("s2"), fillvalue="")
        first, second = map("".join, zip(*in_turn, strict=True))
        assert "done for s1" in first
        assert "done for s2" in second
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)
        assert all(call.wants_usage for call in model.calls if call.streamed)

    def test_a_stream_works_in_the_session_of_whoever_asks_for_its_first_part(self, llm, model):
        with session_scope("s1"):
            stream = crew(llm, [], question("s2"), stream=True).kickoff()
        with session_scope("s2"):
            assert "".join(part.content for part in stream) == "done for s2"
        assert model.count == {"s2": 1}

    def test_branches(self, llm, model):
        """Tasks in threads of their own, and inputs one by one."""
        branches = crew(llm, [], question("s1"))
        for _ in range(2):
            other = crew(llm, [], question("s1"))
            other.tasks[0].async_execution = True
            branches.tasks.insert(0, other.tasks[0])
            branches.agents += other.agents
        with session_scope("s1"):
            branches.kickoff()
            crew(llm, [], "{task}").kickoff_for_each([{"task": question("s1")}] * 2)
        assert model.count == {"s1": 3 + 2}


class TestAsync:
    @pytest.mark.parametrize("name", ["akickoff", "kickoff_async"])
    def test_crews_at_once(self, name, llm, tools, model, run):
        """As coroutines, and each in a thread."""

        @session_from("session_id")
        async def work(session_id):
            return (await getattr(crew(llm, tools, prompt(session_id)), name)()).raw

        async def main():
            return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

        assert run(main()) == ["done for s1", "done for s2", "done for s3"]
        assert model.count == bill("s1", "s2", "s3")

    @without_responses
    def test_streams_at_once(self, llm, tools, model, run):
        @session_from("session_id")
        async def work(session_id):
            stream = await crew(llm, tools, prompt(session_id), stream=True).akickoff()
            return "".join([part.content async for part in stream])

        async def main():
            return await asyncio.gather(work("s1"), work("s2"))

        first, second = run(main())
        assert "done for s1" in first
        assert "done for s2" in second
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)

    def test_a_flow(self, llm, model):
        """Its methods run in tasks and threads, two of them at once."""

        class Branches(Flow):
            @start()
            def first(self):
                return llm.call(question("s1"))

            @start()
            async def second(self):
                return await llm.acall(question("s1"))

            @listen(and_(first, second))
            def last(self):
                return llm.call(question("s1"))

        with session_scope("s1"):
            assert Branches().kickoff() == "done for s1"
        assert model.count == {"s1": 3}


@pytest.mark.usefixtures("two_lines")
def test_gemini_whose_calls_are_awaited(model, run_at_once):
    """The SDK sends them over aiohttp."""

    async def work(session_id):
        return await LLM(model="gemini/gemini-2.5-flash").acall(question(session_id))

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == {"s1": 1, "s2": 1}


def test_the_page(run_section):
    run_section("CrewAI")


class TestPitfalls:
    def test_no_redirect_is_followed_with_an_interceptor(self, run):
        """Its client is a plain one of httpx."""
        with Server() as stranger:
            with Server(lambda request: redirect(307, f"{stranger.origin}/x")) as server:
                gateway = Gateway(server.origin, forward=FORWARD)
                llm = LLM(model="openai/gpt-4o-mini", api_key="x", **wired(gateway))
                for call in llm.call, lambda text: run(llm.acall(text)):
                    with session_scope("s1"), pytest.raises(Exception, match="307"):
                        call("Hello!")
            assert [arrived.session_id for arrived in server.arrived] == ["s1", "s1"]
            assert stranger.arrived == []

    def test_a_model_of_litellm_ignores_the_interceptor(self, gateway, unchecked_model):
        llm = LLM(model="openai/gpt-4o-mini", is_litellm=True, api_key="x", **wired(gateway))
        with session_scope("s1"):
            llm.call(question("s1"))
        assert [call.is_right for call in unchecked_model.calls] == [False]
