"""Celery with a real broker and real worker processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cagent_session import current_session_id, session_scope

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """A Redis of our own, without persistence."""
    executable = shutil.which("redis-server")
    if executable is None:
        assert "CI" not in os.environ, "redis-server is missing"
        pytest.skip("redis-server is missing; on Debian: apt-get install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = [executable, "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
        process.terminate()


@pytest.fixture(scope="module")
def tasks(broker):
    os.environ["BROKER_URL"] = broker
    import celery_app

    yield celery_app
    celery_app.app.close()
    del os.environ["BROKER_URL"]


def value_of(result, log: Path):
    # Asked for again and again: the broker tells of a result only once, and who was busy then
    # would wait for ever.
    deadline = time.monotonic() + 60
    while not result.ready():
        assert time.monotonic() < deadline, log.read_text("utf-8") if log.exists() else "no log"
        time.sleep(0.01)
    return result.get(timeout=5)


@pytest.fixture(scope="module", params=["prefork", "threads"])
def worker(request, tasks, broker, tmp_path_factory):
    """A worker process with one child or thread, so that what one leaves behind the next finds."""
    log = tmp_path_factory.mktemp("worker") / "log"
    command = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "--loglevel=INFO"]
    command += [f"--pool={request.param}", "--concurrency=1", "--without-mingle"]
    command += ["--without-gossip", f"--logfile={log}"]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Its warnings are Celery's affair.
        env=os.environ | {"PYTHONWARNINGS": "default"},
    ) as process:
        try:
            # The first answer says that it is ready.
            assert value_of(tasks.see.delay(), log) is None
            yield log
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def value(worker):
    """What a task gave back."""
    return lambda result: value_of(result, worker)


@pytest.fixture
def clean(value, tasks):
    """Afterwards the worker has no session left."""
    yield
    assert [value(tasks.see.delay()) for _ in range(3)] == [None] * 3


@pytest.mark.usefixtures("clean")
class TestAWorker:
    def test_runs_a_task_in_the_session_that_published_it(self, value, tasks, recording_gateway):
        results = []
        for number in range(20):
            with session_scope(f"s{number}"):
                results.append(tasks.call.delay(recording_gateway.url, f"s{number}"))
        seen = [value(result) for result in results]
        assert seen == [f"s{number}" for number in range(20)]
        arrived = {(request.path, request.session_id) for request in recording_gateway.requests}
        assert arrived == {(f"/s{number}", f"s{number}") for number in range(20)}

    def test_runs_a_task_from_outside_in_none(self, value, tasks, recording_gateway):
        assert value(tasks.call.delay(recording_gateway.url, "x")) is None
        assert recording_gateway.requests[0].session_id is None

    def test_by_name(self, value, tasks):
        with session_scope("s1"):
            assert value(tasks.app.send_task("celery_app.see")) == "s1"
        assert value(tasks.app.send_task("celery_app.see")) is None

    def test_that_fails(self, value, tasks):
        with session_scope("s1"):
            result = tasks.fail.delay()
        with pytest.raises(KeyError, match="s1"):
            value(result)

    def test_that_is_retried(self, value, tasks):
        with session_scope("s1"):
            result = tasks.retry.delay()
        assert value(result) == ["s1", 2]
        assert value(tasks.retry.delay()) == [None, 2]

    def test_that_is_retried_outside_its_session(self, value, tasks):
        with session_scope("s1"):
            result = tasks.retry_outside.delay()
        assert value(result) is None

    def test_chains_groups_and_chords(self, value, tasks):
        from celery import chain, chord, group

        with session_scope("s1"):
            in_a_row = chain(tasks.see.s(), tasks.see.s(), tasks.see.s()).apply_async()
            at_once = group(tasks.see.s() for _ in range(4)).apply_async()
            joined = chord([tasks.see.s(), tasks.see.s()], tasks.collect.s()).apply_async()
        outside = chain(tasks.see.s(), tasks.see.s()).apply_async()
        assert value(in_a_row) == "s1"
        assert value(in_a_row.parent) == "s1"
        assert value(at_once) == ["s1"] * 4
        assert value(joined) == ["s1"] * 3
        assert value(outside) is None

    def test_that_publishes(self, value, tasks):
        from celery.result import AsyncResult

        with session_scope("s1"):
            inner = value(tasks.publish.delay(1))
        assert value(AsyncResult(inner, app=tasks.app)) == "inner"

    def test_that_leaks(self, value, tasks):
        with session_scope("s1"):
            value(tasks.leak.delay())
        # The fixture looks whether it stayed behind.

    def test_a_malformed_session_in_a_message(self, value, broker):
        from celery import Celery

        with Celery("stranger", broker=broker, backend=broker, set_as_current=False) as stranger:
            for session_id, seen in (("not valid", None), ("s1", "s1")):
                headers = {"X-Cagent-Session-Id": session_id}
                result = stranger.send_task("celery_app.see", headers=headers)
                assert value(result) == seen


class TestEager:
    @pytest.fixture(autouse=True)
    def _eager(self, tasks):
        tasks.app.conf.task_always_eager = True
        yield
        tasks.app.conf.task_always_eager = False

    def test_runs_in_the_session_of_the_caller(self, tasks):
        with session_scope("s1"):
            assert tasks.see.delay().get() == "s1"
            tasks.leak.delay()
            assert current_session_id() == "s1"
            assert tasks.retry.delay().get() == ("s1", 2)
            with pytest.raises(KeyError, match="s1"):
                tasks.fail.delay().get()
            assert current_session_id() == "s1"
        assert tasks.see.delay().get() is None


def test_other_apps_are_left_alone(tasks, monkeypatch):
    from celery import Celery, signals

    from cagent_session.integrations import celery

    sent = []

    def look(headers, **_):
        sent.append(headers)

    signals.before_task_publish.connect(look)
    other = Celery("other", broker="memory://")
    elsewhere = other.task(name="other.see")(current_session_id)
    with other, session_scope("s1"):
        elsewhere.delay()
        celery.carry_session()
        try:
            elsewhere.delay()
        finally:
            signals.before_task_publish.disconnect(dispatch_uid=celery._on_publish)
            monkeypatch.setattr(celery, "_everywhere", False)
        elsewhere.delay()
        other.conf.task_always_eager = True
        assert elsewhere.delay().get() == "s1"
    signals.before_task_publish.disconnect(look)
    # Looked at last, when every receiver of the signal has had its turn.
    assert [headers.get("X-Cagent-Session-Id") for headers in sent] == [None, "s1", None]
