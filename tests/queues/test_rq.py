"""RQ with a real Redis and real workers, and the lines of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cagent_session import bind_session, session_scope

pytestmark = pytest.mark.filterwarnings("default")
OUTSIDE = (None, None, None)


@pytest.fixture(scope="module")
def jobs(redis):
    os.environ["BROKER_URL"] = redis
    import rq_jobs

    yield rq_jobs
    rq_jobs.queue.connection.close()
    del os.environ["BROKER_URL"]


@pytest.fixture
def work(jobs):
    """Runs a worker until the queue is empty; gives what the jobs gave."""

    def work(enqueued, *command):
        here = Path(__file__).parent
        subprocess.run(
            [sys.executable, *command],
            check=True,
            timeout=60,
            cwd=here,
            env=os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}"},
            stderr=subprocess.DEVNULL,
        )
        return [job.return_value() for job in enqueued]

    return work


@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_bound_and_received_jobs_run_in_their_sessions(jobs, work, kind):
    """The last of them runs one job after the other in one process."""
    from rq import Retry

    queue = jobs.queue
    with session_scope("main"), session_scope("s1"):
        enqueued = [
            queue.enqueue(jobs.read),
            jobs.enqueue(jobs.read),
            jobs.enqueue(jobs.leak),
            queue.enqueue(jobs.read),
            queue.enqueue(jobs.decorated),
            jobs.enqueue(jobs.decorated),
            queue.enqueue(jobs.summarize, "chapter", "s1"),
            queue.enqueue(jobs.summarize, "chapter", "not valid"),
            queue.enqueue(jobs.summarize, "chapter"),
            queue.enqueue(bind_session(jobs.fail_at_first), kind, retry=Retry(max=1)),
        ]
    enqueued.append(jobs.enqueue(jobs.read))
    command = ["-m", "rq.cli", "worker", "--burst", "--worker-class", f"rq.{kind}"]
    assert work(enqueued, *command, "--url", os.environ["BROKER_URL"]) == [
        OUTSIDE,
        ("s1", "main", "main"),
        ("left-open", "s1", "main"),
        OUTSIDE,
        ("job", None, "job"),
        ("job", "s1", "main"),
        ("s1", None, "s1"),
        OUTSIDE,
        OUTSIDE,
        ("s1", "main", "main"),
        OUTSIDE,
    ]


def test_worker_started_inside_a_scope_runs_unbound_jobs_in_it(jobs, work):
    """What the page warns of; bound and received sessions are not affected."""
    with session_scope("s1"):
        bound = jobs.enqueue(jobs.read)
    unbound = jobs.queue.enqueue(jobs.read)
    received = jobs.queue.enqueue(jobs.summarize, "chapter", "s2")
    outside = jobs.queue.enqueue(jobs.summarize, "chapter")
    assert work([unbound, bound, received, outside], "rq_jobs.py") == [
        ("of-the-worker", None, "of-the-worker"),
        ("s1", None, "s1"),
        ("s2", None, "s2"),
        OUTSIDE,
    ]
