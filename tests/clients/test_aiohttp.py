"""aiohttp, over which litellm, google-genai and others call asynchronously."""

from __future__ import annotations

import asyncio
import dataclasses

import aiohttp
import pytest
from support.wire import Server, redirect, response

from cagent_session import Gateway, SessionRequired, instrument, session_from, session_scope

FORWARD = "https://api.openai.com/v1"
PARENT_HEADER = "X-Parent-Session-Id"


@pytest.fixture
def gateway(server):
    return Gateway(server.origin, forward=FORWARD, parent_header=PARENT_HEADER)


def open_client(gateway, **options):
    async def mark(request, handler):
        request.headers.update(gateway.headers_for(str(request.url)))
        return await handler(request)

    return aiohttp.ClientSession(middlewares=[mark], **options)


def test_sessions_at_once(server, gateway):
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


def test_it_marks_what_is_the_gateways_alone(server, gateway):
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
def test_a_redirect_keeps_the_marks_within_the_origin_alone(status, server, gateway):
    async def main():
        async with open_client(gateway) as client:
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


def test_marks_of_the_callers_own_follow_a_redirect(server, gateway):
    """A middleware sees each hop by itself, and does not know whose they are."""

    async def main():
        headers = {"X-Cagent-Session-Id": "own"}
        async with open_client(gateway, headers=headers) as client:
            await client.get(gateway.endpoint("x"))

    with Server() as stranger:
        server.respond = lambda arrived: redirect(307, stranger.origin)
        asyncio.run(main())
        assert stranger.arrived[0].session_id == "own"


def test_a_session_that_is_required(server, gateway):
    async def main():
        async with open_client(dataclasses.replace(gateway, require_session=True)) as client:
            with pytest.raises(SessionRequired):
                await client.get(gateway.endpoint("x"))

    asyncio.run(main())
    assert server.arrived == []


def test_out_of_reach_of_instrument(server, gateway):
    async def main():
        async with aiohttp.ClientSession() as client:
            await client.get(gateway.endpoint("x"))

    with instrument(gateway), session_scope("s1"):
        asyncio.run(main())
    assert server.arrived[0].identifiers == {}
