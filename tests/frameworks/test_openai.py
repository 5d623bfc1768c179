"""What all frameworks on the openai SDK share, whichever httpx the SDK sits on."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import openai
import page
import pytest
from mock_model import question
from support.wire import Proxy, Server, redirect, response

from cagent_session import (
    Gateway,
    SessionRequired,
    gateway_headers,
    instrument,
    session_scope,
)
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

httpx = importlib.import_module(openai.DefaultHttpxClient.__base__.__module__.partition(".")[0])
integration = importlib.import_module(f"cagent_session.integrations.{httpx.__name__}")
GatewayTransport = integration.GatewayTransport

MODEL = "gpt-4o-mini"


def asking(session_id):
    return {"model": MODEL, "messages": [{"role": "user", "content": question(session_id)}]}


@pytest.fixture
def transport(gateway):
    return GatewayTransport(gateway)


def test_which_httpx_the_sdk_sits_on():
    major = int(openai.__version__.partition(".")[0])
    assert httpx.__name__ == ("httpx2" if major >= 3 else "httpx")
    assert openai.DefaultHttpxClient.__base__ is httpx.Client


def test_the_transport_for_the_other_one_refuses(gateway):
    other = {"httpx": for_httpx2, "httpx2": for_httpx}[httpx.__name__]
    with (
        openai.DefaultHttpxClient(transport=other.GatewayTransport(gateway)) as http,
        pytest.raises(TypeError, match=f"for clients of .*, not of {httpx.__name__}"),
    ):
        http.get(gateway.url)


def test_the_page(run_section):
    run_section(page.TWO_LINES, page.BY_HAND)


def test_every_section_of_the_page_is_run():
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for title, snippets in page.sections().items():
        is_beginning = title in (page.TWO_LINES, page.BY_HAND)
        assert not snippets or is_beginning or f'run_section("{title}"' in tests


def test_the_table_says_what_each_framework_was_tested_with():
    """tox -e pages writes it; the versions of this run may be newer."""
    assert page.versions().keys() == page.TESTED.keys()
    for name, cell in page.versions().items():
        assert re.fullmatch(r"\d[\w.]+ \(20\d\d-\d\d-\d\d\)", cell), name


class TestDefaults:
    def test_kept_by_the_client_class_of_the_sdk(self, transport):
        ours, its = openai.DefaultHttpxClient(transport=transport), openai.DefaultHttpxClient()
        plain = httpx.Client(transport=transport)
        assert ours.timeout == its.timeout == openai.DEFAULT_TIMEOUT != plain.timeout
        assert (ours.follow_redirects, plain.follow_redirects) == (True, False)

    def test_a_redirect_is_followed_by_that_class_alone(self):
        def moved(arrived):
            return redirect(307, "/v2/models") if arrived.path == "/v1/models" else response()

        with Server(moved) as server, session_scope("s1"):
            gateway = Gateway(server.origin, forward="https://api.openai.com/v1")
            for make, status in (openai.DefaultHttpxClient, 200), (httpx.Client, 307):
                with make(transport=GatewayTransport(gateway)) as http:
                    assert http.get(gateway.endpoint("v1/models")).status_code == status
        assert [each.session_id for each in server.arrived] == ["s1"] * 3

    def test_a_proxy_of_the_environment_is_not_used_by_a_transport(
        self, transport, gateway, model, monkeypatch
    ):
        with Proxy() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.origin)
            monkeypatch.setenv("NO_PROXY", "")
            inner = httpx.HTTPTransport(proxy=proxy.origin, limits=openai.DEFAULT_CONNECTION_LIMITS)
            for given, passed in (transport, 0), (GatewayTransport(gateway, inner), 1):
                http = openai.DefaultHttpxClient(transport=given)
                options = {"base_url": gateway.endpoint("v1"), "api_key": "x"}
                with openai.OpenAI(**options, http_client=http) as client, session_scope("s1"):
                    client.chat.completions.create(**asking("s1"))
                assert len(proxy.arrived) == passed
        assert model.count == {"s1": 2}

    def test_instrument_leaves_the_proxy_of_the_environment(self, gateway, model, monkeypatch):
        with Proxy() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.origin)
            monkeypatch.setenv("NO_PROXY", "")
            client = openai.OpenAI(base_url=gateway.endpoint("v1"), api_key="x")
            with client, instrument(gateway), session_scope("s1"):
                client.chat.completions.create(**asking("s1"))
            assert len(proxy.arrived) == 1
        assert model.count == {"s1": 1}

    def test_a_proxy_of_the_client_goes_past_the_transport(
        self, transport, gateway, unchecked_model
    ):
        with Proxy() as proxy:
            http = openai.DefaultHttpxClient(transport=transport, proxy=proxy.origin)
            options = {"base_url": gateway.endpoint("v1"), "api_key": "x"}
            with openai.OpenAI(**options, http_client=http) as client, session_scope("s1"):
                client.chat.completions.create(**asking("s1"))
        assert unchecked_model.count == {None: 1}


class TestOneClient:
    def test_several_providers_and_models(self):
        """A transport without a gateway, and the gateway headers of each model."""
        with Server(lambda arrived: response(200, json.dumps({"choices": []}).encode())) as server:
            http = openai.DefaultHttpxClient(transport=GatewayTransport())
            shared = {"base_url": f"{server.origin}/v1", "api_key": "x", "http_client": http}
            headers = [
                gateway_headers("https://api.openai.com/v1", provider="openai", model=MODEL),
                gateway_headers("https://api.mistral.ai/v1", provider="mistral"),
            ]
            clients = [openai.OpenAI(**shared, default_headers=each) for each in headers]
            for client in [*clients, clients[0].with_options(default_headers=headers[1])]:
                with session_scope("s1"):
                    client.chat.completions.create(**asking("s1"))
            for client in clients:
                client.close()
        assert [each.forward for each in server.arrived] == [
            "https://api.openai.com/v1",
            "https://api.mistral.ai/v1",
            "https://api.mistral.ai/v1",
        ]
        assert [each.get("X-Cagent-Provider") for each in server.arrived] == [
            "openai",
            "mistral",
            "mistral",
        ]
        assert {each.session_id for each in server.arrived} == {"s1"}


class TestRequiringASession:
    def test_what_the_sdk_makes_of_a_refusal(self, unchecked_model):
        """Before its third version it takes it for a connection that failed."""
        gateway = Gateway(unchecked_model.origin, forward="http://x", require_session=True)
        http = openai.DefaultHttpxClient(transport=GatewayTransport(gateway))
        options = {"api_key": "x", "base_url": gateway.endpoint("v1"), "max_retries": 0}
        with (
            openai.OpenAI(http_client=http, **options) as client,
            pytest.raises((SessionRequired, openai.APIConnectionError)) as caught,
        ):
            client.chat.completions.create(**asking("s1"))
        is_wrapped = isinstance(caught.value, openai.APIConnectionError)
        assert is_wrapped is (httpx.__name__ == "httpx")
        assert isinstance(caught.value.__cause__ if is_wrapped else caught.value, SessionRequired)
        assert unchecked_model.calls == []
