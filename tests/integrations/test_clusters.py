"""Engines that exist: bind_session is enough for Dask, joblib and requests-futures."""

from __future__ import annotations

import joblib
import pytest
import requests
from requests_futures.sessions import FuturesSession

from cagent_session import (
    Gateway,
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"


@pytest.fixture(autouse=True)
def _their_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker processes of an engine warn of is the engine's affair."""
    monkeypatch.setenv("PYTHONWARNINGS", "default")


def call(url: str, task: str) -> tuple[str, str | None]:
    """One task: a real request through the gateway, which is told what it should be billed to."""
    with requests.Session() as http:
        Gateway(url, forward=FORWARD).mount(http)
        http.get(f"{url}/{task}").raise_for_status()
    return task, current_session_id()


def check(recording_gateway, expected: int) -> None:
    """Every request names in its path the session that it was meant for."""
    arrived = recording_gateway.requests
    assert len(arrived) == expected
    wrong = [
        (request.path, request.session_id)
        for request in arrived
        if request.path.split("/")[1] != str(request.session_id)
    ]
    assert wrong == []


@pytest.mark.filterwarnings("default")
def test_dask(recording_gateway):
    """Thousands of small tasks of many sessions and of none, on two worker processes."""
    from distributed import Client, LocalCluster

    url = recording_gateway.url
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        futures = []
        for number in range(20):
            with session_scope(f"s{number}"):
                tasks = [f"s{number}/{task}" for task in range(100)]
                futures += client.map(bind_session(call), [url] * 100, tasks, pure=False)
        futures += client.map(call, [url] * 100, [f"None/{task}" for task in range(100)])
        results = client.gather(futures)
        assert client.run(current_session_id) == dict.fromkeys(cluster.scheduler_info["workers"])
    assert all(task.split("/")[0] == str(session_id) for task, session_id in results)
    check(recording_gateway, 2100)


@pytest.mark.filterwarnings("default")
def test_joblib(recording_gateway):
    url = recording_gateway.url
    with joblib.parallel_config("loky", n_jobs=2):
        for number in range(3):
            with session_scope(f"s{number}"):
                bound = bind_session(call)
            tasks = [f"s{number}/{task}" for task in range(20)]
            joblib.Parallel()(joblib.delayed(bound)(url, task) for task in tasks)
        joblib.Parallel()(joblib.delayed(call)(url, f"None/{task}") for task in range(20))
    check(recording_gateway, 80)
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)


def test_requests_futures(recording_gateway):
    gateway = Gateway(recording_gateway.url, forward=FORWARD)
    with SessionThreadPoolExecutor(4) as pool, FuturesSession(executor=pool) as http:
        gateway.mount(http)
        futures = []
        for number in range(40):
            with session_scope(f"s{number}"):
                futures.append(http.get(gateway.endpoint(f"s{number}/x")))
        for future in futures:
            assert future.result().status_code == 200
    check(recording_gateway, 40)
