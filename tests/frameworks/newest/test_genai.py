"""Google's Gen AI SDK."""

from __future__ import annotations

import asyncio
from itertools import zip_longest

import aiohttp
import pytest
from google import genai
from mock_model import bill, prompt, question, sub_prompt

from cagent_session import instrument, session_from, session_scope
from cagent_session.headers import COMPACTING, GENERATING_TITLE
from cagent_session.integrations.aiohttp import GatewayMiddleware
from cagent_session.integrations.httpx2 import GatewayTransport

MODEL = "gemini-2.5-flash"


@pytest.fixture(params=["instrument", "by hand"])
def client(request, gateway, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "key-of-the-gateway")
    if request.param == "by hand":
        monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL", raising=False)
        yield genai.Client(http_options=wired(gateway))
        return
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", gateway.endpoint(""))
    with instrument(gateway):
        yield genai.Client()


def wired(gateway):
    given = {"transport": GatewayTransport(gateway)}
    return {"base_url": gateway.endpoint(""), "client_args": given, "async_client_args": given}


class TestBlocking:
    @pytest.fixture
    def chat(self, client):
        def ask(session_id: str) -> str:
            """Ask the model."""
            return client.models.generate_content(model=MODEL, contents=question(session_id)).text

        def research(session_id: str) -> str:
            """Let a sub-agent work in a session of its own."""
            with session_scope(f"{session_id}-sub"):
                return chat([ask]).send_message(sub_prompt(session_id)).text

        def chat(tools):
            return client.chats.create(model=MODEL, config={"tools": tools})

        return lambda: chat([ask, research])

    def test_an_agent(self, chat, model):
        for session_id in ("s1", "s2"):
            with session_scope(session_id):
                assert chat().send_message(prompt(session_id)).text == f"done for {session_id}"
        assert model.count == bill("s1", "s2")

    def test_two_streams_in_turn(self, chat, model):
        @session_from("session_id")
        def work(session_id):
            for part in chat().send_message_stream(prompt(session_id)):
                yield part.text or ""

        in_turn = zip_longest(work("s1"), work("s2"), fillvalue="")
        texts = ["".join(parts) for parts in zip(*in_turn, strict=True)]
        assert texts == ["done for s1", "done for s2"]
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)

    @pytest.mark.parametrize("purpose", [GENERATING_TITLE, COMPACTING])
    def test_what_a_call_is_for(self, purpose, client, model):
        ask = {"model": MODEL, "contents": question("s1")}
        with session_scope("s1"):
            config = {"http_options": {"headers": {purpose: "1"}}}
            client.models.generate_content(config=config, **ask)
            client.models.generate_content(**ask)
        assert [each.get(purpose) for each in model.arrived] == ["1", None]

    def test_a_lazy_stream_takes_the_session_of_whoever_iterates(self, client, model):
        with session_scope("s1"):
            stream = client.models.generate_content_stream(model=MODEL, contents=question("s2"))
        with session_scope("s2"):
            assert [part.text for part in stream] == ["done for s2"]
        assert model.count == {"s2": 1}


class TestAsync:
    @pytest.fixture
    def chat(self, client):
        async def ask(session_id: str) -> str:
            """Ask the model."""
            ask = {"model": MODEL, "contents": question(session_id)}
            return (await client.aio.models.generate_content(**ask)).text

        async def research(session_id: str) -> str:
            """Let a sub-agent work in a session of its own."""
            with session_scope(f"{session_id}-sub"):
                return (await chat([ask]).send_message(sub_prompt(session_id))).text

        def chat(tools):
            return client.aio.chats.create(model=MODEL, config={"tools": tools})

        return lambda: chat([ask, research])

    def test_agents_at_once(self, chat, model, run):
        @session_from("session_id")
        async def work(session_id):
            return (await chat().send_message(prompt(session_id))).text

        async def main():
            return await asyncio.gather(*map(work, ("s1", "s2", "s3")))

        assert run(main()) == ["done for s1", "done for s2", "done for s3"]
        assert model.count == bill("s1", "s2", "s3")

    def test_streams_at_once(self, chat, model, run):
        @session_from("session_id")
        async def work(session_id):
            stream = await chat().send_message_stream(prompt(session_id))
            return "".join([part.text or "" async for part in stream])

        async def main():
            return await asyncio.gather(work("s1"), work("s2"))

        assert run(main()) == ["done for s1", "done for s2"]
        assert model.count == bill("s1", "s2")
        assert any(call.streamed for call in model.calls)

    def test_blocking_tools_run_in_threads(self, client, model, run):
        def ask(session_id: str) -> str:
            """Ask the model."""
            return client.models.generate_content(model=MODEL, contents=question(session_id)).text

        async def main():
            chat = client.aio.chats.create(model=MODEL, config={"tools": [ask]})
            with session_scope("s1"):
                return (await chat.send_message("session s1: ask(s1) ask(s1)")).text

        assert run(main()) == "done for s1"
        assert model.count == {"s1": 4}


class TestAiohttp:
    """Asynchronous calls go over aiohttp, if it is installed and no transport is given."""

    def test_with_a_middleware(self, gateway, model, run):
        @session_from("session_id")
        async def work(client, session_id):
            ask = {"model": MODEL, "contents": question(session_id)}
            await client.models.generate_content(**ask)
            async for _ in await client.models.generate_content_stream(**ask):
                pass

        async def main():
            middlewares = [GatewayMiddleware(gateway)]
            async with aiohttp.ClientSession(middlewares=middlewares) as http:
                options = {"base_url": gateway.endpoint(""), "aiohttp_client": http}
                async with genai.Client(api_key="x", http_options=options).aio as client:
                    await asyncio.gather(work(client, "s1"), work(client, "s2"))

        run(main())
        assert model.count == {"s1": 2, "s2": 2}
