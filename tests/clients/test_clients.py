"""Clients that nobody here wrote, in a session, against the recording gateway."""

from __future__ import annotations

import asyncio
import dataclasses
from email.utils import formatdate

import anthropic
import httpx
import httpx2
import openai
import pytest
import requests
from cachecontrol import CacheControlAdapter
from mistralai.client import Mistral
from requests_oauthlib import OAuth1Session
from requests_toolbelt import MultipartEncoder
from requests_toolbelt.adapters.source import SourceAddressAdapter
from support.wire import Server, redirect, response

from cagent_session import (
    Gateway,
    GatewayMixin,
    bind_session,
    current_session_id,
    no_session,
    session_scope,
)
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

FORWARD = "https://api.openai.com/v1"
MESSAGES = [{"role": "user", "content": "one two three"}]


@pytest.fixture
def gateway(recording_gateway) -> Gateway:
    return Gateway(recording_gateway.url, forward=FORWARD, provider="p")


@pytest.fixture
def all_of(recording_gateway):
    """Checks that so many calls arrived, each marked and all of one session."""

    def check(session_id: str, count: int) -> None:
        arrived = recording_gateway.requests
        assert len(arrived) == count
        assert {request.session_id for request in arrived} == {session_id}
        assert {request.forward for request in arrived} == {FORWARD}

    return check


def flaky(*answers: bytes):
    """A gateway that answers these first, and then goes on as OpenAI and Anthropic at once."""
    first = iter(answers)
    body = (
        b'{"id": "x", "object": "chat.completion", "type": "message", "role": "assistant",'
        b'"model": "m", "created": 1, "stop_reason": "end_turn", "stop_sequence": null,'
        b'"content": [{"type": "text", "text": "ok"}],'
        b'"choices": [{"index": 0, "finish_reason": "stop",'
        b'"message": {"role": "assistant", "content": "ok"}}],'
        b'"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2,'
        b'"input_tokens": 1, "output_tokens": 1}}'
    )
    return Server(lambda request: next(first, None) or response(200, body))


CLIENTS = [
    pytest.param(httpx2, for_httpx2, id="httpx2"),
    pytest.param(httpx, for_httpx, id="httpx"),
]


@pytest.mark.parametrize(("library", "integration"), CLIENTS)
class TestOpenAI:
    def client(self, gateway, library, integration, **options):
        http = library.Client(transport=integration.GatewayTransport(gateway))
        base_url = gateway.endpoint("v1")
        return openai.OpenAI(api_key="x", base_url=base_url, http_client=http, **options)

    def async_client(self, gateway, library, integration, **options):
        http = library.AsyncClient(transport=integration.AsyncGatewayTransport(gateway))
        base_url = gateway.endpoint("v1")
        return openai.AsyncOpenAI(api_key="x", base_url=base_url, http_client=http, **options)

    def test_sync(self, gateway, recording_gateway, all_of, library, integration):
        with self.client(gateway, library, integration) as client, session_scope("s1"):
            answer = client.chat.completions.create(model="m", messages=MESSAGES)
            assert answer.choices[0].message.content == recording_gateway.reply
            assert answer.usage.prompt_tokens == 3
            stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert text == recording_gateway.reply
            assert current_session_id() == "s1"
        all_of("s1", 2)
        assert "OpenAI" in recording_gateway.requests[0].headers["User-Agent"]

    def test_async(self, gateway, recording_gateway, library, integration):
        async def ask(client, session_id):
            with session_scope(session_id):
                answer = await client.chat.completions.create(model="m", messages=MESSAGES)
                assert answer.choices[0].message.content == recording_gateway.reply
                stream = await client.chat.completions.create(
                    model="m", messages=MESSAGES, stream=True
                )
                texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
                assert "".join(texts) == recording_gateway.reply

        async def main():
            async with self.async_client(gateway, library, integration) as client:
                await asyncio.gather(*(ask(client, f"s{number}") for number in range(5)))

        asyncio.run(main())
        bills = recording_gateway.sessions
        assert {name: usage.requests for name, usage in bills.items()} == {
            f"s{number}": 2 for number in range(5)
        }

    def test_async_call_that_is_bound(self, gateway, all_of, library, integration):
        """`create` is no coroutine function, but returns a coroutine."""

        async def main():
            async with self.async_client(gateway, library, integration) as client:
                with session_scope("s1"):
                    ask = bind_session(client.chat.completions.create)
                with no_session():
                    await ask(model="m", messages=MESSAGES)

        asyncio.run(main())
        all_of("s1", 1)

    @pytest.mark.parametrize("status", [429, 500])
    def test_its_own_retries(self, status, library, integration):
        with flaky(response(status, headers={"retry-after-ms": "1"})) as server:
            gateway = Gateway(server.origin, forward=FORWARD)
            with self.client(gateway, library, integration) as client, session_scope("s1"):
                client.chat.completions.create(model="m", messages=MESSAGES)
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    def test_its_own_errors(self, library, integration):
        """Whose request is the one that the client made, and not the one on the wire."""
        with flaky(response(400, b'{"error": {"message": "no"}}')) as server:
            gateway = Gateway(server.origin, forward=FORWARD)
            with (
                self.client(gateway, library, integration) as client,
                session_scope("s1"),
                pytest.raises(openai.BadRequestError) as caught,
            ):
                client.chat.completions.create(model="m", messages=MESSAGES)
            assert [request.session_id for request in server.arrived] == ["s1"]
        assert caught.value.status_code == 400
        assert "X-Cagent-Session-Id" not in caught.value.request.headers


