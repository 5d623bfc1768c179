"""Inference routers: the session's header keeps a session on the worker with its KV cache."""

from __future__ import annotations

import json
import shlex
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager

import pytest
import requests
from running import (
    ODD,
    UUIDS,
    Provider,
    answers,
    command_of_the_page,
    free_port,
    from_the_page,
    gateway_of_the_page,
    probe,
    refused,
    running,
    wait_until,
)

from cagent_session import Gateway, session_scope
from cagent_session.testing import RecordingGateway

TURNS = 5

# The program, the address that the page gives it, and what makes of its policy a random one.
VLLM = ("vllm-router", "http://vllm-router.example:8080", {"consistent_hash": "random"})
SGLANG = ("smg launch", "http://sglang-gateway.example:8080", {"manual": "random"})
ENVOY = ("envoy", "http://envoy.example:8080", {"RING_HASH": "RANDOM"})
CADDY = ("caddy run", "http://caddy.example:8080", {"header X-Session-ID\n": "random\n"})
VARNISH = (
    "varnishd",
    "http://varnish.example:8080",
    {"directors.hash": "directors.random", "backend(req.http.X-Session-ID)": "backend()"},
)


def named(*routers: tuple[str, str, dict]) -> list:
    return [pytest.param(*router, id=router[0].split()[0]) for router in routers]


ROUTERS = named(VLLM, SGLANG, ENVOY, CADDY, VARNISH)
# The file that each reads, and its language on the page.
CONFIGURATIONS = {
    "envoy": ("envoy.yaml", "yaml"),
    "caddy run": ("Caddyfile", "caddy"),
    "varnishd": ("gateway.vcl", "vcl"),
}


@contextmanager
def router(program: str, folder, *, workers=(), **replaced: str):
    """The router as the page starts it, over four workers; gives its URL and the workers."""
    port = free_port()
    with ExitStack() as stack:
        workers = workers or [stack.enter_context(RecordingGateway()) for _ in range(4)]
        replaced |= {"8080": str(port), "-n gateway": f"-n {folder}/varnish -j none"}
        replaced["$PWD"] = str(folder)
        for number, worker in enumerate(workers, 1):
            url = getattr(worker, "url", None) or worker.origin
            host, _, worker_port = url.removeprefix("http://").partition(":")
            name = f"worker-{number}.example"
            replaced |= {
                f"http://{name}:8000": url,
                f"{name}, port_value: 8000": f"{host}, port_value: {worker_port}",
                f'"{name}"; .port = "8000"': f'"{host}"; .port = "{worker_port}"',
            }

        def here(text: str) -> str:
            for on_paper, at_hand in replaced.items():
                text = text.replace(on_paper, at_hand)
            return text

        command = shlex.split(here(shlex.join(command_of_the_page(f"{program} "))))
        url = f"http://127.0.0.1:{port}"
        ready = (f"{url}/health", 200)
        if program in CONFIGURATIONS:
            name, language = CONFIGURATIONS[program]
            configuration = here(from_the_page(language, "worker-4.example"))
            (folder / name).write_text(configuration, encoding="utf-8")
            ready = (url, 400)
        else:
            command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        if program == "envoy":
            command += ["--disable-hot-restart", "--file-flush-interval-msec", "100"]
        environment = {"HOME": str(folder)}  # where Caddy would keep certificates
        running_here = running(command, lambda: answers(*ready), folder, environment=environment)
        stack.enter_context(running_here)
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
@pytest.mark.parametrize(("program", "address", "at_random"), ROUTERS)
def test_every_session_stays_on_one_worker(tmp_path, program, address, at_random, sessions):
    with router(program, tmp_path) as (url, workers):
        gateway = gateway_of_the_page(address, url)
        converse(gateway, sessions)
    homes = workers_of(sessions, workers)
    assert [len(home) for home in homes] == [1] * 12
    assert len(set.union(*homes)) > 1
    for worker in workers:
        for request in worker.requests:
            assert not [name for name in request.headers if name.lower().startswith("x-cagent-")]


@pytest.mark.parametrize(("program", "address", "at_random"), ROUTERS)
def test_a_random_policy_scatters_them(tmp_path, program, address, at_random):
    with router(program, tmp_path, **at_random) as (url, workers):
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
        assert "X-Session-ID" in refused(call(), 400)

        statuses = [answer.status_code for answer in greedy]
        assert statuses[:60] == [200] * 60
        # It lets one more pass in every second.
        assert statuses[60:].count(200) <= seconds + 1
        assert set(statuses) == {200, 429}
        for answer in greedy:
            assert answer.headers.get("Retry-After") == (None if answer.ok else "1")
            assert answer.ok or refused(answer, 429)
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


