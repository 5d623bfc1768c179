"""LiteLLM's SDK, with the loop of an agent around it."""

from __future__ import annotations

import asyncio
import json
from itertools import zip_longest

import aiohttp
import httpx
import litellm
import pytest
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import (
    Gateway,
    SessionThreadPoolExecutor,
    instrument,
    session_from,
    session_scope,
)
from cagent_session.integrations.aiohttp import GatewayMiddleware
from cagent_session.integrations.httpx import GatewayTransport

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": name,
            "parameters": {"type": "object", "properties": {"session_id": {"type": "string"}}},
        },
    }
    for name in ("ask", "research")
]


@pytest.fixture(autouse=True)
def _as_imported(monkeypatch):
    """It keeps its clients for an hour, whatever it is given in the meantime."""
    for name in ("client_session", "aclient_session"):
        monkeypatch.setattr(litellm, name, None)
    litellm.in_memory_llm_clients_cache.flush_cache()


@pytest.fixture
def options(is_instrumented, gateway):
    if is_instrumented:
        return {"model": "gpt-4o-mini"}
    transport = GatewayTransport(gateway)
    litellm.client_session = httpx.Client(transport=transport, follow_redirects=True)
    litellm.aclient_session = httpx.AsyncClient(transport=transport, follow_redirects=True)
    return {"model": "gpt-4o-mini", "api_base": gateway.endpoint("v1")}


def asked(text):
    return [{"role": "user", "content": text}]


def commands(message):
    for call in message.tool_calls or ():
        yield call.id, call.function.name, json.loads(call.function.arguments)["session_id"]


def result(call_id, text):
    return {"role": "tool", "tool_call_id": call_id, "content": text}


class TestBlocking:
    @pytest.fixture(params=[False, True], ids=["whole", "streamed"])
    def agent(self, request, options):
        def message(messages, **more):
            answer = litellm.completion(messages=messages, stream=request.param, **options, **more)
            if request.param:
                answer = litellm.stream_chunk_builder(list(answer))
            return answer.choices[0].message

        def ask(session_id):
            return message(asked(question(session_id))).content

        def research(session_id):
            with session_scope(f"{session_id}-sub"):
                return agent(sub_prompt(session_id))

        def work(command):
            call_id, name, session_id = command
            return result(call_id, {"ask": ask, "research": research}[name](session_id))

        def agent(text):
            messages = asked(text)
            with SessionThreadPoolExecutor() as pool:
                while (said := message(messages, tools=TOOLS)).tool_calls:
                    messages += [said, *pool.map(work, commands(said))]
            return said.content

        return agent

    def test_an_agent(self, agent, model):
        for session_id in ("s1", "s2"):
            with session_scope(session_id):
                assert agent(prompt(session_id)) == f"done for {session_id}"
        assert model.count == bill("s1", "s2")

    def test_two_streams_in_turn(self, options, model):
        @session_from("session_id")
        def work(session_id):
            for part in litellm.completion(
                messages=asked(question(session_id)), stream=True, **options
            ):
                yield part.choices[0].delta.content or ""

        in_turn = zip_longest(work("s1"), work("s2"), fillvalue="")
        texts = ["".join(parts) for parts in zip(*in_turn, strict=True)]
        assert texts == ["done for s1", "done for s2"]
        assert model.count == {"s1": 1, "s2": 1}

    def test_a_router(self, options, model):
        router = litellm.Router([{"model_name": "any", "litellm_params": options}])
        with session_scope("s1"):
            router.completion("any", asked(question("s1")))
        assert model.count == {"s1": 1}


class TestAsync:
    @pytest.fixture(params=[False, True], ids=["whole", "streamed"])
    def agent(self, request, options):
        async def message(messages, **more):
            answer = await litellm.acompletion(
                messages=messages, stream=request.param, **options, **more
            )
            if request.param:
                answer = litellm.stream_chunk_builder([part async for part in answer])
            return answer.choices[0].message

        async def ask(session_id):
            return (await message(asked(question(session_id)))).content

        async def research(session_id):
            with session_scope(f"{session_id}-sub"):
                return await agent(sub_prompt(session_id))

        async def work(command):
            call_id, name, session_id = command
            return result(call_id, await {"ask": ask, "research": research}[name](session_id))

        async def agent(text):
            messages = asked(text)
            while (said := await message(messages, tools=TOOLS)).tool_calls:
                messages += [said, *await asyncio.gather(*map(work, commands(said)))]
            return said.content

        return agent

    def test_agents_at_once(self, agent, model, run):
        @session_from("session_id")
        async def work(session_id):
            return await agent(prompt(session_id))

        async def main():
            return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

        assert run(main()) == ["done for s1", "done for s2", "done for s3"]
        assert model.count == bill("s1", "s2", "s3")

    def test_a_router(self, options, model, run):
        router = litellm.Router([{"model_name": "any", "litellm_params": options}])
        with session_scope("s1"):
            run(router.acompletion("any", asked(question("s1"))))
        assert model.count == {"s1": 1}


