"""require_session: a request outside every session is refused."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from support.transports import Transport
from support.wire import Server, redirect

from cagent_session import (
    Gateway,
    SessionRequired,
    no_session,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"
MARKED = {"X-Cagent-Forward": FORWARD}


class TestRequireSession:
    @pytest.fixture
    def gateway(self, server: Server) -> Gateway:
        return Gateway(f"{server.origin}/p?key=hunter2", forward=FORWARD, require_session=True)

    def test_a_request_outside_every_session_is_not_sent(
        self, transport: Transport, gateway: Gateway, server: Server
    ):
        with transport.open(gateway) as send:
            for scope in (no_session(), session_scope("s1")):
                with scope as session_id:
                    if session_id is None:
                        with pytest.raises(SessionRequired) as caught:
                            send("POST", f"{server.origin}/p/x?token=hunter2", None, b"body")
                    else:
                        assert send("POST", f"{server.origin}/p/x", None, b"body") == 200
        message = str(caught.value)
        assert f"{server.origin}/p/x," in message
        assert "hunter2" not in message
        assert "session_scope(...)" in message
        assert "bind_session(...)" in message
        assert "carry_session()" in message
        assert "SessionMiddleware" in message
        assert isinstance(caught.value, RuntimeError)
        assert [request.session_id for request in server.arrived] == ["s1"]

    def test_no_session_is_refused_with_remedies_that_work(
        self, transport: Transport, gateway: Gateway, server: Server
    ):
        with transport.open(gateway) as send, no_session():
            with pytest.raises(SessionRequired) as caught:
                send("GET", f"{server.origin}/p/x?token=hunter2")
            message = str(caught.value)
            assert f"{server.origin}/p/x," in message
            assert "require_session=True refuses requests inside no_session(), too" in message
            assert "hunter2" not in message
            assert "session_scope()" in message
            with session_scope():
                send("GET", f"{server.origin}/p/x")
        assert "dataclasses.replace(gateway, require_session=False)" in message
        lenient = dataclasses.replace(gateway, require_session=False)
        with transport.open(lenient) as send, no_session():
            send("GET", f"{server.origin}/p/x")
        in_a_session, in_none = server.arrived
        assert uuid.UUID(in_a_session.session_id)
        assert in_none.session_id is None

    @pytest.mark.parametrize(
        ("headers", "is_sent"),
        [
            ({"x-cagent-SESSION-id": "mine"}, True),
            ({"X-Cagent-Session-Id": ""}, False),
            ({"X-Cagent-Session-Id": b"mine"}, True),
            ({"X-Cagent-Forward": ""}, True),
            ({"X-Cagent-Forward": FORWARD}, False),
        ],
    )
    def test_what_the_caller_says_counts(
        self, transport: Transport, gateway: Gateway, server: Server, headers, is_sent
    ):
        if not transport.takes_bytes and b"mine" in headers.values():
            pytest.skip("it refuses bytes itself")
        with transport.open(gateway) as send:
            if is_sent:
                send("GET", f"{server.origin}/p/x", headers)
            else:
                with pytest.raises(SessionRequired):
                    send("GET", f"{server.origin}/p/x", headers)
        assert len(server.arrived) == is_sent

    def test_other_requests_are_none_of_its_business(
        self, transport: Transport, gateway: Gateway, server: Server
    ):
        with transport.open(gateway) as send:
            send("GET", f"{server.origin}/else")
            send("GET", f"{server.origin}/else", MARKED)
        assert len(server.arrived) == 2

    def test_a_redirect_to_it_is_refused_as_well(self, transport: Transport, gateway: Gateway):
        with transport.open(gateway) as send, Server() as other:
            other.respond = lambda request: redirect(302, gateway.url)
            with pytest.raises(SessionRequired):
                send("GET", other.origin)

    def test_another_name_for_the_session(self, transport: Transport, server: Server):
        gateway = Gateway(server.origin, session_header="X-Session-ID", require_session=True)
        with transport.open(gateway) as send:
            with pytest.raises(SessionRequired):
                send("GET", server.origin, {"X-Cagent-Session-Id": "not this one"})
            send("GET", server.origin, {"x-session-id": "mine"})
        assert server.arrived[0].get("X-Session-ID") == "mine"

    def test_headers_for(self, gateway: Gateway):
        with pytest.raises(SessionRequired):
            gateway.headers_for(gateway.endpoint("x"))
        assert gateway.headers_for("https://elsewhere.example/") == {}
