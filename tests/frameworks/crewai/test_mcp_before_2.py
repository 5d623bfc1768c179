"""Clients of MCP servers before version 2."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp_server import MCPServer

from cagent_session import Gateway, instrument, session_scope


@pytest.fixture
def server():
    with MCPServer() as server:
        yield server


@pytest.fixture
def connect(server):
    """Opens a client of the server, through the gateway that it is behind."""
    gateway = Gateway(server.origin, forward="https://mcp.example")

    @asynccontextmanager
    async def connect():
        async with (
            streamable_http_client(gateway.endpoint("mcp")) as (reader, writer, _),
            ClientSession(reader, writer) as client,
        ):
            await client.initialize()
            yield client

    with instrument(gateway):
        yield connect


async def ask(client, session_id):
    with session_scope(session_id):
        await client.call_tool("ask", {"session_id": session_id})


def test_a_client_per_session(server, connect, run_at_once):
    async def work(session_id):
        async with connect() as client:
            await ask(client, session_id)

    run_at_once(work, "s1", "s2")
    assert sorted(server.tool_calls) == [("s1", "s1"), ("s2", "s2")]


def test_a_shared_client_sends_in_the_session_that_opened_it(server, connect, run):
    async def main():
        with session_scope("s1"):
            async with connect() as client:
                await asyncio.gather(ask(client, "s1"), ask(client, "s2"))

    run(main())
    assert sorted(server.tool_calls) == [("s1", "s1"), ("s1", "s2")]
