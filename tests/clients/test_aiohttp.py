"""aiohttp by a middleware and by ``instrument``, and the SDKs of providers that can use it."""

from __future__ import annotations

import asyncio
import dataclasses

import aiohttp
import anthropic
import groq
import openai
import pytest
from support.wire import Server, redirect, response

from cagent_session import Gateway, SessionRequired, instrument, session_from, session_scope
from cagent_session.integrations.aiohttp import GatewayMiddleware

FORWARD = "https://api.openai.com/v1"
PARENT_HEADER = "X-Parent-Session-Id"


@pytest.fixture
def gateway(server):
    return Gateway(server.origin, forward=FORWARD, parent_header=PARENT_HEADER)


@pytest.fixture(params=["middleware", "instrument"])
def open_client(request):
    """Makes a client whose requests pass the gate of a gateway, in one of the two ways."""
    instrumented = []

    def open_client(gateway, **options):
        if request.param == "middleware":
            return aiohttp.ClientSession(middlewares=[GatewayMiddleware(gateway)], **options)
        instrumented.append(instrument(gateway))
        return aiohttp.ClientSession(**options)

    yield open_client
    for each in instrumented:
        with each:
            pass


def test_sessions_at_once(server, gateway, open_client):
    @session_from("session_id")
    async def work(client, session_id):
        await client.post(gateway.endpoint(session_id), json={})
        with session_scope(f"{session_id}-sub"):
            await client.get(gateway.endpoint(f"{session_id}-sub"))

    async def main():
        async with open_client(gateway) as client:
            await asyncio.gather(*(work(client, f"s{number}") for number in range(10)))

    asyncio.run(main())
    assert len(server.arrived) == 20
    for arrived in server.arrived:
        expected = arrived.path.removeprefix("/")
        parent = expected.removesuffix("-sub") if expected.endswith("-sub") else None
        assert (arrived.session_id, arrived.get(PARENT_HEADER)) == (expected, parent)
        assert arrived.forward == FORWARD


def test_only_requests_to_the_gateway_are_stamped(server, gateway, open_client):
    async def main():
        async with open_client(gateway) as client:
            await client.get(gateway.endpoint("x"))
            with session_scope("s1"):
                await client.get(gateway.endpoint("x"), headers={"X-Cagent-Session-Id": "made up"})
                await client.get(server.at("localhost"))

    asyncio.run(main())
    assert [(each.session_id, each.forward) for each in server.arrived] == [
        (None, FORWARD),
        ("s1", FORWARD),
        (None, None),
    ]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_keep_identifiers_within_the_origin(status, server, gateway, open_client):
    """Also identifiers that the caller has set."""

    async def main():
        headers = {"X-Cagent-Session-Id": "own", "X-Cagent-Compacting": "1"}
        async with open_client(gateway, headers=headers) as client:
            with session_scope("s1"):
                await client.post(gateway.endpoint("inside"), json={})
                await client.post(gateway.endpoint("outside"), json={})

    with Server() as stranger:
        targets = {"/inside": "/x", "/outside": f"{stranger.origin}/x", "/x": None}

        def respond(arrived):
            target = targets[arrived.path]
            return redirect(status, target) if target else response()

        server.respond = respond
        asyncio.run(main())
        (there,) = stranger.arrived
    assert [each.path for each in server.arrived] == ["/inside", "/x", "/outside"]
    assert {(each.session_id, each.forward) for each in server.arrived} == {("s1", FORWARD)}
    assert there.identifiers == {}
    assert PARENT_HEADER not in dict(there.headers)


def test_session_that_is_required(server, gateway, open_client):
    async def main():
        async with open_client(dataclasses.replace(gateway, require_session=True)) as client:
            with pytest.raises(SessionRequired):
                await client.get(gateway.endpoint("x"))

    asyncio.run(main())
    assert server.arrived == []


def test_websocket_is_opened_in_the_session(server, gateway, open_client):
    """The server here refuses to open one, after it has got the request."""

    async def main():
        async with open_client(gateway) as client:
            with session_scope("s1"), pytest.raises(aiohttp.WSServerHandshakeError):
                await client.ws_connect(gateway.endpoint("v1/realtime").replace("http", "ws", 1))

    asyncio.run(main())
    (arrived,) = server.arrived
    assert (arrived.session_id, arrived.forward) == ("s1", FORWARD)
    assert arrived.get("Upgrade") == "websocket"


def test_middlewares_of_a_call_replace_those_of_the_client(server, gateway):
    """So ours has to be repeated there. ``instrument`` reaches such a call, too."""

    async def other(request, handler):
        return await handler(request)

    ours = GatewayMiddleware(gateway)

    async def main():
        async with aiohttp.ClientSession(middlewares=[ours]) as client:
            for middlewares in [other], [other, ours]:
                await client.get(gateway.endpoint("x"), middlewares=middlewares)
            with instrument(gateway):
                await client.get(gateway.endpoint("x"), middlewares=[other])

    with session_scope("s1"):
        asyncio.run(main())
    assert [each.session_id for each in server.arrived] == [None, "s1", "s1"]


class TestSDKs:
    """The SDKs are built on httpx, and can send over aiohttp."""

    @pytest.mark.parametrize("sdk", [openai, anthropic, groq], ids=lambda sdk: sdk.__name__)
    def test_client_over_aiohttp(self, sdk, recording_gateway):
        gateway = Gateway(recording_gateway.url, forward="https://api.example")

        async def ask(client, session_id):
            ask = {"model": "m", "messages": [{"role": "user", "content": session_id}]}
            with session_scope(session_id):
                if sdk is anthropic:
                    await client.messages.create(**ask, max_tokens=9)
                else:
                    await client.chat.completions.create(**ask)

        async def main():
            make = {openai: "AsyncOpenAI", anthropic: "AsyncAnthropic", groq: "AsyncGroq"}[sdk]
            url = gateway.endpoint("v1" if sdk is openai else "")
            http = sdk.DefaultAioHttpClient()
            async with getattr(sdk, make)(api_key="x", base_url=url, http_client=http) as client:
                await asyncio.gather(ask(client, "s1"), ask(client, "s2"))

        with instrument(gateway):
            asyncio.run(main())
        arrived = [
            (each.session_id, each.json["messages"][0]["content"])
            for each in recording_gateway.requests
        ]
        assert sorted(arrived) == [("s1", "s1"), ("s2", "s2")]

    def test_redirect_off_the_gateway_takes_no_identifier_along(self):
        """httpx follows it, above aiohttp."""
        with Server() as stranger:
            with Server(lambda arrived: redirect(307, f"{stranger.origin}/x")) as server:
                gateway = Gateway(server.origin, forward=FORWARD)

                async def main():
                    async with openai.DefaultAioHttpClient() as http:
                        headers = {"X-Cagent-Compacting": "1"}
                        await http.post(gateway.endpoint("x"), headers=headers)

                with instrument(gateway), session_scope("s1"):
                    asyncio.run(main())
                assert [each.session_id for each in server.arrived] == ["s1"]
            assert [each.identifiers for each in stranger.arrived] == [{}]
