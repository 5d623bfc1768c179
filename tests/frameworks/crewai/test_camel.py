"""CAMEL."""

from __future__ import annotations

import page
import pytest
import tiktoken
from camel.agents import ChatAgent
from camel.models import ModelFactory
from camel.toolkits import FunctionTool
from camel.types import ModelPlatformType
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import session_scope


@pytest.fixture(autouse=True)
def _counts_tokens_without_the_network(monkeypatch):
    """It downloads a table, to count the tokens of a prompt."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding(
        name="bytes", pat_str="(?s).", mergeable_ranks=ranks, special_tokens={}
    )
    for name in ("encoding_for_model", "get_encoding"):
        monkeypatch.setattr(tiktoken, name, lambda _: encoding)


@pytest.fixture
def make_agent(two_lines):
    """Makes an agent with the given tools."""

    def make(*tools, stream=False, **options):
        llm = ModelFactory.create(
            model_platform=ModelPlatformType.OPENAI,
            model_type="gpt-4o-mini",
            model_config_dict={"stream": stream},
        )
        return ChatAgent("help", model=llm, tools=[FunctionTool(each) for each in tools], **options)

    return make


@pytest.fixture
def tools(make_agent):
    def ask(session_id: str) -> str:
        """Ask the model.

        Args:
            session_id: whose call it is
        """
        return make_agent().step(question(session_id)).msgs[0].content

    def research(session_id: str) -> str:
        """Let a sub-agent work in a session of its own.

        Args:
            session_id: whose call it is
        """
        with session_scope(f"{session_id}-sub"):
            return make_agent(ask).step(sub_prompt(session_id)).msgs[0].content

    return [ask, research]


@pytest.mark.parametrize("timeout", [None, 20])
def test_blocking_agents(timeout, make_agent, tools, model):
    """With a limit of time each step runs in a pool of the agent's own."""
    for session_id in ("s1", "s2"):
        with session_scope(session_id):
            answer = make_agent(*tools, step_timeout=timeout).step(prompt(session_id))
        assert answer.msgs[0].content == f"done for {session_id}"
    assert model.count == bill("s1", "s2")


def test_streams(make_agent, tools, model):
    """Tools of a streamed answer run in a pool of the agent's own."""
    for session_id in ("s1", "s2"):
        with session_scope(session_id):
            assistant = make_agent(*tools, stream=True, stream_accumulate=True)
            *_, last = assistant.step(prompt(session_id))
        assert last.msgs[0].content == f"done for {session_id}"
    assert model.count == bill("s1", "s2")
    assert any(call.streamed for call in model.calls)


def test_agents_at_once(make_agent, tools, model, run_at_once):
    async def work(session_id):
        return (await make_agent(*tools).astep(prompt(session_id))).msgs[0].content

    assert run_at_once(work, "s1", "s2") == ["done for s1", "done for s2"]
    assert model.count == bill("s1", "s2")


def test_the_page(run_section):
    run_section("CAMEL", page.TWO_LINES)
