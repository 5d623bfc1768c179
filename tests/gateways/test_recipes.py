"""The recipes of docs/gateways.md that are from documentation: what each sends on the wire."""

from __future__ import annotations

import json
import uuid

import httpx
import pytest
import requests
from botocore.session import Session
from running import ODD, gateway_of_the_page
from support.wire import Server

from cagent_session import Gateway, session_scope
from cagent_session.integrations.httpx import GatewayTransport
from cagent_session.testing import RecordingGateway

MAIN, SUB, SUBSUB = (str(uuid.uuid4()) for _ in range(3))


def sent(gateway: Gateway, server: Server) -> list[dict[str, str]]:
    """The session's headers of a call of the main agent, of its sub-agent, and of that one's."""
    with requests.Session() as http:
        gateway.mount(http)
        url = gateway.endpoint("v1/chat/completions")
        with session_scope(MAIN):
            http.post(url, json={}, timeout=20)
            with session_scope(SUB):
                http.post(url, json={}, timeout=20)
                with session_scope(SUBSUB):
                    http.post(url, json={}, timeout=20)
        http.post(url, json={}, timeout=20)
    # What is the same without a session is no header of the session.
    *calls, without = [dict(request.headers) for request in server.arrived]
    for headers in (*calls, without):
        assert not [name for name in headers if name.lower().startswith("x-cagent-")]
    return [dict(headers.items() - without.items()) for headers in calls]


def compact(**values: str) -> str:
    return json.dumps(values, separators=(",", ":"))


# The address on the page, and what the three calls carry.
RECIPES = {
    "http://vllm-stack.example:8001": [
        {"X-Session-ID": MAIN},
        {"X-Session-ID": SUB},
        {"X-Session-ID": SUBSUB},
    ],
    "https://openrouter.example": [
        {"x-session-id": MAIN},
        {"x-session-id": SUB},
        {"x-session-id": SUBSUB},
    ],
    "http://bifrost.example:8080": [
        {"x-bf-session-id": MAIN},
        {"x-bf-session-id": SUB},
        {"x-bf-session-id": SUBSUB},
    ],
    "https://helicone.example": [
        {"Helicone-Session-Id": MAIN, "Helicone-Session-Path": f"/{MAIN}"},
        {"Helicone-Session-Id": MAIN, "Helicone-Session-Path": f"/{MAIN}/{SUB}"},
        {"Helicone-Session-Id": MAIN, "Helicone-Session-Path": f"/{MAIN}/{SUBSUB}"},
    ],
    "https://cloudflare.example": [
        {"cf-aig-metadata": compact(session=MAIN, root=MAIN)},
        {"cf-aig-metadata": compact(session=SUB, root=MAIN)},
        {"cf-aig-metadata": compact(session=SUBSUB, root=MAIN)},
    ],
    "https://truefoundry.example": [
        {"X-TFY-METADATA": compact(session_id=MAIN, root=MAIN)},
        {"X-TFY-METADATA": compact(session_id=SUB, root=MAIN)},
        {"X-TFY-METADATA": compact(session_id=SUBSUB, root=MAIN)},
    ],
    "http://envoy-ai.example:1975": [
        {"agent-session-id": MAIN},
        {"agent-session-id": SUB},
        {"agent-session-id": SUBSUB},
    ],
    "https://agentcore.example": [
        {"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": MAIN},
        {"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": SUB},
        {"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": SUBSUB},
    ],
    "https://opencode.example": [
        {"X-Session-Id": MAIN, "x-session-affinity": MAIN},
        {"X-Session-Id": SUB, "x-session-affinity": SUB, "x-parent-session-id": MAIN},
        {"X-Session-Id": SUBSUB, "x-session-affinity": SUBSUB, "x-parent-session-id": SUB},
    ],
    "https://claude-code.example": [
        {"X-Claude-Code-Session-Id": MAIN},
        {"X-Claude-Code-Session-Id": MAIN, "X-Claude-Code-Agent-Id": SUB},
        {
            "X-Claude-Code-Session-Id": MAIN,
            "X-Claude-Code-Agent-Id": SUBSUB,
            "X-Claude-Code-Parent-Agent-Id": SUB,
        },
    ],
    "https://codex.example": [
        {"session-id": MAIN, "thread-id": MAIN},
        {"session-id": MAIN, "thread-id": SUB, "x-codex-parent-thread-id": MAIN},
        {"session-id": MAIN, "thread-id": SUBSUB, "x-codex-parent-thread-id": SUB},
    ],
}


