"""smolagents."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest

import openai
import pytest
from mock_model import bill, prompt, question, sub_prompt
from smolagents import ChatMessage, CodeAgent, OpenAIModel, ToolCallingAgent, tool

from cagent_session import session_from, session_scope
from cagent_session.integrations.httpx2 import GatewayTransport

END = " then final_answer(done)"


@pytest.fixture
def llm(is_instrumented, gateway):
    if is_instrumented:
        return OpenAIModel("gpt-4o-mini")
    http = openai.DefaultHttpxClient(transport=GatewayTransport(gateway))
    return OpenAIModel(
        "gpt-4o-mini", api_base=gateway.endpoint("v1"), client_kwargs={"http_client": http}
    )


@pytest.fixture(params=["tool calls", "code"])
def make_agent(request):
    """Makes an agent of either kind. Code runs in the agent's own thread pool."""

    def make(llm, tools, **options):
        if request.param == "tool calls":
            return ToolCallingAgent(tools, llm, verbosity_level=-1, **options)
        return CodeAgent(tools, llm, verbosity_level=-1, **options)

    return make


def tools_for(llm, make_agent):
    @tool
    def ask(session_id: str) -> str:
        """Ask the model.

        Args:
            session_id: whose question it is
        """
        return llm([ChatMessage(role="user", content=[text(question(session_id))])]).content

    @tool
    def research(session_id: str) -> str:
        """Let a sub-agent work in a session of its own.

        Args:
            session_id: for whom
        """
        with session_scope(f"{session_id}-sub"):
            return make_agent(llm, [ask]).run(sub_prompt(session_id) + END)

    return [ask, research]


def text(content):
    return {"type": "text", "text": content}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_an_agent(make_agent, llm, model, is_streamed):
    for session_id in ("s1", "s2"):
        with session_scope(session_id):
            agent = make_agent(llm, tools_for(llm, make_agent), stream_outputs=is_streamed)
            assert agent.run(prompt(session_id) + END) == "done"
    assert model.count == bill("s1", "s2")
    assert any(call.streamed for call in model.calls) is is_streamed
    assert all(call.wants_usage for call in model.calls if call.streamed)


def test_two_streams_in_turn(make_agent, llm, model):
    @session_from("session_id")
    def work(session_id):
        agent = make_agent(llm, tools_for(llm, make_agent), stream_outputs=True)
        yield from agent.run(prompt(session_id) + END, stream=True)

    parts = list(chain(*zip_longest(work("s1"), work("s2"))))
    assert [part.output for part in parts if type(part).__name__ == "FinalAnswerStep"] == [
        "done"
    ] * 2
    assert model.count == bill("s1", "s2")


def test_agents_at_once(make_agent, llm, model):
    @session_from("session_id")
    def work(session_id):
        return make_agent(llm, tools_for(llm, make_agent)).run(prompt(session_id) + END)

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(work, ["s1", "s2", "s3"])) == ["done"] * 3
    assert model.count == bill("s1", "s2", "s3")


@pytest.mark.filterwarnings("ignore:.*decorators other than @tool")  # about remote executors
def test_a_tool_in_a_session_of_its_own(make_agent, llm, model):
    @tool
    @session_scope("s1-sub")
    def research(topic: str) -> str:
        """Find out.

        Args:
            topic: what about
        """
        return llm([ChatMessage(role="user", content=[text(question("s1-sub"))])]).content

    with session_scope("s1"):
        assert make_agent(llm, [research]).run("session s1: research(x)" + END) == "done"
    assert model.count == {"s1": 2, "s1-sub": 1}


def test_a_managed_agent_in_a_session_of_its_own(make_agent, llm, model):
    instructions = question("s1-sub") + END.removeprefix(" then ")
    researcher = make_agent(
        llm, [], name="researcher", description="Research.", instructions=instructions
    )
    researcher.run = session_scope("s1-sub")(researcher.run)
    agent = make_agent(llm, [], managed_agents=[researcher])
    with session_scope("s1"):
        assert agent.run("session s1: researcher(x)" + END) == "done"
    assert model.count == {"s1": 2, "s1-sub": 1}


def test_the_page(run_section):
    run_section("smolagents")


def test_code_loses_the_session_without_carry_session(gateway, unchecked_model):
    http = openai.DefaultHttpxClient(transport=GatewayTransport(gateway))
    options = {"api_base": gateway.endpoint("v1"), "client_kwargs": {"http_client": http}}
    llm = OpenAIModel("gpt-4o-mini", api_key="x", **options)

    @tool
    def ask(session_id: str) -> str:
        """Ask the model.

        Args:
            session_id: whose question it is
        """
        return llm([ChatMessage(role="user", content=[text(question(session_id))])]).content

    with session_scope("s1"):
        agent = CodeAgent([ask], llm, verbosity_level=-1)
        agent.run("session s1: ask(s1) ask(s1)" + END)
    assert unchecked_model.count == {"s1": 2, None: 2}
