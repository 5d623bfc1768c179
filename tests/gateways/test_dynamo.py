"""NVIDIA Dynamo: sessions and their parents, in its router and in its trace."""

from __future__ import annotations

import json
import os
import random
import re
import string
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

import pytest
import requests
from running import (
    ODD,
    UUIDS,
    answers,
    command_of_the_page,
    free_port,
    from_the_page,
    gateway_of_the_page,
    running,
    wait_until,
)

from cagent_session import Gateway, SessionThreadPoolExecutor, session_scope
from cagent_session.testing import RecordingGateway

ADDRESS = "http://dynamo.example:8000"
FRONTEND = "python -m dynamo.frontend"
TURNS = 4


def test_a_sub_agent_names_its_parent():
    with RecordingGateway() as recording, requests.Session() as http:
        gateway = gateway_of_the_page(ADDRESS, recording.url)
        gateway.mount(http)
        with session_scope("main"):
            http.post(gateway.endpoint("v1/chat/completions"), json={})
            with session_scope("sub"):
                http.post(gateway.endpoint("v1/chat/completions"), json={})
        http.post(gateway.endpoint("v1/chat/completions"), json={})
    names = ("X-Dynamo-Session-ID", "X-Dynamo-Parent-Session-ID")
    assert [tuple(map(request.headers.get, names)) for request in recording.requests] == [
        ("main", None),
        ("sub", "main"),
        (None, None),
    ]
    for request in recording.requests:
        assert not [name for name in request.headers if name.lower().startswith("x-cagent-")]


