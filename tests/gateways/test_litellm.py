"""LiteLLM's proxy as the gateway: its own spend records, by our sessions."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import httpx2
import openai
import pytest
import requests

from cagent_session import Gateway, session_scope
from cagent_session.integrations.httpx2 import GatewayTransport

pytestmark = pytest.mark.filterwarnings("default")

FORWARD = "https://api.openai.com/v1"
KEY = f"sk-{secrets.token_hex(32)}"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
PROMPT = {"model": "mocked", "messages": [{"role": "user", "content": "Hello!"}]}


@pytest.fixture(scope="module")
def litellm(tmp_path_factory):
    """A LiteLLM proxy in a process of its own; gives its URL and its spend records."""
    folder = tmp_path_factory.mktemp("litellm")
    shutil.copytree(Path(__file__).parent / "litellm", folder, dirs_exist_ok=True)
    records = folder / "records"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "litellm", "--config", folder / "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {
        "SPEND_RECORDS": str(records),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": KEY,
    }
    url = f"http://127.0.0.1:{port}"
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    requests.get(f"{url}/health/liveliness", timeout=5).raise_for_status()
                    break
                except requests.RequestException:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            yield url, records
        except BaseException:
            print((folder / "log").read_text(encoding="utf-8"))
            raise
        finally:
            process.terminate()
            process.wait(30)


def spend_by_session(records: Path, sessions: set[str], calls: int) -> dict[str, dict]:
    """LiteLLM's records, added up. It writes them after it has answered, so wait for them."""
    deadline = time.monotonic() + 30
    while True:
        lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
        rows = [row for row in map(json.loads, lines) if row["session_id"] in sessions]
        if len(rows) >= calls:
            break
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)
    bills: dict = defaultdict(lambda: {"calls": 0, "tokens": 0, "spend": 0.0})
    for row in rows:
        bill = bills[row["session_id"]]
        bill["calls"] += 1
        bill["tokens"] += row["prompt_tokens"] + row["completion_tokens"]
        bill["spend"] = round(bill["spend"] + row["spend"], 6)
    return dict(bills)


def test_spend_is_recorded_by_session(litellm):
    url, records = litellm
    gateway = Gateway(url, forward=FORWARD)
    tokens = {"session-one": 0, "session-two": 0}
    with (
        requests.Session() as http,
        httpx2.Client(transport=GatewayTransport(gateway)) as for_openai,
    ):
        gateway.mount(http)
        http.headers.update(AUTHORIZED)
        client = openai.OpenAI(api_key=KEY, base_url=gateway.endpoint("v1"), http_client=for_openai)
        for session_id, times in (("session-one", 3), ("session-two", 2)):
            with session_scope(session_id):
                for _ in range(times):
                    answer = http.post(gateway.endpoint("v1/chat/completions"), json=PROMPT).json()
                    tokens[session_id] += answer["usage"]["total_tokens"]
                    answer = client.chat.completions.create(**PROMPT)
                    tokens[session_id] += answer.usage.total_tokens

    bills = spend_by_session(records, set(tokens), 10)
    assert {name: bill["calls"] for name, bill in bills.items()} == {
        "session-one": 6,
        "session-two": 4,
    }
    assert {name: bill["tokens"] for name, bill in bills.items()} == tokens
    per_call = bills["session-two"]["spend"] / 4
    assert per_call > 0
    assert bills["session-one"]["spend"] == pytest.approx(6 * per_call)


@pytest.mark.parametrize(
    ("session_id", "recognised"),
    [
        ("12345678", True),
        ("a-b_c-d_e", True),
        ("e96634a3-fa28-4083-b354-55542e2dca01", True),
        ("short", False),
        ("has.a.dot", False),
        ("has:colon:in:it", False),
    ],
)
@pytest.mark.parametrize("header", ["X-Cagent-Session-Id", "X-LiteLLM-Session-Id"])
def test_which_ids_it_recognises(litellm, session_id: str, recognised: bool, header: str):
    """Of any vendor's header long plain ones; of its own header all."""
    url, records = litellm
    gateway = Gateway(url, forward=FORWARD, session_header=header)
    unique = f"{session_id}.{header}" if header.startswith("X-L") else session_id
    before = records.read_text(encoding="utf-8").count("\n") if records.exists() else 0
    with requests.Session() as http, session_scope(unique):
        gateway.mount(http)
        http.headers.update(AUTHORIZED)
        http.post(gateway.endpoint("v1/chat/completions"), json=PROMPT).raise_for_status()
    deadline = time.monotonic() + 30
    while not records.exists() or records.read_text(encoding="utf-8").count("\n") == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    row = json.loads(records.read_text(encoding="utf-8").splitlines()[-1])
    expected = recognised or header == "X-LiteLLM-Session-Id"
    assert (row["session_id"] == unique) is expected
