"""LiteLLM's proxy as the gateway: its own spend records and limits, by our sessions."""

from __future__ import annotations

import json
import secrets
import shutil
import uuid
from pathlib import Path

import httpx
import httpx2
import openai
import pytest
import requests
import yaml
from running import (
    ODD,
    answers,
    command_of_the_page,
    free_port,
    from_the_page,
    gateway_of_the_page,
    running,
    wait_until,
)

from cagent_session import Gateway, session_scope
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

pytestmark = pytest.mark.filterwarnings("default")

ADDRESS = "http://litellm.example:4000"
FORWARD = "https://api.openai.com/v1"
KEYS = {team: f"sk-{secrets.token_hex(32)}" for team in ("research", "support")}
HELLO = {"model": "cheap", "messages": [{"role": "user", "content": "Hello!"}]}


class LiteLLM:
    def __init__(self, url: str, records: Path) -> None:
        self.url = url
        self.gateway = gateway_of_the_page(ADDRESS, url)
        self._records = records

    def call(self, session_id: str | None, *, team="research", gateway=None, model="cheap"):
        gateway = gateway or self.gateway
        with requests.Session() as http:
            gateway.mount(http)
            http.headers["Authorization"] = f"Bearer {KEYS.get(team)}"
            url = gateway.endpoint("v1/chat/completions")
            if session_id is None:
                return http.post(url, json=HELLO | {"model": model}, timeout=30)
            with session_scope(session_id):
                return http.post(url, json=HELLO | {"model": model}, timeout=30)

    def rows(self) -> list[dict]:
        if not self._records.exists():
            return []
        return [json.loads(line) for line in self._records.read_text("utf-8").splitlines()]

    def rows_of(self, session_id: str, calls: int) -> list[dict]:
        """The session's records, so many of them. LiteLLM writes them after it has answered."""
        found: list[dict] = []

        def written() -> bool:
            found[:] = [row for row in self.rows() if row["session_id"] == session_id]
            return len(found) >= calls

        wait_until(written)
        assert len(found) == calls
        return found


@pytest.fixture(scope="module")
def litellm(tmp_path_factory):
    """The proxy with the configuration of the page, but for two models that answer by themselves,
    priced, and the spend records in a file."""
    folder = tmp_path_factory.mktemp("litellm")
    shutil.copytree(Path(__file__).parent / "litellm", folder, dirs_exist_ok=True)
    (folder / "keys.py").write_text(from_the_page("py", "authenticate"), encoding="utf-8")
    config = yaml.safe_load(from_the_page("yaml", "master_key"))
    config["model_list"] = [
        {
            "model_name": name,
            "litellm_params": {
                "model": "openai/mocked",
                "api_key": "none",
                "mock_response": "Hello from the model.",
                "input_cost_per_token": price,
                "output_cost_per_token": 2 * price,
            },
        }
        for name, price in (("cheap", 0.0001), ("dear", 0.02))
    ]
    config["litellm_settings"] |= {"callbacks": "spend_records.writer", "telemetry": False}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    command = command_of_the_page("litellm ")
    command[command.index("--port") + 1] = str(port)
    command += ["--host", "127.0.0.1"]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}",
        "SPEND_RECORDS": str(folder / "records"),
        "TEAMS": json.dumps({key: team for team, key in KEYS.items()}),
    }
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        return answers(f"{url}/health/liveliness", 200)

    with running(command, ready, folder, environment=environment):
        yield LiteLLM(url, folder / "records")


def new_session() -> str:
    return str(uuid.uuid4())


def test_spend_is_recorded_by_session(litellm):
    sessions = {new_session(): 3, new_session(): 2}
    tokens = dict.fromkeys(sessions, 0)
    for session_id, calls in sessions.items():
        for _ in range(calls):
            answer = litellm.call(session_id).json()
            tokens[session_id] += answer["usage"]["total_tokens"]
    for session_id, calls in sessions.items():
        rows = litellm.rows_of(session_id, calls)
        assert tokens[session_id] == sum(
            row["prompt_tokens"] + row["completion_tokens"] for row in rows
        )
        assert {row["team_id"] for row in rows} == {"research"}
        assert all(row["spend"] > 0 for row in rows)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(httpx.Client, id="httpx"),
        pytest.param(httpx2.Client, id="httpx2"),
        pytest.param(openai.DefaultHttpxClient, id="its-own"),
    ],
)
def test_spend_of_the_openai_sdk_is_recorded_by_session(litellm, make):
    """Over both libraries that it can sit on, and over the one that it makes itself."""
    library, ours = (httpx, for_httpx) if issubclass(make, httpx.Client) else (httpx2, for_httpx2)
    passed = []

    class Counted(library.HTTPTransport):
        def handle_request(self, request):
            passed.append(request.headers["X-LiteLLM-Session-Id"])
            return super().handle_request(request)

    session_id = new_session()
    with make(transport=ours.GatewayTransport(litellm.gateway, Counted())) as http:
        url = litellm.gateway.endpoint("v1")
        client = openai.OpenAI(api_key=KEYS["support"], base_url=url, http_client=http)
        with session_scope(session_id):
            answers_ = [client.chat.completions.create(**HELLO) for _ in range(3)]
    assert passed == [session_id] * 3
    rows = litellm.rows_of(session_id, 3)
    assert [row["prompt_tokens"] for row in rows] == [a.usage.prompt_tokens for a in answers_]
    assert {row["team_id"] for row in rows} == {"support"}


