"""The SDKs of providers, wired by hand and by ``instrument``: each call in its session."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

import anthropic
import groq
import httpx2
import ollama
import openai
import pytest
import requests
from mistralai.client import Mistral

from cagent_session import (
    Gateway,
    SessionRequired,
    gateway_headers,
    instrument,
    session_from,
    session_scope,
    uninstrument,
)
from cagent_session.headers import COMPACTING, GENERATING_TITLE
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2


def asking(session_id):
    """What says whose call it is, for the check of what arrived."""
    return {"model": "m", "messages": [{"role": "user", "content": session_id}]}


class Sdk:
    """Wired by hand to a gateway, or its own clients, which may have to be told the URL."""

    headers_of_a_call = "extra_headers"

    def __init__(self, gateway=None, url=None):
        self.gateway, self.url = gateway, url


class OpenAI(Sdk):
    forward, path, variable = "https://api.openai.com/v1", "v1", "OPENAI_BASE_URL"
    module, integration = openai, for_httpx2
    Blocking, Asynchronous = openai.OpenAI, openai.AsyncOpenAI

    def blocking(self):
        if self.gateway is None:
            return self.Blocking(api_key="x")
        transport = self.integration.GatewayTransport(self.gateway)
        http = self.module.DefaultHttpxClient(transport=transport)
        url = self.gateway.endpoint(self.path)
        return self.Blocking(api_key="x", base_url=url, http_client=http)

    def asynchronous(self):
        if self.gateway is None:
            return self.Asynchronous(api_key="x")
        transport = self.integration.GatewayTransport(self.gateway)
        http = self.module.DefaultAsyncHttpxClient(transport=transport)
        url = self.gateway.endpoint(self.path)
        return self.Asynchronous(api_key="x", base_url=url, http_client=http)

    def ask(self, client, session_id, **options):
        answer = client.chat.completions.create(**asking(session_id), **options)
        return answer.choices[0].message.content

    def stream(self, client, session_id):
        for part in client.chat.completions.create(**asking(session_id), stream=True):
            yield part.choices[0].delta.content or ""

    async def ask_async(self, client, session_id):
        answer = await client.chat.completions.create(**asking(session_id))
        return answer.choices[0].message.content

    async def stream_async(self, client, session_id):
        async for part in await client.chat.completions.create(**asking(session_id), stream=True):
            yield part.choices[0].delta.content or ""


class Groq(OpenAI):
    forward, path, variable = "https://api.groq.com", "", "GROQ_BASE_URL"
    module, integration = groq, for_httpx
    Blocking, Asynchronous = groq.Groq, groq.AsyncGroq


class Anthropic(OpenAI):
    forward, path, variable = "https://api.anthropic.com", "", "ANTHROPIC_BASE_URL"
    module = anthropic
    Blocking, Asynchronous = anthropic.Anthropic, anthropic.AsyncAnthropic

    def ask(self, client, session_id, **options):
        answer = client.messages.create(**asking(session_id), max_tokens=9, **options)
        return answer.content[0].text

    def stream(self, client, session_id):
        with client.messages.stream(**asking(session_id), max_tokens=9) as stream:
            yield from stream.text_stream

    async def ask_async(self, client, session_id):
        answer = await client.messages.create(**asking(session_id), max_tokens=9)
        return answer.content[0].text

    async def stream_async(self, client, session_id):
        async with client.messages.stream(**asking(session_id), max_tokens=9) as stream:
            async for text in stream.text_stream:
                yield text


class Mistralai(Sdk):
    forward, path, variable = "https://api.mistral.ai", "", None
    headers_of_a_call = "http_headers"

    def blocking(self):
        if self.gateway is None:
            return Mistral(api_key="x", server_url=self.url)
        transport = for_httpx2.GatewayTransport(self.gateway)
        return Mistral(
            api_key="x",
            server_url=self.gateway.endpoint(""),
            client=httpx2.Client(transport=transport, follow_redirects=True),
            async_client=httpx2.AsyncClient(transport=transport, follow_redirects=True),
        )

    asynchronous = blocking

    def ask(self, client, session_id, **options):
        answer = client.chat.complete(**asking(session_id), **options)
        return answer.choices[0].message.content

    def stream(self, client, session_id):
        for part in client.chat.stream(**asking(session_id)):
            yield part.data.choices[0].delta.content or ""

    async def ask_async(self, client, session_id):
        answer = await client.chat.complete_async(**asking(session_id))
        return answer.choices[0].message.content

    async def stream_async(self, client, session_id):
        async for part in await client.chat.stream_async(**asking(session_id)):
            yield part.data.choices[0].delta.content or ""


class Ollama(Sdk):
    forward, path, variable = "http://ollama.example:11434", "", "OLLAMA_HOST"

    def blocking(self):
        return self.client(ollama.Client)

    def asynchronous(self):
        return self.client(ollama.AsyncClient)

    def client(self, make):
        if self.gateway is None:
            return make()
        transport = for_httpx.GatewayTransport(self.gateway)
        return make(self.gateway.endpoint(""), transport=transport)

    def ask(self, client, session_id):
        return client.chat(**asking(session_id)).message.content

    def stream(self, client, session_id):
        for part in client.chat(**asking(session_id), stream=True):
            yield part.message.content

    async def ask_async(self, client, session_id):
        return (await client.chat(**asking(session_id))).message.content

    async def stream_async(self, client, session_id):
        async for part in await client.chat(**asking(session_id), stream=True):
            yield part.message.content


@pytest.fixture(params=[OpenAI, Anthropic, Mistralai, Groq, Ollama])
def make(request):
    return request.param


@pytest.fixture(params=["by hand", "instrument"])
def sdk(request, make, recording_gateway, monkeypatch):
    """Checks in the end that each call was stamped, and came in the session that it names."""

    def as_ollama(arrived):
        if arrived.path == "/api/chat":
            return {"message": {"role": "assistant", "content": recording_gateway.reply}}
        return None

    recording_gateway.respond = as_ollama
    gateway = Gateway(recording_gateway.url, forward=make.forward)
    if request.param == "by hand":
        yield make(gateway)
    else:
        url = gateway.endpoint(make.path)
        if make.variable:
            monkeypatch.setenv(make.variable, url)
        with instrument(gateway):
            yield make(url=url)
    for arrived in recording_gateway.requests:
        assert arrived.json["messages"][0]["content"] == arrived.session_id
        assert arrived.forward == make.forward


def calls(recording_gateway):
    return {name: usage.requests for name, usage in recording_gateway.sessions.items()}


class TestSessions:
    def test_blocking_at_once(self, sdk, recording_gateway):
        client = sdk.blocking()

        @session_from("session_id")
        def work(session_id):
            yield sdk.ask(client, session_id)
            yield "".join(sdk.stream(client, session_id))

        names = [f"s{number}" for number in range(4)]
        with ThreadPoolExecutor() as pool:
            for said in pool.map(lambda name: list(work(name)), names):
                assert said == [recording_gateway.reply] * 2
        assert calls(recording_gateway) == dict.fromkeys(names, 2)

    def test_two_streams_in_turn(self, sdk, recording_gateway):
        client = sdk.blocking()

        @session_from("session_id")
        def work(session_id):
            yield from sdk.stream(client, session_id)

        in_turn = zip_longest(work("s1"), work("s2"), fillvalue="")
        said = ["".join(parts) for parts in zip(*in_turn, strict=True)]
        assert said == [recording_gateway.reply] * 2
        assert calls(recording_gateway) == {"s1": 1, "s2": 1}

    def test_asynchronous_at_once(self, sdk, recording_gateway):
        @session_from("session_id")
        async def work(session_id, client):
            parts = [part async for part in sdk.stream_async(client, session_id)]
            return [await sdk.ask_async(client, session_id), "".join(parts)]

        async def main():
            client = sdk.asynchronous()
            return await asyncio.gather(*(work(name, client) for name in names))

        names = [f"s{number}" for number in range(4)]
        for said in asyncio.run(main()):
            assert said == [recording_gateway.reply] * 2
        assert calls(recording_gateway) == dict.fromkeys(names, 2)


def test_ollama_streams_in_the_session_of_the_code_that_asks(recording_gateway):
    recording_gateway.respond = lambda arrived: {"message": {"role": "assistant"}}
    gateway = Gateway(recording_gateway.url, forward=Ollama.forward)
    client = Ollama(gateway).blocking()
    with session_scope("s1"):
        stream = client.chat(**asking("s2"), stream=True)
    with session_scope("s2"):
        list(stream)
    assert calls(recording_gateway) == {"s2": 1}


def test_mistral_with_one_client_leaves_the_other_way_unattributed(recording_gateway):
    gateway = Gateway(recording_gateway.url, forward=Mistralai.forward)
    http = httpx2.Client(transport=for_httpx2.GatewayTransport(gateway))
    client = Mistral(api_key="x", server_url=gateway.endpoint(""), client=http)
    with session_scope("s1"):
        client.chat.complete(**asking("s1"))
        asyncio.run(client.chat.complete_async(**asking("s1")))
    assert [each.session_id for each in recording_gateway.requests] == ["s1", None]


@pytest.mark.parametrize("make", [OpenAI, Anthropic, Groq])
def test_the_client_class_of_the_sdk_keeps_its_defaults(make):
    ours = make(Gateway("http://gateway.example", forward=make.forward)).blocking()
    its = make.Blocking(api_key="x")
    assert ours.timeout == its.timeout != httpx2.Client().timeout
    for client in ours, its:
        assert client._client.timeout == its.timeout
        assert client._client.follow_redirects


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (OpenAI, None),
        (Anthropic, anthropic.APIConnectionError),
        (Mistralai, None),
        (Groq, groq.APIConnectionError),
        (Ollama, None),
    ],
)
def test_what_an_sdk_makes_of_a_refusal(make, error, recording_gateway):
    """It is raised as it is, or taken for a connection that failed."""
    gateway = Gateway(recording_gateway.url, forward=make.forward, require_session=True)
    sdk = make(gateway)
    with pytest.raises(error or SessionRequired) as caught:
        sdk.ask(sdk.blocking(), "s1")
    refusal = caught.value.__cause__ if error else caught.value
    assert isinstance(refusal, SessionRequired)
    assert recording_gateway.requests == []


class TestOneClient:
    """The marks of each provider and model, as headers of its SDK."""

    MARKS = ((OpenAI, "openai", "a"), (OpenAI, "openai", "b"), (Anthropic, "anthropic", "c"))

    def check(self, recording_gateway, **options):
        for make, provider, model in self.MARKS:
            marks = gateway_headers(make.forward, provider=provider, model=model)
            url = f"{recording_gateway.url}/{make.path}"
            client = make.Blocking(api_key="x", base_url=url, default_headers=marks, **options)
            for session_id in ("s1", "s2"):
                with session_scope(session_id):
                    make().ask(client, session_id)
        assert [
            (each.forward, each.provider, each.model, each.session_id)
            for each in recording_gateway.requests
        ] == [
            (make.forward, *marks, session_id)
            for make, *marks in self.MARKS
            for session_id in ("s1", "s2")
        ]

    def test_over_a_transport_without_a_gateway(self, recording_gateway):
        http = openai.DefaultHttpxClient(transport=for_httpx2.GatewayTransport())
        self.check(recording_gateway, http_client=http)

    def test_instrumented_without_a_gateway(self, recording_gateway):
        instrument()
        try:
            self.check(recording_gateway)
        finally:
            uninstrument()


@pytest.mark.parametrize("mark", [GENERATING_TITLE, COMPACTING])
class TestWhatACallIsFor:
    """By itself it says nothing; a mark is there on the call that is given it, and on no other."""

    def purposes(self, recording_gateway):
        return [
            {name for name in (GENERATING_TITLE, COMPACTING) if each.headers[name] == "1"}
            for each in recording_gateway.requests
        ]

    @pytest.mark.parametrize("make", [OpenAI, Anthropic, Mistralai, Groq])
    def test_by_the_headers_of_one_call(self, mark, make, recording_gateway):
        sdk = make(Gateway(recording_gateway.url, forward=make.forward))
        client = sdk.blocking()
        with session_scope("s1"):
            sdk.ask(client, "s1", **{sdk.headers_of_a_call: {mark: "1"}})
            sdk.ask(client, "s1")
        assert self.purposes(recording_gateway) == [{mark}, set()]

    def test_by_a_gateway_that_sends_it(self, mark, recording_gateway):
        gateway = Gateway(recording_gateway.url, forward=OpenAI.forward)
        marking = replace(gateway, headers={mark: "1"})
        with requests.Session() as http, requests.Session() as marked_http, session_scope("s1"):
            gateway.mount(http)
            marking.mount(marked_http)
            marked_http.post(gateway.endpoint("v1/chat/completions"), json=asking("s1"))
            http.post(gateway.endpoint("v1/chat/completions"), json=asking("s1"))
            sdk = OpenAI(marking)
            sdk.ask(sdk.blocking(), "s1")
        assert self.purposes(recording_gateway) == [{mark}, set(), {mark}]
