"""Clients that ``instrument`` covers: each call in its session, several sessions at once."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import aiobotocore.session
import cohere
import httpx
import huggingface_hub
import niquests
import pytest
from huggingface_hub.utils._http import default_client_factory

from cagent_session import Gateway, instrument, session_scope
from cagent_session.integrations.httpx import GatewayTransport
from cagent_session.integrations.threads import carry_session

SESSIONS = ["s1", "s2", "s3"]


def answer(asked):
    """Answer in the shape of each provider."""
    text = {"text": "Hello!"}
    if asked.path == "/v1/chat":
        return {**text, "generation_id": "1"}
    if asked.path == "/v1/embed":
        embeddings = {"float": [[0.5]] * len(asked.json["texts"])}
        shape = {"id": "1", "response_type": "embeddings_by_type", "texts": asked.json["texts"]}
        return {**shape, "embeddings": embeddings}
    if asked.path == "/v1/embeddings":
        data = [{"object": "embedding", "embedding": [0.5], "index": 0}]
        return {"object": "list", "data": data, "model": "m", "usage": {"total_tokens": 1}}
    if asked.path.endswith("/converse"):
        usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
        message = {"role": "assistant", "content": [text]}
        shape = {"output": {"message": message}, "stopReason": "end_turn", "usage": usage}
        return {**shape, "metrics": {"latencyMs": 1}}
    return None


@pytest.fixture
def gateway(recording_gateway):
    recording_gateway.respond = answer
    gateway = Gateway(recording_gateway.url, forward="https://api.example")
    with instrument(gateway):
        yield gateway


@pytest.fixture
def check(recording_gateway):
    """Checks that so many calls arrived for each session, each of them in that session."""

    def check(count=1):
        arrived = recording_gateway.requests
        assert len(arrived) == count * len(SESSIONS)
        for call in arrived:
            sent = call.body.decode() + str(call.query)
            assert [each for each in SESSIONS if each in sent] == [call.session_id]

    return check


def at_once(ask):
    def work(session_id):
        with session_scope(session_id):
            return ask(session_id)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(work, SESSIONS))


def await_at_once(ask):
    async def work(session_id):
        with session_scope(session_id):
            await ask(session_id)

    async def main():
        await asyncio.gather(*map(work, SESSIONS))

    asyncio.run(main())


class TestCohere:
    def test_chat_of_the_first_version(self, gateway, check):
        client = cohere.Client("x", base_url=gateway.endpoint(""))
        at_once(lambda session_id: client.chat(model="m", message=session_id))
        check()

    def test_chat_that_is_awaited(self, gateway, check):
        async def ask(session_id):
            async with cohere.AsyncClient("x", base_url=gateway.endpoint("")) as client:
                await client.chat(model="m", message=session_id)

        await_at_once(ask)
        check()

    def test_embed_of_the_first_version_in_its_own_pool(self, gateway, check):
        """It sends 96 texts with a call."""
        client = cohere.Client("x", base_url=gateway.endpoint(""))
        options = {"model": "m", "input_type": "search_document", "embedding_types": ["float"]}
        with carry_session():
            at_once(lambda session_id: client.embed(texts=[session_id] * 200, **options))
        check(3)


class TestVoyage:
    @pytest.fixture
    def voyageai(self):
        if sys.version_info >= (3, 15):
            pytest.skip("one of its dependencies has no wheel for Python 3.15 yet")
        import voyageai

        return voyageai

    def test_blocking(self, voyageai, gateway, check):
        client = voyageai.Client(api_key="x", base_url=gateway.endpoint("v1"))
        at_once(lambda session_id: client.embed([session_id], model="voyage-3"))
        check()

    def test_awaited(self, voyageai, gateway, check):
        client = voyageai.AsyncClient(api_key="x", base_url=gateway.endpoint("v1"))
        await_at_once(lambda session_id: client.embed([session_id], model="voyage-3"))
        check()


def test_aiobotocore(gateway, check):
    credentials = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}

    async def ask(session_id):
        made = aiobotocore.session.get_session().create_client(
            "bedrock-runtime",
            region_name="us-east-1",
            endpoint_url=gateway.endpoint(""),
            **credentials,
        )
        messages = [{"role": "user", "content": [{"text": session_id}]}]
        async with made as client:
            await client.converse(modelId="amazon.nova-lite-v1:0", messages=messages)

    await_at_once(ask)
    check()


class TestNiquests:
    def test_blocking(self, gateway, check):
        url = gateway.endpoint("v1/models")
        at_once(lambda session_id: niquests.get(url, params={"of": session_id}))
        check()

    def test_awaited_calls_are_not_covered(self, gateway, recording_gateway):
        async def ask(session_id):
            async with niquests.AsyncSession() as http:
                await http.get(gateway.endpoint("v1/models"))

        await_at_once(ask)
        assert [each.session_id for each in recording_gateway.requests] == [None] * 3


class TestHuggingFaceHub:
    def messages(self, session_id):
        return [{"role": "user", "content": session_id}]

    def test_blocking(self, gateway, check):
        client = huggingface_hub.InferenceClient(base_url=gateway.endpoint("v1"), api_key="x")
        at_once(lambda session_id: client.chat_completion(self.messages(session_id), model="m"))
        check()

    def test_awaited(self, gateway, check):
        async def ask(session_id):
            url = gateway.endpoint("v1")
            async with huggingface_hub.AsyncInferenceClient(base_url=url, api_key="x") as client:
                await client.chat_completion(self.messages(session_id), model="m")

        await_at_once(ask)
        check()

    def test_by_hand(self, recording_gateway, check):
        gateway = Gateway(recording_gateway.url, forward="https://api.example")
        transport = GatewayTransport(gateway)
        huggingface_hub.set_client_factory(lambda: httpx.Client(transport=transport))
        try:
            client = huggingface_hub.InferenceClient(base_url=gateway.endpoint("v1"), api_key="x")
            at_once(lambda session_id: client.chat_completion(self.messages(session_id), model="m"))
        finally:
            huggingface_hub.set_client_factory(default_client_factory)
        check()
