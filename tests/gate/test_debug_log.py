"""The log cagent_session at DEBUG: one record for each decision of the gate."""

from __future__ import annotations

import logging
import re

import pytest
import requests
from support.transports import Transport
from support.wire import Server, redirect, response
from urllib3.util import Retry

from cagent_session import (
    Gateway,
    GatewayMixin,
    GatewayPoolManager,
    no_session,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"
MARKED = {"X-Cagent-Forward": FORWARD}


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
        found = [message for message in messages() if "leaves outside" not in message]
        assert found == [
            f"gateway-bound, as {at}/p owns it, in session s1: {at}/p/x",
            f"gateway-bound, as it has X-Cagent-Forward, in session s1: {at}/else",
            f"gateway-bound, as {at}/p owns it, in no session: {at}/p/x",
            f"not gateway-bound, as no gateway owns it: {at}/else",
            f"not gateway-bound, as its X-Cagent-Forward is empty: {at}/p/x",
        ]

    def test_says_it_of_every_hop(self, transport: Transport, messages):
        with Server() as stranger, Server() as server:
            # Another host: to another port of the same one is a warning.
            elsewhere = stranger.origin.replace("127.0.0.1", "localhost")
            server.respond = lambda request: redirect(302, elsewhere)
            with transport.open(Gateway(server.origin, forward=FORWARD)) as send:
                send("GET", f"{server.origin}/")
            found = messages()
        found = [message for message in found if "leaves outside" not in message]
        assert [re.split("[,:]", message)[0] for message in found] == [
            "gateway-bound",
            "redirected off the gateway's origin",
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
        with (
            caplog.at_level(logging.INFO, "cagent_session"),
            transport.open() as send,
            no_session(),
        ):
            send("GET", server.origin, MARKED)
        assert [record for record in caplog.records if record.name == "cagent_session"] == []

    def test_retries_of_urllib3_are_seen(self, server: Server, messages):
        answers = iter([response(503), response()])
        server.respond = lambda request: next(answers)
        manager = GatewayPoolManager(retries=Retry(2, status_forcelist=[503]))
        with manager as http, no_session():
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
