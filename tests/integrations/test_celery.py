"""Celery with a real broker and real worker processes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import celery
import celery.exceptions
import celery.result
import pytest
from support.services import running

from cagent_session import current_session_id, session_scope

# One process of pytest-xdist runs them all: workers of Celery take seconds to start.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.xdist_group("celery")]


@pytest.fixture(scope="module")
def tasks(redis):
    os.environ["BROKER_URL"] = redis
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
def worker(request, tasks, tmp_path_factory):
    """A worker process with one child or thread, so that what one leaves behind the next finds."""
    log = tmp_path_factory.mktemp("worker") / "log"
    command = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "--loglevel=INFO"]
    command += [f"--pool={request.param}", "--concurrency=1", "--without-mingle"]
    command += ["--without-gossip"]
    environment = os.environ | {"PYTHONWARNINGS": "default"}  # Celery's own warnings
    with running(command, log, cwd=Path(__file__).parent, env=environment):
        # The first answer says that it is ready.
        assert value_of(tasks.see.delay(), log) is None
        yield log


@pytest.fixture
def value(worker):
    """What a task gave back."""
    return lambda result: value_of(result, worker)


@pytest.fixture
def told(tasks, worker):
    """What the errbacks of a task have told, each of them once: Celery may call them twice."""

    def lines(result, count):
        deadline = time.monotonic() + 60
        while len(found := tasks.app.backend.client.smembers(f"told-{result.id}")) < count:
            assert time.monotonic() < deadline, (found, worker.read_text("utf-8"))
            time.sleep(0.01)
        return sorted(map(json.loads, found))

    return lines


@pytest.fixture
def clean(value, tasks):
    """Afterwards the worker has no session left."""
    yield
    assert [value(tasks.see.delay()) for _ in range(3)] == [None] * 3
    assert set(value(tasks.see_before_tasks.delay())) == {None}


@pytest.mark.usefixtures("clean")
class TestWorker:
    def test_task_runs_in_the_session_that_published_it(self, value, tasks, recording_gateway):
        results = []
        for number in range(20):
            with session_scope(f"s{number}"):
                results.append(tasks.call.delay(recording_gateway.url, f"s{number}"))
        seen = [value(result) for result in results]
        assert seen == [f"s{number}" for number in range(20)]
        arrived = {(request.path, request.session_id) for request in recording_gateway.requests}
        assert arrived == {(f"/s{number}", f"s{number}") for number in range(20)}

    def test_task_published_outside_every_session_runs_in_none(
        self, value, tasks, recording_gateway
    ):
        assert value(tasks.call.delay(recording_gateway.url, "x")) is None
        assert recording_gateway.requests[0].session_id is None

    def test_task_sent_by_name_runs_in_its_session(self, value, tasks):
        with session_scope("s1"):
            assert value(tasks.app.send_task("celery_app.see")) == "s1"
        assert value(tasks.app.send_task("celery_app.see")) is None

    def test_failing_task_runs_in_its_session(self, value, tasks):
        with session_scope("s1"):
            result = tasks.fail.delay()
        with pytest.raises(KeyError, match="s1"):
            value(result)

    def test_retries_stay_in_the_session(self, value, tasks):
        with session_scope("s1"):
            result = tasks.retry.delay()
        assert value(result) == ["s1", 2]
        assert value(tasks.retry.delay()) == [None, 2]

    def test_retry_published_outside_the_session_runs_in_none(self, value, tasks):
        with session_scope("s1"):
            result = tasks.retry_outside.delay()
        assert value(result) is None

    def test_chains_groups_and_chords_stay_in_the_session(self, value, tasks):
        with session_scope("s1"):
            in_a_row = celery.chain(tasks.see.s(), tasks.see.s(), tasks.see.s()).apply_async()
            at_once = celery.group(tasks.see.s() for _ in range(4)).apply_async()
            joined = celery.chord([tasks.see.s(), tasks.see.s()], tasks.collect.s()).apply_async()
        outside = celery.chain(tasks.see.s(), tasks.see.s()).apply_async()
        assert value(in_a_row) == "s1"
        assert value(in_a_row.parent) == "s1"
        assert value(at_once) == ["s1"] * 4
        assert value(joined) == ["s1"] * 3
        assert value(outside) is None

    def test_tasks_published_by_a_task_run_in_its_scopes(self, value, tasks):
        with session_scope("s1"):
            inner = value(tasks.publish.delay(1))
        assert value(celery.result.AsyncResult(inner, app=tasks.app)) == ["inner", "s1", "s1"]

    def test_parent_and_root_are_carried(self, value, tasks):
        with session_scope("main"):
            in_main = tasks.see_family.delay()
            with session_scope("sub"):
                in_a_row = (tasks.see.s() | tasks.see_family.s()).delay()
                with session_scope("leaf"):
                    in_leaf = tasks.see_family.delay()
        with session_scope("s1", parent="named"):
            named = tasks.see_family.delay()
        assert value(in_main) == ["main", None, "main"]
        assert value(in_a_row) == ["sub", "main", "main"]
        assert value(in_leaf) == ["leaf", "sub", "main"]
        assert value(named) == ["s1", "named", "named"]
        assert value(tasks.see_family.delay()) == [None, None, None]

    def test_root_is_carried_over_a_task_that_publishes(self, value, tasks):
        with session_scope("main"), session_scope("sub"), session_scope("leaf"):
            inner = value(tasks.publish.delay(0))
        result = celery.result.AsyncResult(inner, app=tasks.app)
        assert value(result) == ["inner", "leaf", "main"]

    def test_scope_left_open_by_a_task_ends_with_it(self, value, tasks):
        with session_scope("s1"):
            value(tasks.leak.delay())
            with pytest.raises(KeyError):
                value(tasks.leak_and_fail.delay())
        # The fixture looks whether it stayed behind.

    def test_errbacks_run_in_the_session_of_the_task(self, tasks, told):
        with session_scope("main"), session_scope("s1"):
            result = tasks.fail.apply_async(link_error=[tasks.errback.s(), tasks.errback_of.s()])
        outside = tasks.fail.apply_async(link_error=[tasks.errback.s(), tasks.errback_of.s()])
        assert told(result, 2) == [["KeyError", "s1", "main"], ["old", "s1", "main"]]
        assert told(outside, 2) == [["KeyError", None, None], ["old", None, None]]

    def test_errbacks_of_a_chord_with_expired_parts_run_in_its_session(self, tasks, told):
        late = tasks.see.s().set(expires=-1)
        body = tasks.collect.s().on_error(tasks.errback_of.s())
        with session_scope("main"), session_scope("s1"):
            result = celery.chord([late, late], body).apply_async()
        assert told(result, 1) == [["ChordError", "s1", "main"]]

    def test_worker_is_clean_after_an_unregistered_task(self, value, tasks):
        with session_scope("s1"):
            result = tasks.app.send_task("celery_app.unheard_of")
        with pytest.raises(celery.exceptions.NotRegistered):
            value(result)

    def test_malformed_values_in_a_message_are_ignored(self, value, redis):
        from celery import Celery

        with Celery("stranger", broker=redis, backend=redis, set_as_current=False) as stranger:
            for session_id, parent, root, seen in (
                ("not valid", "s0", "r", [None, None, None]),
                (["s1"], None, None, [None, None, None]),
                ("s1", "not valid", None, ["s1", None, "s1"]),
                ("s1", "s0", None, ["s1", "s0", "s0"]),
                ("s1", "s0", "not valid", ["s1", "s0", "s0"]),
                ("s1", "s0", ["r"], ["s1", "s0", "s0"]),
                ("s1", "s0", "r", ["s1", "s0", "r"]),
                ("s1", None, "r", ["s1", None, "r"]),
            ):
                headers = {"X-Cagent-Session-Id": session_id}
                headers["X-Cagent-Parent-Session-Id"] = parent
                headers["X-Cagent-Root-Session-Id"] = root
                result = stranger.send_task("celery_app.see_family", headers=headers)
                assert value(result) == seen


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("worker", ["prefork"], indirect=True)
class TestLostProcess:
    """What has to be done for its task is done elsewhere, in the task's session."""

    @pytest.mark.parametrize(
        ("name", "error"),
        [
            ("hang", "TimeLimitExceeded"),
            ("lost", "WorkerLostError"),
            ("lost_late", "WorkerLostError"),
        ],
    )
    def test_errbacks_of_a_lost_process_run_in_the_session_of_its_task(
        self, tasks, told, name, error
    ):
        task = getattr(tasks, name)
        with session_scope("main"), session_scope("s1"):
            result = task.apply_async(link_error=[tasks.errback.s(), tasks.errback_of.s()])
        assert told(result, 2) == [[error, "s1", "main"], ["old", "s1", "main"]]

    def test_on_failure_of_a_lost_process_runs_in_the_session_of_its_task(self, tasks, told):
        with session_scope("main"), session_scope("s1"):
            result = tasks.telling.delay()
        assert told(result, 1) == [["on_failure", "s1", "main"]]

    @pytest.mark.parametrize("name", ["requeued", "retried"])
    def test_task_of_a_lost_process_that_runs_again_is_in_its_session(self, value, tasks, name):
        with session_scope("main"), session_scope("s1"):
            result = getattr(tasks, name).delay(f"runs-{name}")
        assert value(result) == ["s1", "main"]
        assert tasks.app.backend.client.get(f"runs-{name}") == b"2"


class TestEager:
    @pytest.fixture(autouse=True)
    def _eager(self, tasks):
        tasks.app.conf.task_always_eager = True
        yield
        tasks.app.conf.task_always_eager = False

    def test_eager_task_runs_in_the_session_of_the_caller(self, tasks):
        with session_scope("s1"):
            assert tasks.see.delay().get() == "s1"
            tasks.leak.delay()
            assert current_session_id() == "s1"
            assert tasks.retry.delay().get() == ("s1", 2)
            with pytest.raises(KeyError, match="s1"):
                tasks.fail.delay().get()
            assert current_session_id() == "s1"
        assert tasks.see.delay().get() is None

    def test_eager_task_knows_all_ancestors(self, tasks):
        with session_scope("main"), session_scope("sub"), session_scope("leaf"):
            assert tasks.see_family.delay().get() == ("leaf", "sub", "main")
            with session_scope("deep"):
                assert tasks.parent_inside.delay("sub").get() == "main"


def test_messages_of_other_apps_carry_no_session(tasks, monkeypatch):
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
