"""boto3 and Amazon Bedrock, over urllib3."""

from __future__ import annotations

import base64
import json
import struct
import zlib

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, HTTPClientError
from support.wire import Server, redirect, response

from cagent_session import (
    Gateway,
    SessionRequired,
    SessionThreadPoolExecutor,
    instrument,
    session_from,
    session_scope,
)

FORWARD = "https://bedrock-runtime.us-east-1.amazonaws.com"
PARENT_HEADER = "X-Parent-Session-Id"
CREDENTIALS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
MESSAGES = [{"role": "user", "content": [{"text": "Hello!"}]}]
MESSAGE = {"role": "assistant", "content": [{"text": "Hi!"}]}
USAGE = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
CONVERSED = {
    "output": {"message": MESSAGE},
    "stopReason": "end_turn",
    "usage": USAGE,
    "metrics": {"latencyMs": 1},
}


def event(kind, content):
    """A message of AWS' event stream: its lengths, headers and payload, each with a checksum."""
    names = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        struct.pack("!B", len(name))
        + name.encode()
        + struct.pack("!BH", 7, len(value))
        + value.encode()
        for name, value in names.items()
    )
    payload = json.dumps(content).encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


def answer(arrived):
    kind = arrived.path.rpartition("/")[2]
    if kind in ("converse", "invoke"):
        content = CONVERSED if kind == "converse" else MESSAGE
        return response(200, json.dumps(content).encode())
    if kind == "converse-stream":
        body = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hi!"}})
    else:
        body = event("chunk", {"bytes": base64.b64encode(b"Hi!").decode()})
    head = response(200, body)
    return head.replace(b"application/json", b"application/vnd.amazon.eventstream", 1)


@pytest.fixture
def server():
    with Server(answer) as server:
        yield server


@pytest.fixture
def require_session():
    return False


@pytest.fixture
def gateway(server, require_session):
    return Gateway(
        server.origin,
        forward=FORWARD,
        parent_header=PARENT_HEADER,
        require_session=require_session,
    )


@pytest.fixture(params=["instrument", "by hand"])
def client(request, gateway, monkeypatch):
    options = {"region_name": "us-east-1", **CREDENTIALS}
    if request.param == "instrument":
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", gateway.endpoint(""))
        client = boto3.client("bedrock-runtime", **options)
        with instrument(gateway):
            yield client
    else:

        def mark(request, **kwargs):
            request.headers.update(gateway.headers_for(request.url))

        client = boto3.client("bedrock-runtime", endpoint_url=gateway.endpoint(""), **options)
        client.meta.events.register("before-send.bedrock-runtime", mark)
        yield client
    client.close()


def converse(client):
    answer = client.converse(modelId="m", messages=MESSAGES)
    assert answer["output"]["message"] == MESSAGE


@session_from("session_id")
def stream(session_id, client):
    for part in client.converse_stream(modelId="m", messages=MESSAGES)["stream"]:
        assert part["contentBlockDelta"]["delta"]["text"] == "Hi!"
        yield part


def invoke(client):
    assert json.load(client.invoke_model(modelId="m", body=b"{}")["body"]) == MESSAGE


def invoke_streamed(client):
    parts = client.invoke_model_with_response_stream(modelId="m", body=b"{}")["body"]
    assert [part["chunk"]["bytes"] for part in parts] == [b"Hi!"]


def test_all_kinds_of_calls(client, server):
    with session_scope("s1"):
        converse(client)
        assert len(list(stream("s1", client))) == 1
        invoke(client)
        with session_scope("s1-sub"):
            invoke_streamed(client)
    assert [(each.session_id, each.get(PARENT_HEADER)) for each in server.arrived] == [
        ("s1", None),
        ("s1", None),
        ("s1", None),
        ("s1-sub", "s1"),
    ]
    assert {each.forward for each in server.arrived} == {FORWARD}


def test_two_streams_in_turn(client, server):
    assert len(list(zip(stream("s1", client), stream("s2", client), strict=True))) == 1
    assert [each.session_id for each in server.arrived] == ["s1", "s2"]


def test_sessions_at_once(client, server):
    @session_from("session_id")
    def work(session_id):
        client.converse(modelId=session_id, messages=MESSAGES)

    with SessionThreadPoolExecutor(4) as pool:
        list(pool.map(work, [f"s{number}" for number in range(8)]))
    assert len(server.arrived) == 8
    for arrived in server.arrived:
        assert arrived.path == f"/model/{arrived.session_id}/converse"


def test_the_signature_is_of_the_gateways_host_and_leaves_our_headers_out(client, server):
    with session_scope("s1"):
        converse(client)
    (arrived,) = server.arrived
    assert arrived.session_id == "s1"
    parts = arrived.get("Authorization").partition(" ")[2].split(", ")
    authorization = dict(part.split("=", 1) for part in parts)
    signed = authorization["SignedHeaders"].split(";")
    assert "host" in signed
    assert not any(name.startswith("x-cagent-") or name == PARENT_HEADER.lower() for name in signed)

    headers = {name: arrived.get(name) for name in signed}
    request = AWSRequest(arrived.method, server.origin + arrived.target, headers, arrived.body)
    request.context["timestamp"] = arrived.get("X-Amz-Date")
    auth = SigV4Auth(Credentials("key", "secret"), "bedrock", "us-east-1")
    text = auth.string_to_sign(request, auth.canonical_request(request))
    assert auth.signature(text, request) == authorization["Signature"]


def test_retries(client, server):
    answers = iter([response(503), None, response(200, json.dumps(CONVERSED).encode())])
    server.respond = lambda arrived: next(answers)
    with session_scope("s1"):
        converse(client)
    assert [each.session_id for each in server.arrived] == ["s1"] * 3


@pytest.mark.parametrize(
    ("client", "error"),
    [("instrument", HTTPClientError), ("by hand", SessionRequired)],
    indirect=["client"],
)
@pytest.mark.parametrize("require_session", [True])
def test_what_it_makes_of_a_refusal(client, error, server):
    with pytest.raises(error, match="no session is in scope"):
        converse(client)
    assert server.arrived == []


def test_no_redirect_is_followed(client, server):
    with Server() as stranger:
        server.respond = lambda arrived: redirect(307, f"{stranger.origin}/x")
        with session_scope("s1"), pytest.raises(ClientError):
            converse(client)
        assert stranger.arrived == []
    assert server.arrived[0].session_id == "s1"