@pytest.mark.parametrize("address", RECIPES)
def test_a_recipe_sends_what_the_documentation_asks_for(address):
    with Server() as server:
        assert sent(gateway_of_the_page(address, server.origin), server) == RECIPES[address]


@pytest.mark.parametrize("address", RECIPES)
def test_a_redirect_to_a_stranger_loses_the_headers_of_a_recipe(address):
    with Server() as stranger:
        moved = f"HTTP/1.1 307 Moved\r\nLocation: {stranger.origin}/\r\nContent-Length: 0\r\n\r\n"
        with Server(lambda request: moved.encode()) as server:
            sent(gateway_of_the_page(address, server.origin), server)
    assert len(stranger.arrived) == 4
    names = {name.lower() for call in RECIPES[address] for name in call}
    for request in stranger.arrived:
        assert not names & {name.lower() for name, _ in request.headers}
        for session_id in (MAIN, SUB, SUBSUB):
            assert session_id.encode() not in request.raw


@pytest.mark.parametrize("address", RECIPES)
def test_a_users_test_can_check_a_recipe(address):
    """With ``RecordingGateway``, under each name that carries the ID as it is."""
    expected = RECIPES[address]
    for name in expected[1]:
        with RecordingGateway(session_header=name) as recording, requests.Session() as http:
            gateway = gateway_of_the_page(address, recording.url)
            gateway.mount(http)
            with session_scope(MAIN), session_scope(SUB):
                http.post(gateway.endpoint("v1/chat/completions"), json={}, timeout=20)
        (request,) = recording.requests
        assert request.headers[name] == expected[1][name]
        if expected[1][name] in (MAIN, SUB):
            assert request.session_id == expected[1][name]


def test_metadata_of_any_id_is_json():
    for address in ("https://cloudflare.example", "https://truefoundry.example"):
        gateway = gateway_of_the_page(address, "https://here.example")
        for session_id in ODD:
            with session_scope(session_id):
                (value,) = gateway.headers_for(gateway.url).values()
            assert list(json.loads(value).values()) == [session_id] * 2


def test_agentcore_gets_33_characters_and_more():
    gateway = gateway_of_the_page("https://agentcore.example", "https://here.example")
    made = []
    for session_id in ("s1", "s2", "s1", "x" * 32, "x" * 33):
        with session_scope(session_id):
            made += gateway.headers_for(gateway.url).values()
    assert [len(value) for value in made] == [36, 36, 36, 36, 33]
    assert made[0] == made[2] != made[1]


def test_botocore_says_the_same_of_agentcore():
    shapes = Session().get_service_model("bedrock-agentcore")
    members = shapes.shape_for("InvokeAgentRuntimeRequest").members
    session_id = members["runtimeSessionId"]
    assert session_id.serialization["name"] in RECIPES["https://agentcore.example"][0]
    assert (session_id.metadata["min"], session_id.metadata["max"]) == (33, 256)


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_the_session_comes_before_its_parent_and_both_before_the_further_headers(library):
    names = ["X-Z-Session-Id", "X-M-Session-Id", "X-B-Session-Id", "X-A-Session-Id"]
    with Server() as server:
        gateway = Gateway(
            server.origin,
            session_header=names[0],
            parent_header=names[1],
            session_headers={names[2]: "{root}", names[3]: "{session}"},
        )
        with session_scope(MAIN), session_scope(SUB):
            if library == "requests":
                with requests.Session() as http:
                    gateway.mount(http)
                    http.get(gateway.url, timeout=20)
            else:
                with httpx.Client(transport=GatewayTransport(gateway)) as client:
                    client.get(gateway.url, timeout=20)
    (request,) = server.arrived
    assert [name for name, _ in request.headers if name in names] == names