@pytest.mark.parametrize("session_id", [None, "", "has a space", "caf\xe9"])
@pytest.mark.parametrize(("program", "address", "at_random"), named(ENVOY, CADDY, VARNISH))
def test_a_call_needs_a_session(tmp_path, program, address, at_random, session_id):
    given = {} if session_id is None else {"X-Session-ID": session_id.encode("latin-1")}
    with router(program, tmp_path) as (url, workers):
        answer = requests.post(f"{url}/v1/chat/completions", headers=given, json={}, timeout=30)
    assert "X-Session-ID" in refused(answer, 400)
    assert not any(worker.requests for worker in workers)


@pytest.mark.parametrize(("program", "address", "at_random"), named(ENVOY, CADDY, VARNISH))
def test_the_probe_of_the_page_is_stamped_and_served(tmp_path, program, address, at_random):
    with router(program, tmp_path) as (url, _):
        probed = probe("--session-header", url)
    assert probed.returncode == 0, probed.stderr
    assert "> X-Session-ID: " in probed.stdout
    assert "stamped with session" in probed.stdout.splitlines()[-1]


@pytest.mark.parametrize(("program", "address", "at_random"), named(CADDY, VARNISH))
def test_the_worker_does_not_get_the_session(tmp_path, program, address, at_random):
    with router(program, tmp_path) as (url, workers):
        converse(gateway_of_the_page(address, url), UUIDS)
    arrived = [request for worker in workers for request in worker.requests]
    assert len(arrived) == TURNS * len(UUIDS)
    for request in arrived:
        assert "X-Session-ID" not in request.headers


@pytest.mark.parametrize(("program", "address", "at_random"), named(ENVOY, CADDY, VARNISH))
def test_an_event_arrives_before_the_next_is_sent(tmp_path, program, address, at_random):
    with ExitStack() as stack:
        workers = [stack.enter_context(Provider()) for _ in range(4)]
        url, _ = stack.enter_context(router(program, tmp_path, workers=workers))
        http = stack.enter_context(requests.Session())
        gateway = gateway_of_the_page(address, url)
        gateway.mount(http)
        prompt = {"content": "x" * 200_000, "framing": "chunked"}
        with session_scope("s1"):
            url = gateway.endpoint("v1/stream")
            answer = http.post(url, json=prompt, stream=True, timeout=30)
        lines = answer.iter_lines(chunk_size=1)
        assert next(lines) == b"data: first"
        for worker in workers:
            worker.first_arrived.set()
        assert list(lines) == [b"", b"data: last", b""]
    (worker,) = [worker for worker in workers if worker.arrived]
    assert len(worker.arrived[0].body) > 200_000
    assert not worker.waited_in_vain


def check_log(log, sessions: list[str]) -> None:
    """Check that a log has a line of JSON for each turn of each session, with its status."""
    calls: list[tuple[str, int]] = []

    def written() -> bool:
        lines = log.read_text(encoding="utf-8").splitlines()
        parsed = [json.loads(line) for line in lines if '"session_id"' in line]
        calls[:] = [(line["session_id"], line["status"]) for line in parsed if line["session_id"]]
        return len(calls) >= TURNS * len(sessions)

    wait_until(written)
    assert sorted(calls) == sorted((session_id, 200) for session_id in sessions * TURNS)


def test_caddy_logs_the_session_of_each_call(tmp_path):
    with router("caddy run", tmp_path) as (url, _):
        converse(gateway_of_the_page(CADDY[1], url), ODD)
        (log,) = tmp_path.glob("output-*.log")
        check_log(log, ODD)


def test_varnish_logs_the_session_of_each_call(tmp_path):
    log = tmp_path / "calls.log"
    with router("varnishd", tmp_path) as (url, _):
        command = command_of_the_page("varnishncsa ")
        command[command.index("-n") + 1] = str(tmp_path / "varnish")

        def logs_calls() -> bool:
            return answers(url, 400) and log.exists() and bool(log.stat().st_size)

        with running([*command, "-w", str(log)], logs_calls, tmp_path):
            converse(gateway_of_the_page(VARNISH[1], url), ODD)
            check_log(log, ODD)


def scattered(homes: list[set[int]]) -> int:
    return len([home for home in homes if len(home) > 1])
