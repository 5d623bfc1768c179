"""The log cagent_session at WARNING: what is likely a mistake is said once."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable

import pytest
from support.transports import Transport
from support.wire import Server, redirect, response
from urllib3.exceptions import HostChangedError

from cagent_session import (
    Gateway,
    GatewayPoolManager,
    bind_session,
    gateway_headers,
    instrument,
    no_session,
    received_session,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    def warnings() -> list[str]:
        found = [
            record.getMessage()
            for record in caplog.records
            if record.name == "cagent_session" and record.levelno == logging.WARNING
        ]
        caplog.clear()
        return found

    return warnings


def gateway_at(server: Server) -> Gateway:
    return Gateway(f"{server.origin}?key=hunter2", forward=FORWARD)


class TestOutsideEverySession:
    def test_the_first_request_is_reported_with_the_remedies(
        self, transport: Transport, server: Server, warnings
    ):
        with transport.open(gateway_at(server)) as send:
            for _ in range(3):
                send("GET", f"{server.origin}/v1?token=hunter2")
        (message,) = warnings()
        assert message.startswith(f"a request to {server.origin}/v1 leaves outside every session")
        for remedy in (
            *("session_scope(", "bind_session(", "cagent_session.integrations.threads"),
            *("carry_session()", "SessionMiddleware", "require_session=True", "no_session()"),
        ):
            assert remedy in message
        assert "hunter2" not in message
        assert len(server.arrived) == 3

    def test_each_gateway_object_has_a_warning_of_its_own(
        self, transport: Transport, server: Server, warnings
    ):
        gateway = gateway_at(server)
        for each in (gateway, gateway, pickle.loads(pickle.dumps(gateway))):
            with transport.open(each) as send:
                send("GET", server.origin)
        assert len(warnings()) == 2

    def test_not_in_a_session_nor_inside_no_session(
        self, transport: Transport, server: Server, warnings
    ):
        with transport.open(gateway_at(server)) as send:
            with session_scope("s1"):
                send("GET", server.origin)
            with no_session():
                send("GET", server.origin)
                bound = bind_session(send)
            bound("GET", server.origin)
        assert warnings() == []

    def test_not_with_a_session_of_the_callers_own(
        self, transport: Transport, server: Server, warnings
    ):
        with transport.open(gateway_at(server)) as send:
            send("GET", server.origin, {"X-Cagent-Session-Id": "mine"})
            assert warnings() == []
            send("GET", server.origin, {"X-Cagent-Session-Id": ""})
            assert len(warnings()) == 1

    def test_received_session_without_one_does_not_count_as_no_session(
        self, transport: Transport, server: Server, warnings
    ):
        with transport.open(gateway_at(server)) as send, received_session(None):
            send("GET", server.origin)
        assert len(warnings()) == 1

    def test_the_gate_without_a_gateway_warns_once_per_process(
        self, transport: Transport, server: Server, warnings
    ):
        for _ in range(2):
            with transport.open() as send:
                send("GET", server.origin)
                send("GET", server.origin, gateway_headers(FORWARD))
        assert len(warnings()) == 1

    def test_headers_for_counts_as_a_request(self, server: Server, warnings):
        gateway = gateway_at(server)
        gateway.headers_for("https://elsewhere.example/")
        assert warnings() == []
        gateway.headers_for(gateway.url)
        gateway.headers_for(gateway.url)
        assert len(warnings()) == 1


class TestARedirectToAnotherOriginOfTheHost:
    def test_is_reported_if_the_request_carried_a_session(
        self, transport: Transport, server: Server, warnings
    ):
        with Server() as other:
            server.respond = lambda request: redirect(308, f"{other.origin}/v1?token=hunter2")
            with transport.open(gateway_at(server)) as send, session_scope("s1"):
                send("GET", server.origin)
                send("GET", server.origin)
            (message,) = warnings()
        assert f"{server.origin} redirects" in message
        assert other.origin in message
        assert "hunter2" not in message
        assert [request.session_id for request in other.arrived] == [None, None]

    def test_is_reported_at_a_later_hop_also_under_instrument(
        self, transport: Transport, server: Server, warnings
    ):
        with Server() as other:
            to = {"/1": "/2", "/2": other.origin}
            server.respond = lambda request: redirect(308, to[request.path])
            gateway = gateway_at(server)
            with transport.open(gateway) as send, instrument(gateway), session_scope("s1"):
                send("GET", f"{server.origin}/1")
        assert len(warnings()) == 1

    def test_is_not_reported_outside_every_session(
        self, transport: Transport, server: Server, warnings
    ):
        with Server() as other:
            server.respond = lambda request: redirect(308, other.origin)
            with transport.open(gateway_at(server)) as send, no_session():
                send("GET", server.origin)
        assert warnings() == []

    def test_a_session_of_the_callers_own_counts(
        self, transport: Transport, server: Server, warnings
    ):
        with Server() as other:
            server.respond = lambda request: redirect(308, other.origin)
            with transport.open() as send, no_session():
                headers = gateway_headers(FORWARD) | {"X-Cagent-Session-Id": "mine"}
                send("GET", server.origin, headers)
        assert len(warnings()) == 1

    def test_is_reported_by_a_pool_that_follows_it(self, server: Server, warnings):
        server.respond = lambda request: redirect(308, "http://127.0.0.1:9/x")
        gateway = gateway_at(server)
        with GatewayPoolManager(gateway) as http, session_scope("s1"):
            pool = http.connection_from_url(gateway.url)
            with pytest.raises(HostChangedError):
                pool.urlopen("GET", "/")
        (message,) = warnings()
        assert "http://127.0.0.1:9" in message

    def test_other_redirects_are_no_warnings(self, transport: Transport, server: Server, warnings):
        with Server() as other:
            for target in (other.at("localhost"), "/elsewhere", f"{server.origin}/x"):
                arrived: list[object] = []

                def respond(request, target=target, arrived=arrived):
                    arrived.append(request)
                    return redirect(308, target) if len(arrived) == 1 else response()

                server.respond = respond
                with transport.open(gateway_at(server)) as send, session_scope("s1"):
                    send("GET", server.origin)
        assert warnings() == []