def make_tokenizer(folder) -> None:
    """All of a model that the frontend and the simulated workers look at: a byte is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for name, content in {
        "config.json": config,
        "generation_config.json": {},
        "tokenizer_config.json": {"bos_token": "<s>", "chat_template": template},
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def dynamo(folder, *, affinity: bool = True):
    """The frontend as the page starts it, over four simulated workers; gives its URL."""
    if find_spec("dynamo") is None:
        assert "CI" not in os.environ or sys.version_info >= (3, 11), "ai-dynamo is missing"
        pytest.skip("ai-dynamo is missing; from PyPI it installs on Python 3.10 alone")
    make_tokenizer(folder / "model")
    environment = dict(re.findall(r"(DYN_\w+)=(\S+)", from_the_page("sh", FRONTEND)))
    environment |= {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(folder / "discovery"),
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
    }
    workers = [sys.executable, "-m", "dynamo.mocker", "--model-path", str(folder / "model")]
    workers += ["--model-name", "simulated", "--num-workers", "4"]
    port = free_port()
    frontend = command_of_the_page(FRONTEND)
    frontend[frontend.index("--http-port") + 1] = str(port)
    frontend += ["--http-host", "127.0.0.1"]
    if not affinity:
        at = frontend.index("--router-session-affinity-ttl-secs")
        del frontend[at : at + 2]
    url = f"http://127.0.0.1:{port}"

    def registered() -> bool:
        return len(list((folder / "discovery" / "v1" / "mdc").glob("*"))) == 4

    def served() -> bool:
        return answers(f"{url}/health") and bool(requests.get(f"{url}/v1/models").json()["data"])

    with (
        running(workers, registered, folder, environment=environment),
        running(frontend, served, folder, environment=environment),
    ):
        yield url


def converse(gateway: Gateway, family: dict[str, str | None]) -> dict[str, set[int]]:
    """All the sessions, a turn of all at a time; of each the workers that served it."""
    homes = defaultdict(set)

    def turn(session_id: str) -> int:
        # A prompt that no worker has seen: the cache has no say in where it goes.
        content = "".join(random.choices(string.ascii_letters, k=600))
        prompt = {
            "model": "simulated",
            "max_tokens": 20,
            "messages": [{"role": "user", "content": content}],
            "nvext": {"extra_fields": ["worker_id"]},
        }
        with requests.Session() as http:
            gateway.mount(http)
            url = gateway.endpoint("v1/chat/completions")
            answer = http.post(url, json=prompt, timeout=30)
        answer.raise_for_status()
        return answer.json()["nvext"]["worker_id"]["decode_worker_id"]

    with SessionThreadPoolExecutor(12) as pool:
        for _ in range(TURNS):
            turns = {}
            for session_id in random.sample(list(family), len(family)):
                parent = family[session_id]
                with session_scope(session_id, **({"parent": parent} if parent else {})):
                    turns[session_id] = pool.submit(turn, session_id)
            for session_id, future in turns.items():
                homes[session_id].add(future.result())
    return dict(homes)


def alone(sessions: list[str]) -> dict[str, str | None]:
    return dict.fromkeys(sessions)


@pytest.mark.parametrize("sessions", [UUIDS, ODD], ids=["uuids", "odd"])
def test_every_session_stays_on_one_worker(tmp_path, sessions):
    with dynamo(tmp_path) as url:
        homes = converse(gateway_of_the_page(ADDRESS, url), alone(sessions))
    assert [len(home) for home in homes.values()] == [1] * 12
    assert len(set.union(*homes.values())) > 1


@pytest.mark.parametrize("known", ["without-affinity", "under-another-name"])
def test_they_are_scattered(tmp_path, known):
    with dynamo(tmp_path, affinity=known == "under-another-name") as url:
        gateway = gateway_of_the_page(ADDRESS, url)
        if known == "under-another-name":
            gateway = Gateway(url, forward="http://worker.example/v1")
        homes = converse(gateway, alone(UUIDS))
    assert len([home for home in homes.values() if len(home) > 1]) > 6


def test_sub_agents_share_a_worker_and_are_traced_to_their_parent(tmp_path):
    family: dict[str, str | None] = {}
    for number in range(6):
        family[f"main-{number}"] = None
        for sub in ("a", "b", "c"):
            family[f"sub-{number}-{sub}"] = f"main-{number}"
    with dynamo(tmp_path) as url:
        homes = converse(gateway_of_the_page(ADDRESS, url), family)
        trace = tmp_path / "trace.jsonl"
        wait_until(
            lambda: trace.exists() and trace.read_text("utf-8").count("\n") == TURNS * len(family)
        )
    for number in range(6):
        assert len(set.union(*(homes[f"sub-{number}-{sub}"] for sub in ("a", "b", "c")))) == 1
    assert len(set.union(*homes.values())) > 1

    traced: Counter = Counter()
    for line in trace.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)["event"]
        context = event["agent_context"]
        traced[context["session_id"], context.get("parent_session_id")] += 1
        assert event["request"]["input_tokens"] >= 600
        assert event["request"]["output_tokens"] == 20
    assert traced == dict.fromkeys(family.items(), TURNS)


@pytest.mark.parametrize("agent", ["opencode", "claude-code", "codex"])
def test_the_names_of_coding_agents_give_the_same_family(tmp_path, agent):
    family = {"main": None, "sub": "main", "sub-of-sub": "sub"}
    with dynamo(tmp_path, affinity=False) as url, requests.Session() as http:
        gateway = gateway_of_the_page(f"https://{agent}.example", url)
        gateway.mount(http)
        prompt = {"model": "simulated", "max_tokens": 5}
        prompt["messages"] = [{"role": "user", "content": "Hello!"}]
        with ExitStack() as stack:
            for session_id in family:
                stack.enter_context(session_scope(session_id))
                chat = gateway.endpoint("v1/chat/completions")
                http.post(chat, json=prompt, timeout=30).raise_for_status()
        trace = tmp_path / "trace.jsonl"
        wait_until(lambda: trace.exists() and trace.read_text("utf-8").count("\n") == len(family))
    events = [json.loads(line)["event"] for line in trace.read_text("utf-8").splitlines()]
    contexts = [event["agent_context"] for event in events]
    assert family == {
        context["session_id"]: context.get("parent_session_id") for context in contexts
    }
