"""Nothing is lost in silence: what cannot be sent is refused, and each decision can be seen."""

from __future__ import annotations

import logging

import pytest
import requests
from support.transports import Transport
from support.wire import Server, redirect, response
from urllib3.util import Retry

from cagent_session import (
    Gateway,
    GatewayMixin,
    GatewayPoolManager,
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
        assert isinstance(caught.value, RuntimeError)
        assert [request.session_id for request in server.arrived] == ["s1"]

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


class TestTheDebugLog:
    @pytest.fixture(autouse=True)
    def _is_on(self, caplog: pytest.LogCaptureFixture):
        with caplog.at_level(logging.DEBUG, "cagent_session"):
            yield

    @pytest.fixture
    def messages(self, caplog: pytest.LogCaptureFixture):
        def messages() -> list[str]:
            found = [r.getMessage() for r in caplog.records if r.name == "cagent_session"]
            caplog.clear()
            return found

        return messages

    def test_says_of_each_request_why_and_in_which_session(
        self, transport: Transport, server: Server, messages
    ):
        gateway = Gateway(f"{server.origin}/p?key=hunter2", forward=FORWARD)
        with transport.open(gateway) as send:
            with session_scope("s1"):
                send("GET", f"{server.origin}/p/x?token=hunter2", {"X-Secret": "hunter2"})
                send("GET", f"{server.origin}/else?token=hunter2", MARKED)
            send("GET", f"{server.origin}/p/x")
            send("GET", f"{server.origin}/else?token=hunter2")
            send("GET", f"{server.origin}/p/x", {"X-Cagent-Forward": ""})
        at = server.origin
        assert messages() == [
            f"gateway-bound, as {at}/p owns it, in session s1: {at}/p/x",
            f"gateway-bound, as it has X-Cagent-Forward, in session s1: {at}/else",
            f"gateway-bound, as {at}/p owns it, in no session: {at}/p/x",
            f"not gateway-bound, as no gateway owns it: {at}/else",
            f"not gateway-bound, as its X-Cagent-Forward is empty: {at}/p/x",
        ]

    def test_says_it_of_every_hop(self, transport: Transport, messages):
        with Server() as stranger, Server(lambda r: redirect(302, stranger.origin)) as server:
            with transport.open(Gateway(server.origin, forward=FORWARD)) as send:
                send("GET", f"{server.origin}/")
            found = messages()
        assert [message.partition(",")[0] for message in found] == [
            "gateway-bound",
            "not gateway-bound",
        ]

    def test_shows_no_password(self, transport: Transport, server: Server, messages):
        url = server.origin.replace("//", "//user:hunter2@")
        with transport.open() as send:
            send("GET", f"{url}/x")
        (message,) = messages()
        assert "hunter2" not in message
        assert message.endswith(f": {server.origin}/x")

    def test_is_silent_on_other_levels(self, transport: Transport, server: Server, caplog):
        with caplog.at_level(logging.INFO, "cagent_session"), transport.open() as send:
            send("GET", server.origin, MARKED)
        assert [record for record in caplog.records if record.name == "cagent_session"] == []

    def test_retries_of_urllib3_are_seen(self, server: Server, messages):
        answers = iter([response(503), response()])
        server.respond = lambda request: next(answers)
        with GatewayPoolManager(retries=Retry(2, status_forcelist=[503])) as http:
            http.request("GET", server.origin, headers=MARKED)
        assert len(messages()) == 2

    def test_a_url_that_nobody_can_read(self, messages):
        class Nowhere(requests.adapters.BaseAdapter):
            def __init__(self, **options):
                super().__init__()

            def send(self, request, **options):
                return requests.Response()

            def close(self): ...

        class Both(GatewayMixin, Nowhere): ...

        request = requests.PreparedRequest()
        request.headers = {}
        request.url = "https://us er:hunter2@gateway.example/\nx"
        Both().send(request)
        assert messages() == [
            "not gateway-bound, as no gateway owns it: a URL that is not clear",
        ]
