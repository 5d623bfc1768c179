"""Dramatiq with a real broker and a real worker, and the middleware of the page."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from support.services import running, wait_until

from cagent_session import no_session, session_scope

pytestmark = pytest.mark.filterwarnings("default")
OUTSIDE = [None, None, None]


@pytest.fixture(scope="module")
def actors(redis):
    os.environ["BROKER_URL"] = redis
    import dramatiq_app

    yield dramatiq_app
    dramatiq_app.broker.close()
    dramatiq_app.redis.close()
    del os.environ["BROKER_URL"]


def worker_of(folder: Path, **environment: str):
    """A worker with one thread, so that what a message leaves behind the next one finds."""
    command = [sys.executable, "-m", "dramatiq", "dramatiq_app", "--processes=1", "--threads=1"]
    here = Path(__file__).parent
    environment |= {"PYTHONWARNINGS": "default", "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    return running(command, folder / "log", cwd=folder, env=os.environ | environment)


@pytest.fixture
def told(actors):
    """So many lines of what the actors have told."""

    def lines(count, process, log):
        wait_until(lambda: actors.redis.llen("told") >= count, process, log)
        found = [json.loads(line) for line in actors.redis.lrange("told", 0, -1)]
        assert len(found) == count
        actors.redis.delete("told")
        return found

    yield lines
    actors.redis.flushall()


def test_middleware_of_the_page_carries_session_parent_and_root(actors, told, tmp_path):
    with worker_of(tmp_path) as worker:
        expected = []
        for number in range(10):
            with session_scope("main"), session_scope(f"s{number}"):
                actors.leak.send(f"leak-{number}")
                expected.append([f"leak-{number}", "left-open", f"s{number}", "main"])
                actors.see.send(f"see-{number}")
                expected.append([f"see-{number}", f"s{number}", "main", "main"])
            actors.see.send(f"outside-{number}")
            expected.append([f"outside-{number}", *OUTSIDE])
        with session_scope("main"), session_scope("s1"):
            actors.see.send_with_options(args=("delayed",), delay=50)
            actors.see_async.send("async")
            actors.fail_at_first.send("retried")
            actors.fail.send("failed")
            actors.publish.send("published")
            (actors.publish.message("piped") | actors.see.message("pipe")).run()
            actors.see.send_with_options(args=("skipped",), max_age=-1)
            with no_session():
                actors.see.send("outside")
        expected += [
            ["delayed", "s1", "main", "main"],
            ["async", "s1", "main", "main"],
            *[["retried", "s1", "main", "main"]] * 3,
            ["failed", "s1", "main", "main"],
            ["published-same", "s1", "main", "main"],
            ["published-inner", "inner", "s1", "main"],
            ["piped-same", "s1", "main", "main"],
            ["piped-inner", "inner", "s1", "main"],
            ["pipe", "s1", "main", "main"],
            ["outside", *OUTSIDE],
        ]
        found = told(len(expected), worker, tmp_path / "log")
        between = set(actors.redis.lrange("between", 0, -1))
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert between == {b'["between", null, null, null]'}


def test_without_the_middleware_a_scope_that_is_left_open_spreads(actors, told, tmp_path):
    with worker_of(tmp_path, CARRY_SESSION="no") as worker:
        actors.see.send("before")
        actors.leak.send("leak")
        for number in range(3):
            with session_scope(f"s{number}"):
                actors.see.send(f"after-{number}")
        found = told(5, worker, tmp_path / "log")
    assert found == [
        ["before", *OUTSIDE],
        ["leak", "left-open", None, "left-open"],
        *[[f"after-{number}", "left-open", None, "left-open"] for number in range(3)],
    ]


def test_malformed_options_of_a_message_are_ignored(actors, told, tmp_path):
    values = ["not valid", ["s1"], 7, None]
    with worker_of(tmp_path) as worker, session_scope("s1"):
        for value in values:
            actors.see.send_with_options(args=("malformed",), session_id=value)
            actors.see.send_with_options(args=("parent",), parent_session_id=value)
        found = told(2 * len(values), worker, tmp_path / "log")
    assert found == [["malformed", *OUTSIDE], ["parent", "s1", None, "s1"]] * len(values)
