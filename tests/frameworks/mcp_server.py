"""An MCP server on loopback, and what it was asked in which session."""

from __future__ import annotations

import json

from support.wire import Arrived, Server, response

_RESULTS = {
    "initialize": {
        "protocolVersion": "2025-03-26",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "server", "version": "1"},
    },
    "tools/list": {"tools": [{"name": "ask", "inputSchema": {"type": "object"}}]},
    "tools/call": {"content": [{"type": "text", "text": "done"}]},
}


class MCPServer(Server):
    """Answers over streamable HTTP, and takes calls of the tool ``ask`` with a ``session_id``."""

    def __init__(self) -> None:
        super().__init__(_answer)

    @property
    def tool_calls(self) -> list[tuple[str | None, str]]:
        """For each call of a tool the session it came in, and the one it was made for."""
        asked = [(each.session_id, json.loads(each.body)) for each in self.arrived if each.body]
        return [
            (session_id, message["params"]["arguments"]["session_id"])
            for session_id, message in asked
            if message["method"] == "tools/call"
        ]


def _answer(arrived: Arrived) -> bytes:
    if arrived.method != "POST":
        return response(405)
    message = json.loads(arrived.body)
    if "id" not in message:
        return response(202, b"")
    answer = {"jsonrpc": "2.0", "id": message["id"]}
    result = _RESULTS.get(message["method"])
    answer |= {"result": result} if result else {"error": {"code": -32601, "message": "unknown"}}
    return response(200, json.dumps(answer).encode())