class TestAnthropic:
    def client(self, gateway):
        http = httpx2.Client(transport=for_httpx2.GatewayTransport(gateway))
        return anthropic.Anthropic(api_key="x", base_url=gateway.endpoint(""), http_client=http)

    def test_sync(self, gateway, recording_gateway, all_of):
        ask = {"model": "m", "max_tokens": 9, "messages": MESSAGES}
        with self.client(gateway) as client, session_scope("s1"):
            answer = client.messages.create(**ask)
            assert answer.content[0].text == recording_gateway.reply
            assert answer.usage.input_tokens == 3
            with client.messages.stream(**ask) as stream:
                assert "".join(stream.text_stream) == recording_gateway.reply
                assert stream.get_final_message().usage.output_tokens == 5
        all_of("s1", 2)

    def test_async(self, gateway, recording_gateway, all_of):
        async def main():
            http = httpx2.AsyncClient(transport=for_httpx2.AsyncGatewayTransport(gateway))
            client = anthropic.AsyncAnthropic(
                api_key="x", base_url=gateway.endpoint(""), http_client=http
            )
            ask = {"model": "m", "max_tokens": 9, "messages": MESSAGES}
            async with client:
                with session_scope("s1"):
                    answer = await client.messages.create(**ask)
                    assert answer.content[0].text == recording_gateway.reply
                    async with client.messages.stream(**ask) as stream:
                        texts = [text async for text in stream.text_stream]
                    assert "".join(texts) == recording_gateway.reply

        asyncio.run(main())
        all_of("s1", 2)

    @pytest.mark.parametrize("status", [429, 500])
    def test_its_own_retries(self, status):
        with flaky(response(status, headers={"retry-after-ms": "1"})) as server:
            gateway = Gateway(server.origin, forward=FORWARD)
            with self.client(gateway) as client, session_scope("s1"):
                client.messages.create(model="m", max_tokens=9, messages=MESSAGES)
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]


def test_mistral(gateway, recording_gateway, all_of):
    with httpx2.Client(transport=for_httpx2.GatewayTransport(gateway)) as http:
        client = Mistral(api_key="x", server_url=gateway.endpoint(""), client=http)
        with session_scope("s1"):
            answer = client.chat.complete(model="m", messages=MESSAGES)
    assert answer.choices[0].message.content == recording_gateway.reply
    all_of("s1", 1)


def test_requests_oauthlib(gateway, recording_gateway, all_of):
    gateway = dataclasses.replace(gateway, headers={"Accept": "application/vnd.team+json"})
    with OAuth1Session("key", "secret") as http, session_scope("s1"):
        gateway.mount(http)
        http.get(gateway.endpoint("v1/models")).raise_for_status()
    all_of("s1", 1)
    assert recording_gateway.requests[0].headers["Accept"] == "application/vnd.team+json"


def test_requests_oauthlib_at_a_redirect_within_the_origin():
    """It makes its headers anew for each hop: the gateway's are put on again, the caller's not."""
    with Server() as server:
        server.respond = lambda request: redirect(307, "/b") if request.path == "/a" else response()
        gateway = Gateway(server.origin, forward=FORWARD)
        with OAuth1Session("key", "secret") as http, session_scope("s1"):
            gateway.mount(http)
            http.get(gateway.endpoint("a"), headers={"X-Cagent-Model": "m"}).raise_for_status()
    marks = [(request.forward, request.session_id) for request in server.arrived]
    assert marks == [(FORWARD, "s1")] * 2
    assert [request.get("X-Cagent-Model") for request in server.arrived] == ["m", None]


def test_cachecontrol():
    """The cache decides as ever, and what it does not have goes out stamped."""

    class CachedAdapter(GatewayMixin, CacheControlAdapter):
        pass

    headers = {"Cache-Control": "max-age=60", "Date": formatdate(usegmt=True)}
    with Server(lambda request: response(headers=headers)) as server:
        gateway = Gateway(server.origin, forward=FORWARD)
        with requests.Session() as http:
            http.mount(server.origin, CachedAdapter(gateway, cacheable_methods=["GET"]))
            for session_id in ("s1", "s2"):
                with session_scope(session_id):
                    answer = http.get(gateway.endpoint("x"))
            assert answer.from_cache
            with session_scope("s3"):
                http.post(gateway.endpoint("x"))
        assert [request.session_id for request in server.arrived] == ["s1", "s3"]


def test_requests_toolbelt(gateway, all_of, recording_gateway):
    class FromHere(GatewayMixin, SourceAddressAdapter):
        def __init__(self, gateway, **options):
            super().__init__(gateway, **options)

    with requests.Session() as http, session_scope("s1"):
        http.mount(recording_gateway.url, FromHere(gateway, source_address="127.0.0.1"))
        upload = MultipartEncoder({"file": ("name", b"content")})
        headers = {"Content-Type": upload.content_type}
        http.post(gateway.endpoint("v1/files"), data=upload, headers=headers).raise_for_status()
    all_of("s1", 1)
    assert b"content" in recording_gateway.requests[0].body
