"""Clients of MCP servers, from version 2 on."""

from __future__ import annotations

import asyncio

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp_server import MCPServer

from cagent_session import Gateway, instrument, session_scope


@pytest.fixture
def server():
    with MCPServer() as server:
        yield server


def test_one_client_for_several_sessions(server, run):
    """Each message is sent in the context of the call that it belongs to."""
    gateway = Gateway(server.origin, forward="https://mcp.example")

    async def main():
        with session_scope("of-whoever-connects"):
            async with (
                streamable_http_client(gateway.endpoint("mcp")) as streams,
                ClientSession(*streams) as client,
            ):
                await client.initialize()

                async def work(session_id):
                    with session_scope(session_id):
                        for _ in range(3):
                            await client.call_tool("ask", {"session_id": session_id})

                await asyncio.gather(work("s1"), work("s2"))

    with instrument(gateway):
        run(main())
    assert sorted(server.tool_calls) == [("s1", "s1")] * 3 + [("s2", "s2")] * 3
