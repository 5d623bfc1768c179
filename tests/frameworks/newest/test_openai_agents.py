"""The OpenAI Agents SDK."""

from __future__ import annotations

import asyncio

import agents
import openai
import pytest
from agents import Agent, ModelSettings, Runner, function_tool
from agents.models import _openai_shared
from agents.tracing.processors import default_exporter
from mock_model import FORWARD, bill, prompt, question, sub_prompt
from support.wire import Server, response

from cagent_session import Gateway, instrument, no_session, session_from, session_scope
from cagent_session.integrations.httpx2 import GatewayTransport


def client_of(gateway):
    http = openai.DefaultAsyncHttpxClient(transport=GatewayTransport(gateway))
    return openai.AsyncOpenAI(base_url=gateway.endpoint("v1"), http_client=http)


@pytest.fixture
def defaults(monkeypatch):
    """Puts back at its end what the SDK keeps for the whole process."""
    for name in ("_default_openai_client", "_use_responses_by_default"):
        monkeypatch.setattr(_openai_shared, name, getattr(_openai_shared, name))


@pytest.fixture(params=["chat_completions", "responses"])
def wired(request, is_instrumented, gateway, defaults):
    agents.set_default_openai_api(request.param)
    if not is_instrumented:
        agents.set_default_openai_client(client_of(gateway), use_for_tracing=False)


@pytest.fixture
def agent(wired):
    @function_tool
    async def ask(session_id: str) -> str:
        return (await Runner.run(helper, question(session_id))).final_output

    @function_tool
    async def research(session_id: str) -> str:
        with session_scope(f"{session_id}-sub"):
            return (await Runner.run(sub_agent, sub_prompt(session_id))).final_output

    helper = Agent(name="helper")
    sub_agent = Agent(name="researcher", tools=[ask])
    return Agent(name="assistant", tools=[ask, research])


def test_agents_at_once(agent, model, run):
    @session_from("session_id")
    async def work(session_id):
        return (await Runner.run(agent, prompt(session_id))).final_output

    async def main():
        return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

    assert run(main()) == ["done for s1", "done for s2", "done for s3"]
    assert model.count == bill("s1", "s2", "s3")


def test_streams_at_once(agent, model, run):
    @session_from("session_id")
    async def work(session_id):
        stream = Runner.run_streamed(agent, prompt(session_id))
        kinds = [event.type async for event in stream.stream_events()]
        return stream.final_output, "raw_response_event" in kinds

    async def main():
        return await asyncio.gather(work("s1"), work("s2"))

    assert run(main()) == [("done for s1", True), ("done for s2", True)]
    assert model.count == bill("s1", "s2")
    assert any(call.streamed for call in model.calls)


def test_a_stream_belongs_to_the_session_that_began_it(agent, model, run):
    """Whoever reads it: the run is a task of its own."""

    async def main():
        with session_scope("s1"):
            first = Runner.run_streamed(agent, prompt("s1"))
        with session_scope("s2"):
            second = Runner.run_streamed(agent, prompt("s2"))
            async for _ in first.stream_events():
                pass
        with no_session():
            async for _ in second.stream_events():
                pass
        return first.final_output, second.final_output

    assert run(main()) == ("done for s1", "done for s2")
    assert model.count == bill("s1", "s2")


@pytest.mark.usefixtures("wired")
def test_blocking(model):
    """``run_sync``, and tools that are not coroutines: they run in threads, with the session."""

    @function_tool
    def ask(session_id: str) -> str:
        return Runner.run_sync(helper, question(session_id)).final_output

    helper = Agent(name="helper")
    agent = Agent(name="assistant", tools=[ask])
    for session_id in ("s1", "s2"):
        with session_scope(session_id):
            result = Runner.run_sync(agent, f"session {session_id}: ask({session_id})")
        assert result.final_output == f"done for {session_id}"
    assert model.count == {"s1": 3, "s2": 3}


@pytest.mark.usefixtures("wired")
def test_agents_as_tools(model, run):
    """They work in the session of their caller, and decorated in one of their own."""

    def tool_of(session_id):
        sub_agent = Agent(name="helper", instructions=question(session_id))
        return sub_agent.as_tool(session_id.replace("-", "_"), "Help.")

    @function_tool
    @session_scope("s1-sub")
    async def research(topic: str) -> str:
        return (await Runner.run(Agent(name="helper"), question("s1-sub"))).final_output

    ours, theirs = tool_of("s1"), tool_of("s1-sub")
    theirs.on_invoke_tool = session_scope("s1-sub")(theirs.on_invoke_tool)
    agent = Agent(name="assistant", tools=[ours, theirs, research])
    with session_scope("s1"):
        result = run(Runner.run(agent, "session s1: s1(x) s1_sub(x) research(x)"))
    assert result.final_output == "done for s1"
    assert model.count == {"s1": 3, "s1-sub": 2}


