"""Engines that exist: bind_session is enough for Dask, joblib and requests-futures."""

from __future__ import annotations

import joblib
import pytest
import requests
from requests_futures.sessions import FuturesSession
from support import clusters

from cagent_session import (
    Gateway,
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    no_session,
    parent_session_id,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"


@pytest.fixture(autouse=True)
def _their_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warnings of an engine's processes are not about this package."""
    monkeypatch.setenv("PYTHONWARNINGS", "default")


def call(url: str, task: str) -> tuple[str, str | None]:
    """One task: a real request through the gateway, which is told what it should be billed to."""
    with requests.Session() as http:
        Gateway(url, forward=FORWARD).mount(http)
        http.get(f"{url}/{task}").raise_for_status()
    return task, current_session_id()


def family(task: str) -> tuple[str, str | None, str | None]:
    return task, current_session_id(), parent_session_id()


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


@pytest.fixture(scope="module")
def dask():
    """Dask, with two worker processes."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.filterwarnings("default")
class TestDask:
    def test_thousands_of_tasks_run_in_their_sessions(self, dask, recording_gateway):
        """Thousands of small tasks of many sessions and of none."""
        url = recording_gateway.url
        futures = []
        for number in range(20):
            with session_scope(f"s{number}"):
                tasks = [f"s{number}/{task}" for task in range(100)]
                futures += dask.map(bind_session(call), [url] * 100, tasks, pure=False)
        futures += dask.map(call, [url] * 100, [f"None/{task}" for task in range(100)])
        results = dask.gather(futures)
        assert set(dask.run(current_session_id).values()) == {None}
        assert all(task.split("/")[0] == str(session_id) for task, session_id in results)
        check(recording_gateway, 2100)

    def test_two_sessions_never_share_one_result(self, dask):
        """As two calls of a pure function with the same arguments do."""
        futures = []
        for scope in (
            session_scope("s1"),
            session_scope("s2"),
            session_scope("s1"),
            session_scope("s1", parent="main"),
            no_session(),
        ):
            with scope:
                futures.append(dask.submit(bind_session(family), "same", pure=True))
        assert futures[0].key == futures[2].key
        assert dask.gather(futures) == [
            ("same", "s1", None),
            ("same", "s2", None),
            ("same", "s1", None),
            ("same", "s1", "main"),
            ("same", None, None),
        ]


@pytest.mark.filterwarnings("default")
def test_joblib_processes_run_in_the_bound_session(recording_gateway):
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


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("loky", clusters.EVERYWHERE),
        ("dask", clusters.EVERYWHERE | clusters.COROUTINES | clusters.ACTORS),
    ],
)
def test_functions_decorated_in_main_run_in_their_sessions(engine, expected):
    assert clusters.run_in_main(engine) == expected


def test_requests_futures_send_in_the_session_that_submitted(recording_gateway):
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