@pytest.mark.parametrize("session_id", ["s", "short", "has.a.dot", "has:colon:in:it", ODD[0]])
def test_its_own_header_takes_every_id(litellm, session_id):
    litellm.call(session_id).raise_for_status()
    litellm.rows_of(session_id, 1)


@pytest.mark.parametrize(
    ("session_id", "recognised"),
    [
        ("12345678", True),
        ("a-b_c-d_e", True),
        ("e96634a3-fa28-4083-b354-55542e2dca01", True),
        ("too-few", False),
        ("has.another.dot", False),
        ("another:colon:in:it", False),
    ],
)
def test_of_another_vendors_header_it_takes_long_plain_ids(litellm, session_id, recognised):
    answer = litellm.call(session_id, gateway=Gateway(litellm.url, forward=FORWARD))
    if recognised:
        answer.raise_for_status()
        litellm.rows_of(session_id, 1)
    else:
        assert answer.status_code == 400
        assert "no session id" in answer.text


@pytest.mark.parametrize(
    ("names", "recorded"),
    [
        (("X-LiteLLM-Session-Id", "X-Parent-Session"), "the session"),
        (("X-LiteLLM-Session-Id", "X-Parent-Session-Id"), "the session"),
        (("X-Agent-Session-Id", "X-Parent-Session-Id"), "the session"),
        (("X-Session-Id", "X-Parent-Session"), "the session"),
        # OpenCode's names: only one of them has the form X-...-Session-Id.
        (("X-Session-Id", "X-Parent-Session-Id"), "the parent"),
    ],
    ids=" ".join,
)
def test_which_of_two_headers_it_takes_for_the_session(litellm, names, recorded):
    session_header, parent_header = names
    gateway = Gateway(litellm.url, session_header=session_header, parent_header=parent_header)
    parent, child = new_session(), new_session()
    with session_scope(parent):
        litellm.call(child, gateway=gateway).raise_for_status()
    expected, other = (child, parent) if recorded == "the session" else (parent, child)
    litellm.rows_of(expected, 1)
    assert other not in {row["session_id"] for row in litellm.rows()}


def test_it_takes_the_first_header_of_the_form_that_it_knows(litellm):
    first, second = new_session(), new_session()
    answer = requests.post(
        f"{litellm.url}/v1/chat/completions",
        headers={
            "Authorization": f"Bearer {KEYS['research']}",
            "X-Parent-Session-Id": first,
            "X-Agent-Session-Id": second,
        },
        json=HELLO,
        timeout=30,
    )
    answer.raise_for_status()
    litellm.rows_of(first, 1)


def test_a_call_without_a_session_is_refused(litellm):
    answer = litellm.call(None)
    assert answer.status_code == 400
    assert "no session id" in answer.text


def test_an_unknown_key_is_refused(litellm):
    assert litellm.call(new_session(), team="nobody").status_code == 401


def test_a_session_has_so_many_calls(litellm):
    session_id = new_session()
    statuses = [litellm.call(session_id).status_code for _ in range(27)]
    assert statuses == [200] * 25 + [429] * 2
    assert litellm.call(new_session()).status_code == 200


def test_its_counters_are_keyed_on_the_session_alone(litellm):
    """Whoever knows an ID can use it up for everyone else: what the page warns of."""
    session_id = new_session()
    for _ in range(25):
        litellm.call(session_id, team="support").raise_for_status()
    assert litellm.call(session_id, team="research").status_code == 429


def test_a_session_has_a_budget(litellm):
    session_id = new_session()
    spent, statuses = 0.0, []
    while spent < 2:
        statuses.append(litellm.call(session_id, model="dear").status_code)
        spent = sum(row["spend"] for row in litellm.rows_of(session_id, len(statuses)))
    assert 1 < len(statuses) < 25
    assert set(statuses) == {200}
    wait_until(lambda: litellm.call(session_id, model="dear").status_code == 429)
    assert "budget" in litellm.call(session_id, model="dear").text
    assert litellm.call(new_session(), model="dear").status_code == 200


def test_the_parent_is_a_tag_of_the_spend(litellm):
    parent, child = new_session(), new_session()
    with session_scope(parent):
        litellm.call(child).raise_for_status()
    litellm.call(parent).raise_for_status()
    (row,) = litellm.rows_of(child, 1)
    assert f"x-parent-session: {parent}" in json.loads(row["request_tags"])
    (row,) = litellm.rows_of(parent, 1)
    assert "x-parent-session" not in row["request_tags"]