@pytest.mark.usefixtures("wired")
def test_a_handoff_stays_in_the_session(model, run):
    other = Agent(name="other")
    agent = Agent(name="assistant", handoffs=[other])
    with session_scope("s1"):
        result = run(Runner.run(agent, "session s1: transfer_to_other()"))
    assert result.last_agent is other
    assert model.count == {"s1": 2}


@pytest.mark.usefixtures("wired")
def test_a_streamed_chat_reports_no_usage_unless_it_is_asked_for(model, run):
    async def total(**settings):
        agent = Agent(name="assistant", model_settings=ModelSettings(**settings))
        stream = Runner.run_streamed(agent, question("s1"))
        async for _ in stream.stream_events():
            pass
        return stream.context_wrapper.usage.total_tokens

    with session_scope("s1"):
        is_silent = run(total()) == 0
        assert run(total(include_usage=True)) > 0
    assert is_silent is model.calls[0].path.endswith("/chat/completions")


@pytest.mark.usefixtures("defaults")
def test_the_page(run_section):
    run_section("OpenAI Agents SDK")


@pytest.mark.usefixtures("defaults")
class TestTracing:
    """On by default, it goes to the provider itself, with the key that it finds."""

    @pytest.fixture
    def traces(self, monkeypatch):
        with Server() as provider:
            exporter = default_exporter()
            assert exporter.endpoint.startswith("https://api.openai.com/")
            monkeypatch.setattr(exporter, "endpoint", f"{provider.origin}/v1/traces/ingest")
            monkeypatch.setattr(exporter, "_api_key", None)
            agents.set_tracing_disabled(False)
            yield provider
            agents.set_tracing_disabled(True)

    def work(self, run):
        with session_scope("s1"):
            run(Runner.run(Agent(name="assistant"), question("s1")))
        agents.flush_traces()

    def test_takes_the_key_of_the_gateway(self, traces, is_instrumented, gateway, model, run):
        """Out of ``OPENAI_API_KEY``, with and without ``use_for_tracing=False``."""
        if not is_instrumented:
            agents.set_default_openai_client(client_of(gateway), use_for_tracing=False)
        self.work(run)
        assert {each.get("Authorization") for each in traces.arrived} == {
            "Bearer key-of-the-gateway"
        }
        assert {frozenset(each.identifiers) for each in traces.arrived} == {frozenset()}

    def test_use_for_tracing_decides_where_the_environment_has_no_key(
        self, traces, gateway, model, run, monkeypatch
    ):
        monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-client")
        client = client_of(gateway)
        monkeypatch.delenv("OPENAI_API_KEY")
        agents.set_default_openai_client(client, use_for_tracing=False)
        self.work(run)
        assert traces.arrived == []
        agents.set_default_openai_client(client, use_for_tracing=True)
        self.work(run)
        assert traces.arrived[0].get("Authorization") == "Bearer key-of-the-client"

    @pytest.mark.parametrize("is_instrumented", ["by hand"], indirect=True)
    def test_switched_off_nothing_goes(self, traces, is_instrumented, gateway, model, run):
        agents.set_default_openai_client(client_of(gateway), use_for_tracing=False)
        agents.set_tracing_disabled(True)
        self.work(run)
        assert traces.arrived == []


@pytest.mark.usefixtures("defaults")
def test_its_websockets_are_out_of_reach(run, monkeypatch):
    for name in ("_default_openai_responses_transport", "_use_responses_websocket_by_default"):
        monkeypatch.setattr(_openai_shared, name, getattr(_openai_shared, name))
    agents.set_default_openai_responses_transport("websocket")
    with Server(lambda arrived: response(404)) as server:
        gateway = Gateway(server.origin, forward=FORWARD)
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        monkeypatch.setenv("OPENAI_BASE_URL", gateway.endpoint("v1"))
        with instrument(gateway), session_scope("s1"), pytest.raises(Exception, match="404"):
            run(Runner.run(Agent(name="assistant"), question("s1")))
    assert {each.get("Upgrade") for each in server.arrived} == {"websocket"}
    assert {frozenset(each.identifiers) for each in server.arrived} == {frozenset()}