class TestOtherProviders:
    """They are called with clients of LiteLLM's own, and take others one call at a time."""

    @pytest.fixture
    def options(self, recording_gateway):
        return {
            "model": "anthropic/claude-sonnet-5-5",
            "messages": asked("Hello!"),
            "api_base": recording_gateway.url,
            "api_key": "x",
        }

    @pytest.fixture
    def anthropic(self, recording_gateway):
        return Gateway(recording_gateway.url, forward="https://api.anthropic.com")

    def test_by_hand(self, anthropic, options, recording_gateway, run):
        transport = GatewayTransport(anthropic)
        blocking = HTTPHandler(client=httpx.Client(transport=transport))
        asynchronous = AsyncHTTPHandler(transport=transport)

        async def main():
            await litellm.acompletion(client=asynchronous, **options)
            stream = await litellm.acompletion(client=asynchronous, stream=True, **options)
            return [part async for part in stream]

        with session_scope("s1"):
            litellm.completion(client=blocking, **options)
            list(litellm.completion(client=blocking, stream=True, **options))
            run(main())
        arrived = [(each.session_id, each.forward) for each in recording_gateway.requests]
        assert arrived == [("s1", anthropic.forward)] * 4

    def test_instrumented(self, anthropic, options, recording_gateway, run):
        async def main():
            await litellm.acompletion(**options)
            stream = await litellm.acompletion(stream=True, **options)
            return [part async for part in stream]

        with instrument(anthropic), session_scope("s1"):
            litellm.completion(**options)
            run(main())
        arrived = [(each.session_id, each.forward) for each in recording_gateway.requests]
        assert arrived == [("s1", anthropic.forward)] * 3

    def test_the_clients_for_openai_are_not_theirs(
        self, anthropic, options, recording_gateway, run
    ):
        litellm.client_session = httpx.Client(transport=GatewayTransport(anthropic))
        litellm.aclient_session = httpx.AsyncClient(transport=GatewayTransport(anthropic))
        with session_scope("s1"):
            litellm.completion(**options)
            run(litellm.acompletion(**options))
        assert [each.session_id for each in recording_gateway.requests] == [None, None]


def test_the_page(run_section):
    assert [each.forward for each in run_section("LiteLLM's SDK").requests] == [
        "https://api.openai.com/v1",
        "https://api.anthropic.com",
        "https://api.anthropic.com",
    ]


class TestPitfalls:
    @pytest.fixture
    def options(self, unchecked_model):
        return {
            "model": "openai/gpt-4o-mini",
            "api_base": f"{unchecked_model.origin}/v1",
            "api_key": "x",
        }

    def test_a_session_of_aiohttp_can_be_given_to_a_call(self, gateway, options, model, run):
        async def main():
            middlewares = [GatewayMiddleware(gateway)]
            async with aiohttp.ClientSession(middlewares=middlewares) as shared:
                with session_scope("s1"):
                    messages = asked(question("s1"))
                    await litellm.acompletion(messages=messages, shared_session=shared, **options)

        run(main())
        assert model.count == {"s1": 1}

    def test_after_the_first_call_it_is_too_late(self, gateway, options, unchecked_model):
        with session_scope("s1"):
            litellm.completion(messages=asked(question("s1")), **options)
            litellm.client_session = httpx.Client(transport=GatewayTransport(gateway))
            litellm.completion(messages=asked(question("s1")), **options)
            litellm.in_memory_llm_clients_cache.flush_cache()
            litellm.completion(messages=asked(question("s1")), **options)
        assert [call.is_right for call in unchecked_model.calls] == [False, False, True]

    def test_a_stream_reports_no_usage_unless_it_is_asked_for(self, gateway, options, model):
        litellm.client_session = httpx.Client(transport=GatewayTransport(gateway))
        with session_scope("s1"):
            for more in {}, {"stream_options": {"include_usage": True}}:
                messages = asked(question("s1"))
                list(litellm.completion(messages=messages, stream=True, **options, **more))
        assert [call.wants_usage for call in model.calls] == [False, True]

    @pytest.mark.usefixtures("two_lines")
    def test_batches_have_their_own_pool(self, options, model):
        batch = [asked(question("s1"))] * 2
        with session_scope("s1"):
            litellm.batch_completion(messages=batch, **options)
        assert model.count == {"s1": 2}
