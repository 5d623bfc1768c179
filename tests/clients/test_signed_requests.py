"""Signatures that libraries for AWS and RFC 9421 make still verify at the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import httpx
import httpx2
import pytest
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    algorithms,
)
from requests_aws4auth import AWS4Auth
from support.wire import Server

from cagent_session import Gateway, instrument, session_scope
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

FORWARD = "https://bedrock-runtime.us-east-1.amazonaws.com"
REPLACE_DEFAULTS = {"Accept": "text/plain", "Accept-Encoding": "br", "User-Agent": "team/1"}
COMPONENTS = ("@method", "@target-uri", "user-agent", "accept", "accept-encoding")

# It signs all headers but a few, of which User-Agent is the only one that the gate could replace.
_sigv4 = SigV4Auth(Credentials("key", "secret"), "bedrock", "us-east-1")


class SignedByBotocore(requests.auth.AuthBase):
    """Sign all headers of the request, as ``requests`` code that signs for AWS does."""

    def __call__(self, request):
        signed = AWSRequest(request.method, request.url, dict(request.headers), request.body)
        _sigv4.add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        return request


def assert_is_signed_by_aws(arrived, origin):
    fields = arrived.get("Authorization").partition(" ")[2].split(",")
    authorization = dict(field.strip().split("=", 1) for field in fields)
    names = authorization["SignedHeaders"].split(";")
    assert {"accept", "accept-encoding", "host"} <= set(names)
    canonical = [
        *(arrived.method, arrived.path, ""),
        *(f"{name}:{arrived.get(name)}" for name in names),
        *("", ";".join(names), hashlib.sha256(arrived.body).hexdigest()),
    ]
    request = AWSRequest(arrived.method, origin + arrived.target)
    request.context["timestamp"] = arrived.get("X-Amz-Date")
    text = _sigv4.string_to_sign(request, "\n".join(canonical))
    assert _sigv4.signature(text, request) == authorization["Signature"]


class _Keys(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id):
        return b"shared secret"

    resolve_private_key = resolve_public_key


_keys = {"signature_algorithm": algorithms.HMAC_SHA256, "key_resolver": _Keys()}


def sign(request):
    """Sign the library's default headers as RFC 9421 has it."""
    HTTPMessageSigner(**_keys).sign(request, key_id="key", covered_component_ids=COMPONENTS)


class SignedByRFC9421(requests.auth.AuthBase):
    def __call__(self, request):
        sign(request)
        return request


def assert_is_signed_by_rfc_9421(arrived, origin):
    url = origin + arrived.target
    request = requests.Request(arrived.method, url, dict(arrived.headers)).prepare()
    (verified,) = HTTPMessageVerifier(**_keys).verify(request)
    assert {f'"{name}"' for name in COMPONENTS} <= set(verified.covered_components)


@pytest.fixture(params=[{}, REPLACE_DEFAULTS], ids=["no headers", "headers for the defaults"])
def gateway(request, server):
    return Gateway(server.origin, forward=FORWARD, headers=request.param)


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.fixture(params=[False, True], ids=["transport", "instrument"])
def instrumented(request, gateway):
    with instrument(gateway) if request.param else contextlib.nullcontext():
        yield request.param


def assert_is_stamped(arrived):
    assert (arrived.session_id, arrived.forward) == ("s1", FORWARD)


SIGNATURES = {
    "botocore": (SignedByBotocore(), assert_is_signed_by_aws),
    "requests-aws4auth": (
        AWS4Auth("key", "secret", "us-east-1", "bedrock", include_hdrs={"*"}),
        assert_is_signed_by_aws,
    ),
    "RFC 9421": (SignedByRFC9421(), assert_is_signed_by_rfc_9421),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("auth", "assert_is_signed"), SIGNATURES.values(), ids=SIGNATURES)
def test_requests(auth, assert_is_signed, stream, gateway, instrumented, server):
    with requests.Session() as http, session_scope("s1"):
        if not instrumented:
            gateway.mount(http)
        http.post(gateway.endpoint("model/m/invoke"), json={}, auth=auth, stream=stream).close()
    (arrived,) = server.arrived
    assert_is_stamped(arrived)
    assert_is_signed(arrived, server.origin)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "async"])
@pytest.mark.parametrize(
    ("library", "integration"), [(httpx, for_httpx), (httpx2, for_httpx2)], ids=["httpx", "httpx2"]
)
def test_httpx(library, integration, asynchronous, gateway, instrumented, server):
    class Signed(library.Auth):
        def auth_flow(self, request):
            sign(request)
            yield request

    transport = None if instrumented else integration.GatewayTransport(gateway)
    options = {"transport": transport, "auth": Signed()}
    url = gateway.endpoint("v1/responses")

    async def post():
        async with library.AsyncClient(**options) as http:
            await http.post(url, json={})

    with session_scope("s1"):
        if asynchronous:
            asyncio.run(post())
        else:
            with library.Client(**options) as http:
                http.post(url, json={})
    (arrived,) = server.arrived
    assert_is_stamped(arrived)
    assert_is_signed_by_rfc_9421(arrived, server.origin)
