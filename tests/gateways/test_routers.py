"""Inference routers: the session's header keeps a session on the worker with its KV cache."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager

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

from cagent_session import Gateway, session_scope
from cagent_session.testing import RecordingGateway

TURNS = 5

# The program, the address that the page gives it, and its policy that knows sessions.
VLLM = ("vllm-router", "http://vllm-router.example:8080", "consistent_hash")
SGLANG = ("smg launch", "http://sglang-gateway.example:8080", "manual")
ENVOY = ("envoy", "http://envoy.example:8080", "RING_HASH")
ROUTERS = [pytest.param(*router, id=router[0].split()[0]) for router in (VLLM, SGLANG, ENVOY)]


@contextmanager
def router(program: str, folder, **replaced: str):
    """The router as the page starts it, over four workers; gives its URL and the workers."""
    port = free_port()
    with ExitStack() as stack:
        workers = [stack.enter_context(RecordingGateway()) for _ in range(4)]
        replaced |= {"8080": str(port)}
        for number, worker in enumerate(workers, 1):
            host, _, worker_port = worker.url.removeprefix("http://").partition(":")
            replaced[f"http://worker-{number}.example:8000"] = worker.url
            replaced[f"worker-{number}.example, port_value: 8000"] = (
                f"{host}, port_value: {worker_port}"
            )

        def here(text: str) -> str:
            for on_paper, at_hand in replaced.items():
                text = text.replace(on_paper, at_hand)
            return text

        command = [here(argument) for argument in command_of_the_page(f"{program} ")]
        url = f"http://127.0.0.1:{port}"
        if program == "envoy":
            configuration = here(from_the_page("yaml", "lb_policy"))
            (folder / "envoy.yaml").write_text(configuration, encoding="utf-8")
            command += ["--disable-hot-restart", "--file-flush-interval-msec", "100"]
        else:
            command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        ready = (url, 400) if program == "envoy" else (f"{url}/health", 200)
        stack.enter_context(running(command, lambda: answers(*ready), folder))
        yield url, workers


def converse(gateway: Gateway, sessions: list[str]) -> None:
    """All the sessions, their turns interleaved."""
    with requests.Session() as http:
        gateway.mount(http)
        for turn in range(TURNS):
            for session_id in sessions:
                content = f"{turn} {session_id}"
                prompt = {"model": "m", "messages": [{"role": "user", "content": content}]}
                with session_scope(session_id):
                    url = gateway.endpoint("v1/chat/completions")
                    http.post(url, json=prompt, timeout=30).raise_for_status()


def workers_of(sessions: list[str], workers: list[RecordingGateway]) -> list[set[int]]:
    """Of each session the workers that served its turns."""
    served = defaultdict(list)
    for number, worker in enumerate(workers):
        for request in worker.requests:
            if request.method == "POST":
                _, _, session_id = request.json["messages"][0]["content"].partition(" ")
                served[session_id].append(number)
    assert {session_id: len(turns) for session_id, turns in served.items()} == dict.fromkeys(
        sessions, TURNS
    )
    return [set(served[session_id]) for session_id in sessions]


@pytest.mark.parametrize("sessions", [UUIDS, ODD], ids=["uuids", "odd"])
@pytest.mark.parametrize(("program", "address", "policy"), ROUTERS)
def test_every_session_stays_on_one_worker(tmp_path, program, address, policy, sessions):
    with router(program, tmp_path) as (url, workers):
        gateway = gateway_of_the_page(address, url)
        converse(gateway, sessions)
    homes = workers_of(sessions, workers)
    assert [len(home) for home in homes] == [1] * 12
    assert len(set.union(*homes)) > 1
    for worker in workers:
        for request in worker.requests:
            assert not [name for name in request.headers if name.lower().startswith("x-cagent-")]


@pytest.mark.parametrize(("program", "address", "policy"), ROUTERS)
def test_a_random_policy_scatters_them(tmp_path, program, address, policy):
    chance = "RANDOM" if policy.isupper() else "random"
    with router(program, tmp_path, **{policy: chance}) as (url, workers):
        converse(gateway_of_the_page(address, url), UUIDS)
    assert scattered(workers_of(UUIDS, workers)) > 6


def test_the_vllm_router_takes_sessions_under_another_name_for_one(tmp_path):
    with router("vllm-router", tmp_path) as (url, workers):
        converse(Gateway(url, forward="http://worker.example/v1"), UUIDS)
    assert len(set.union(*workers_of(UUIDS, workers))) == 1


def test_the_sglang_gateway_scatters_sessions_under_another_name(tmp_path):
    with router("smg launch", tmp_path) as (url, workers):
        converse(Gateway(url, forward="http://worker.example/v1"), UUIDS)
    assert scattered(workers_of(UUIDS, workers)) > 6


def test_envoy_limits_a_session_and_refuses_a_call_without_one(tmp_path):
    with router("envoy", tmp_path) as (url, workers), requests.Session() as http:
        gateway = gateway_of_the_page(ENVOY[1], url)
        gateway.mount(http)
        prompt = {"model": "m", "messages": []}

        def call() -> requests.Response:
            return http.post(gateway.endpoint("v1/chat/completions"), json=prompt, timeout=30)

        began = time.monotonic()
        with session_scope("greedy"):
            greedy = [call() for _ in range(75)]
        seconds = time.monotonic() - began
        with session_scope("modest"):
            assert call().status_code == 200
        assert call().status_code == 400

        statuses = [answer.status_code for answer in greedy]
        assert statuses[:60] == [200] * 60
        # It lets one more pass in every second.
        assert statuses[60:].count(200) <= seconds + 1
        assert set(statuses) == {200, 429}
        for answer in greedy:
            assert answer.headers.get("Retry-After") == (None if answer.ok else "1")
        served = statuses.count(200) + 1
        assert sum(len(worker.requests) for worker in workers) == served

        (log,) = tmp_path.glob("output-*.log")
        wait_until(lambda: log.read_text(encoding="utf-8").count('"greedy"') == 75)
        lines = [
            json.loads(line)
            for line in log.read_text(encoding="utf-8").splitlines()
            if '"greedy"' in line
        ]
    (home,) = {line["worker"] for line in lines if line["status"] == 200}
    assert f"http://{home}" in [worker.url for worker in workers]


def scattered(homes: list[set[int]]) -> int:
    return len([home for home in homes if len(home) > 1])
