"""nginx as the gateway, with the very configuration that the documentation gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import requests

from cagent_session import Gateway, session_scope
from cagent_session.testing import RecordingGateway

PAGE = Path(__file__).parent.parent.parent / "docs" / "gateways.md"
FORWARD = "https://api.openai.com/v1"


@pytest.fixture
def nginx(tmp_path):
    """nginx with the configuration of the page; gives its URL, its audit log and its provider."""
    executable = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if executable is None:
        assert "CI" not in os.environ, "nginx is missing"
        pytest.skip("nginx is missing; on Debian: apt-get install nginx")
    page = PAGE.read_text(encoding="utf-8")
    (configuration,) = re.findall(r"^```nginx\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with RecordingGateway() as provider:
        configuration = configuration.replace("127.0.0.1:8080", address)
        configuration = configuration.replace('"https://api.openai.com"', f'"{provider.url}"')
        (tmp_path / "nginx.conf").write_text(configuration, encoding="utf-8")
        command = [executable, "-p", str(tmp_path), "-c", "nginx.conf", "-e", "error.log"]
        command += ["-g", "daemon off; master_process off;"]
        with subprocess.Popen(command) as process:
            deadline = time.monotonic() + 20
            while True:
                try:
                    requests.get(f"http://{address}", timeout=5)
                    break
                except requests.ConnectionError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            # The line of the request that found it up.
            logged(tmp_path / "audit.log", 1)
            (tmp_path / "audit.log").write_text("", encoding="utf-8")
            yield f"http://{address}", tmp_path / "audit.log", provider
            process.terminate()


def logged(audit_log: Path, count: int) -> list[dict]:
    """The lines of the audit log, so many of them: nginx writes a line after it has answered."""
    deadline = time.monotonic() + 20
    while True:
        lines = audit_log.read_text(encoding="utf-8").splitlines()
        if len(lines) >= count:
            assert len(lines) == count
            return [json.loads(line) for line in lines]
        assert time.monotonic() < deadline, lines
        time.sleep(0.02)


def test_one_session_is_limited_and_the_other_is_not(nginx):
    url, audit_log, provider = nginx
    gateway = Gateway(url, forward=FORWARD, model="gpt")
    statuses: dict[str | None, list[int]] = {"greedy": [], "modest": [], None: []}
    with requests.Session() as http:
        gateway.mount(http)

        def call(session_id):
            answer = http.post(gateway.endpoint("v1/chat/completions?x=1"), json={"messages": []})
            statuses[session_id].append(answer.status_code)
            return answer

        with session_scope("greedy"):
            answers = [call("greedy") for _ in range(20)]
        with session_scope("modest"):
            for _ in range(3):
                call("modest")
        for _ in range(20):
            call(None)

    assert statuses["greedy"][:6] == [200] * 6
    assert statuses["greedy"].count(429) >= 12
    assert {answer.headers.get("Retry-After") for answer in answers} == {None, "1"}
    assert statuses["modest"] == [200] * 3
    assert statuses[None] == [200] * 20

    lines = logged(audit_log, 43)
    for session_id, expected in statuses.items():
        found = [line["status"] for line in lines if line["session_id"] == (session_id or "")]
        assert found == expected
    assert {(line["forward"], line["model"], line["path"]) for line in lines} == {
        (FORWARD, "gpt", "/v1/chat/completions")
    }

    served = sum(list_of.count(200) for list_of in statuses.values())
    assert len(provider.requests) == served
    for request in provider.requests:
        assert request.query == "x=1"
        assert not [name for name in request.headers if name.lower().startswith("x-cagent-")]


def test_what_it_does_not_know_is_not_relayed(nginx):
    url, audit_log, provider = nginx
    with requests.Session() as http, session_scope('a"b\\c'):
        Gateway(url, forward="https://evil.example/").mount(http)
        assert http.get(url).status_code == 403
    assert provider.requests == []
    (line,) = logged(audit_log, 1)
    assert line["session_id"] == 'a"b\\c'
