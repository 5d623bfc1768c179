"""Rows of docs/troubleshooting.md: what the debug log says, and what arrives."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter
from requests_futures.sessions import FuturesSession

from cagent_session import (
    Gateway,
    GatewayAdapter,
    SessionThreadPoolExecutor,
    gateway_headers,
    instrument,
    session_scope,
)
from cagent_session.testing import RecordingGateway


@pytest.fixture
def recording(caplog: pytest.LogCaptureFixture) -> Iterator[RecordingGateway]:
    caplog.set_level(logging.DEBUG, "cagent_session")
    with RecordingGateway() as recording:
        yield recording


@pytest.fixture
def http(recording: RecordingGateway) -> Iterator[requests.Session]:
    """A `requests.Session` with a gateway at 127.0.0.1 mounted on it."""
    with requests.Session() as http:
        Gateway(recording.url, forward="https://api.openai.com/v1").mount(http)
        yield http


def at(recording: RecordingGateway, authority: str) -> str:
    return recording.url.replace("127.0.0.1", authority) + "/v1/models"


def test_record_is_the_one_that_the_page_shows(http, recording, caplog):
    page = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
    shown = re.findall(
        "^DEBUG:cagent_session:(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    with session_scope("session-1"):
        http.get(at(recording, "127.0.0.1"))
    assert [
        each.replace("https://gateway.example", recording.url) for each in shown
    ] == caplog.messages


def test_bare_adapter_at_https_is_not_asked_for_a_gateway_at_http(recording, caplog):
    marked = gateway_headers("https://api.openai.com/v1")
    with requests.Session() as http, session_scope("session-1"):
        http.mount("https://", GatewayAdapter())
        http.get(at(recording, "127.0.0.1"), headers=marked)
        assert caplog.messages == []
        http.mount(recording.url, GatewayAdapter())
        http.get(at(recording, "127.0.0.1"), headers=marked)
    assert [request.session_id for request in recording.requests] == [None, "session-1"]


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_httpx_shows_the_request_without_its_session(recording, library):
    module = pytest.importorskip(library)
    transport = importlib.import_module(f"cagent_session.integrations.{library}").GatewayTransport
    gateway = Gateway(recording.url, forward="https://api.openai.com/v1")
    seen = []
    hooks = {"request": [seen.append]}
    client = module.Client(transport=transport(gateway), event_hooks=hooks)
    with client, session_scope("session-1"):
        answer = client.get(at(recording, "127.0.0.1"))
    for request in (answer.request, *seen):
        assert "X-Cagent-Session-Id" not in request.headers
    assert recording.requests[0].session_id == "session-1"


@pytest.mark.parametrize("authority", ["localhost", "user:password@127.0.0.1"])
def test_mounted_gateway_is_not_asked_for_another_spelling(http, recording, caplog, authority):
    with session_scope("session-1"):
        http.get(at(recording, authority))
    assert recording.requests[0].session_id is None
    assert caplog.messages == []


def test_instrument_says_that_no_gateway_owns_another_name_of_its_host(recording, caplog):
    gateway = Gateway(recording.url, forward="https://api.openai.com/v1")
    with instrument(gateway), session_scope("session-1"):
        requests.get(at(recording, "localhost"))
    assert recording.requests[0].session_id is None
    assert "not gateway-bound, as no gateway owns it" in caplog.messages[0]


def test_adapter_mounted_afterwards_at_longer_prefix_takes_the_request(http, recording, caplog):
    http.mount(f"{recording.url}/v1/models", HTTPAdapter())
    with session_scope("session-1"):
        http.get(at(recording, "127.0.0.1"))
    assert recording.requests[0].session_id is None
    assert caplog.messages == []


def test_adapter_mounted_afterwards_at_the_host_has_its_gateways_mounted_again(recording):
    with requests.Session() as http, session_scope("session-1"):
        of_path = Gateway(recording.url + "/v1", forward="https://api.openai.com/v1")
        of_host = Gateway(recording.url, forward="https://api.anthropic.com")
        of_path.mount(http, max_retries=1)
        http.mount(recording.url + "/", HTTPAdapter())
        of_path.mount(http, max_retries=1)
        of_host.mount(http)
        http.get(at(recording, "127.0.0.1"))
    (arrived,) = recording.requests
    assert arrived.forward == "https://api.openai.com/v1"


def test_futures_session_around_another_sends_by_that(recording):
    gateway = Gateway(recording.url, forward="https://api.openai.com/v1")
    pool = SessionThreadPoolExecutor()
    with requests.Session() as http, FuturesSession(pool, session=http) as futures:
        for mounted_on in (futures, http):
            gateway.mount(mounted_on)
            with session_scope("session-1"):
                futures.get(at(recording, "127.0.0.1")).result()
    assert [request.session_id for request in recording.requests] == [None, "session-1"]


def test_empty_forward_opts_out(http, recording, caplog):
    with session_scope("session-1"):
        http.get(at(recording, "127.0.0.1"), headers={"X-Cagent-Forward": ""})
    assert recording.requests[0].session_id is None
    assert "not gateway-bound, as its X-Cagent-Forward is empty" in caplog.messages[0]


def test_own_value_stays_outside_every_session(http, recording):
    own = {"X-Cagent-Session-Id": "own"}
    http.get(at(recording, "127.0.0.1"), headers=own)
    with session_scope("session-1"):
        http.get(at(recording, "127.0.0.1"), headers=own)
    assert [request.session_id for request in recording.requests] == ["own", "session-1"]


def test_copy_of_sent_request_shows_no_session(http, recording):
    """As in a dump of requests_toolbelt, which copies the request."""
    with session_scope("session-1"):
        answer = http.get(at(recording, "127.0.0.1"))
    assert answer.request.headers["X-Cagent-Session-Id"] == "session-1"
    assert "X-Cagent-Session-Id" not in answer.request.copy().headers
