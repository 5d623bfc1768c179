"""A signed request keeps the HTTP library's default headers, which the signature may cover."""

from __future__ import annotations

import pytest
from support.transports import Transport
from support.wire import Server

from cagent_session import Gateway, session_scope

FORWARD = "https://api.openai.com/v1"
DEFAULTS = ("User-Agent", "Accept", "Accept-Encoding")
SIGNATURES = [
    {"Authorization": "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=accept;host, Signature=00"},
    {"Signature-Input": 'sig=("user-agent");created=1', "Signature": "sig=:AA==:"},
]


@pytest.mark.parametrize("signature", SIGNATURES, ids=["SigV4", "RFC 9421"])
def test_default_headers_are_left_alone(transport: Transport, server: Server, signature):
    fixed = {"Accept": "text/plain", "Accept-Encoding": "identity", "X-Team": "a"}
    gateway = Gateway(server.origin, forward=FORWARD, headers=fixed)
    with transport.open(plain=True) as send:
        send("GET", server.origin, signature)
    with transport.open(gateway) as send, session_scope("s1"):
        send("GET", server.origin, signature)
    plain, stamped = server.arrived
    assert [stamped.get(name) for name in DEFAULTS] == [plain.get(name) for name in DEFAULTS]
    assert (stamped.session_id, stamped.forward, stamped.get("X-Team")) == ("s1", FORWARD, "a")


def test_without_a_signature_they_are_replaced(transport: Transport, server: Server):
    fixed = {"Accept-Encoding": "identity", "Accept": "text/plain"}
    gateway = Gateway(server.origin, forward=FORWARD, headers=fixed)
    with transport.open(gateway) as send, session_scope("s1"):
        send("GET", server.origin, {"Authorization": "Bearer SignedHeader"})
    (arrived,) = server.arrived
    assert (arrived.get("Accept-Encoding"), arrived.get("Accept")) == ("identity", "text/plain")
    assert (arrived.get("User-Agent") or "").startswith("cagent-session/")
