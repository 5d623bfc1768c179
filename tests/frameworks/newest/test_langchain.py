"""LangChain and LangGraph."""

from __future__ import annotations

import asyncio
import operator
from itertools import chain, zip_longest
from typing import Annotated, TypedDict

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableParallel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models import _client_utils
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_from, session_scope
from cagent_session.integrations.httpx2 import GatewayTransport


def both_clients(gateway):
    transport = GatewayTransport(gateway)
    return {
        "base_url": gateway.endpoint("v1"),
        "http_client": openai.DefaultHttpxClient(transport=transport),
        "http_async_client": openai.DefaultAsyncHttpxClient(transport=transport),
    }


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def llm(request, is_instrumented, gateway):
    options = {} if is_instrumented else both_clients(gateway)
    return ChatOpenAI(model="gpt-4o-mini", use_responses_api=request.param, **options)


def said(state):
    return state["messages"][-1].text


def test_the_page(run_section):
    run_section("LangChain and LangGraph")


class TestSync:
    @pytest.fixture
    def agent(self, llm):
        @tool
        def ask(session_id: str) -> str:
            """Ask the model."""
            return llm.invoke(question(session_id)).text

        @tool
        def research(session_id: str) -> str:
            """Let a sub-agent work in a session of its own."""
            with session_scope(f"{session_id}-sub"):
                return said(sub_agent.invoke({"messages": sub_prompt(session_id)}))

        sub_agent = create_agent(llm, tools=[ask])
        return create_agent(llm, tools=[ask, research])

    def test_an_agent(self, agent, model):
        for session_id in ("s1", "s2"):
            with session_scope(session_id):
                state = agent.invoke({"messages": prompt(session_id)})
            assert said(state) == f"done for {session_id}"
        assert model.count == bill("s1", "s2")

    def test_two_streams_in_turn(self, agent, model):
        @session_from("session_id")
        def run(session_id):
            for part, _ in agent.stream({"messages": prompt(session_id)}, stream_mode="messages"):
                yield part.text

        parts = "".join(chain(*zip_longest(run("s1"), run("s2"), fillvalue="")))
        assert "done for s1" in parts
        assert "done for s2" in parts
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)

    def test_a_tool_in_a_session_of_its_own(self, llm, model):
        @tool
        @session_scope("s1-sub")
        def research(topic: str) -> str:
            """Find out."""
            return llm.invoke(question("s1-sub")).text

        with session_scope("s1"):
            state = create_agent(llm, tools=[research]).invoke(
                {"messages": "session s1: research(x)"}
            )
        assert said(state) == "done for s1"
        assert model.count == {"s1": 2, "s1-sub": 1}

    def test_branches(self, llm, model):
        """Of a chain, a batch, a graph and its tasks, which all run in pools."""

        class State(TypedDict):
            answers: Annotated[list, operator.add]

        def branch(state: State):
            return {"answers": [llm.invoke(question("s1")).text]}

        graph = StateGraph(State)
        for name in ("a", "b"):
            graph.add_node(name, branch)
            graph.add_edge(START, name)
            graph.add_edge(name, END)

        @task
        def answer(session_id):
            return llm.invoke(question(session_id)).text

        @entrypoint()
        def tasks(session_id):
            return [future.result() for future in [answer(session_id), answer(session_id)]]

        with session_scope("s1"):
            assert len(RunnableParallel(a=llm, b=llm).invoke(question("s1"))) == 2
            assert len(llm.batch([question("s1")] * 2)) == 2
            assert graph.compile().invoke({"answers": []}) == {"answers": ["done for s1"] * 2}
            assert tasks.invoke("s1") == ["done for s1"] * 2
        assert model.count == {"s1": 8}

    def test_a_lazy_stream_takes_the_session_of_whoever_iterates(self, llm, model):
        with session_scope("s1"):
            stream = llm.stream(question("s2"))
        with session_scope("s2"):
            assert "".join(part.text for part in stream) == "done for s2"
        assert model.count == {"s2": 1}


class TestAsync:
    @pytest.fixture
    def agent(self, llm):
        @tool
        async def ask(session_id: str) -> str:
            """Ask the model."""
            return (await llm.ainvoke(question(session_id))).text

        @tool
        async def research(session_id: str) -> str:
            """Let a sub-agent work in a session of its own."""
            with session_scope(f"{session_id}-sub"):
                return said(await sub_agent.ainvoke({"messages": sub_prompt(session_id)}))

        sub_agent = create_agent(llm, tools=[ask])
        return create_agent(llm, tools=[ask, research])

    def test_agents_at_once(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            return said(await agent.ainvoke({"messages": prompt(session_id)}))

        async def main():
            return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

        assert run(main()) == ["done for s1", "done for s2", "done for s3"]
        assert model.count == bill("s1", "s2", "s3")

    def test_streams_at_once(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            messages = {"messages": prompt(session_id)}
            stream = agent.astream(messages, stream_mode="messages")
            return "".join([part.text async for part, _ in stream])

        async def main():
            return await asyncio.gather(work("s1"), work("s2"))

        first, second = run(main())
        assert "done for s1" in first
        assert "done for s2" in second
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)

    def test_tools_that_are_not(self, llm, model, run):
        """They run in a pool, with the session."""

        @tool
        def ask(session_id: str) -> str:
            """Ask the model."""
            return llm.invoke(question(session_id)).text

        async def main():
            with session_scope("s1"):
                messages = {"messages": "session s1: ask(s1) ask(s1)"}
                return said(await create_agent(llm, tools=[ask]).ainvoke(messages))

        assert run(main()) == "done for s1"
        assert model.count == {"s1": 4}


class TestPitfalls:
    @pytest.mark.parametrize("given", ["http_client", "http_async_client"])
    def test_one_client_leaves_the_other_way_unattributed(
        self, given, gateway, unchecked_model, run
    ):
        clients = both_clients(gateway)
        options = {"base_url": clients["base_url"], given: clients[given]}
        llm = ChatOpenAI(model="gpt-4o-mini", api_key="x", **options)
        with session_scope("s1"):
            llm.invoke(question("s1"))
            run(llm.ainvoke(question("s1")))
        wired = [call.is_right for call in unchecked_model.calls]
        assert wired == [given == "http_client", given == "http_async_client"]

    def test_a_warning_about_clients_that_are_not_used(self, gateway, monkeypatch, caplog):
        """They would pass over a proxy; ``http_socket_options=()`` silences it."""
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
        for options, warnings in ({"http_socket_options": ()}, 0), ({}, 1):
            monkeypatch.setattr(_client_utils, "_proxy_env_warning_emitted", False)
            ChatOpenAI(model="gpt-4o-mini", api_key="x", **both_clients(gateway), **options)
            shown = [record for record in caplog.records if "proxy" in record.message]
            assert len(shown) == warnings

    def test_a_stream_reports_no_usage_unless_it_is_asked_for(
        self, is_instrumented, gateway, model
    ):
        for asked in False, True:
            options = {} if is_instrumented else both_clients(gateway)
            if asked:
                options["stream_usage"] = True
            llm = ChatOpenAI(model="gpt-4o-mini", **options)
            with session_scope("s1"):
                parts = list(llm.stream(question("s1")))
            assert any(part.usage_metadata for part in parts) is asked
