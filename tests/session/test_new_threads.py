"""New threads start without a session, also where Python hands them the context of their starter.

It does so on free-threaded builds from 3.14 on, and elsewhere with -X thread_inherit_context=1.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cagent_session import (
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    parent_session_id,
    session_scope,
)

inherits = bool(getattr(sys.flags, "thread_inherit_context", False))
other = contextvars.ContextVar("other", default="unset")


def in_new_thread(fn, **options):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(fn()), **options)
    thread.start()
    thread.join()
    return seen[0]


def test_thread_starts_without_a_session():
    with session_scope("a"):
        assert in_new_thread(current_session_id) is None
        assert current_session_id() == "a"


def test_other_variables_are_as_python_hands_them_on():
    other.set("here")
    with session_scope("a"):
        assert in_new_thread(other.get) == ("here" if inherits else "unset")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="threads take no context")
def test_explicit_context_is_left_alone():
    with session_scope("a"):
        context = contextvars.copy_context()
        assert in_new_thread(current_session_id, context=context) == "a"
        assert in_new_thread(current_session_id, context=contextvars.Context()) is None


def test_scope_opened_in_a_thread_has_no_parent():
    def child():
        with session_scope("child"):
            return parent_session_id()

    with session_scope("a"):
        assert in_new_thread(child) is None


def test_bound_function_keeps_its_session_in_a_thread():
    with session_scope("a"):
        assert in_new_thread(bind_session(current_session_id)) == "a"


def test_timer_fires_without_a_session():
    seen = []
    with session_scope("a"):
        timer = threading.Timer(0.01, lambda: seen.append(current_session_id()))
        timer.start()
    timer.join()
    assert seen == [None]


def test_subclass_with_a_start_of_its_own():
    class Worker(threading.Thread):
        def start(self):
            super().start()
            started.append(current_session_id())

        def run(self):
            seen.append(current_session_id())

    started, seen = [], []
    with session_scope("a"):
        worker = Worker()
        worker.start()
        worker.join()
    assert (started, seen) == (["a"], [None])


def test_session_is_back_after_a_thread_that_cannot_be_started():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    with session_scope("a"):
        with pytest.raises(RuntimeError, match="threads can only be started once"):
            thread.start()
        assert current_session_id() == "a"


def test_worker_of_a_pool_does_not_keep_the_session_in_which_the_pool_grew():
    with ThreadPoolExecutor(1, initializer=lambda: seen.append(current_session_id())) as pool:
        seen = []
        with session_scope("a"):
            pool.submit(int).result()
        with session_scope("b"):
            assert pool.submit(current_session_id).result() is None
            assert pool.submit(bind_session(current_session_id)).result() == "b"
        assert pool.submit(current_session_id).result() is None
    assert seen == [None]


def test_callback_in_a_worker_runs_without_a_session():
    seen = []
    with SessionThreadPoolExecutor(1) as pool:
        with session_scope("a"):
            pool.submit(int).result()
        with session_scope("b"):
            gate = threading.Event()
            future = pool.submit(gate.wait, 10)
            future.add_done_callback(lambda _: seen.append(current_session_id()))
            gate.set()
    assert seen == [None]


def test_executor_of_an_event_loop():
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        for session_id in ("a", "b"):
            with session_scope(session_id):
                seen.append(await loop.run_in_executor(None, current_session_id))
                seen.append(await asyncio.to_thread(current_session_id))
        return seen

    assert asyncio.run(main()) == [None, "a", None, "b"]


def test_daemon_that_is_started_lazily_serves_every_session_without_one():
    def serve():
        while (item := items.get()) is not None:
            seen.append((item, current_session_id()))

    items, seen = queue.Queue(), []
    with session_scope("a"):
        daemon = threading.Thread(target=serve, daemon=True)
        daemon.start()
        items.put(1)
    with session_scope("b"):
        items.put(2)
    items.put(None)
    daemon.join()
    assert seen == [(1, None), (2, None)]


def test_thread_started_in_the_body_of_a_generator():
    @session_scope("a")
    def body():
        yield in_new_thread(current_session_id), current_session_id()

    assert list(body()) == [(None, "a")]


def test_thread_start_is_patched_only_where_threads_inherit():
    is_patched = hasattr(threading.Thread.start, "_cagent_session_patch")
    assert is_patched is inherits


@pytest.mark.parametrize("theirs_first", [True, False])
def test_next_to_opentelemetry_whichever_is_first(theirs_first):
    pytest.importorskip("opentelemetry.instrumentation.threading")
    check = """if True:
        import sys, threading
        from opentelemetry import trace
        from opentelemetry.instrumentation.threading import ThreadingInstrumentor
        from opentelemetry.sdk.trace import TracerProvider

        def see(has_span):
            seen = []
            def target():
                seen.append(current_session_id())
                seen.append(trace.get_current_span() is span)
            with session_scope("a"), tracer.start_as_current_span("x") as span:
                thread = threading.Thread(target=target)
                thread.start()
                thread.join()
                assert current_session_id() == "a"
            assert seen[0] is None, seen
            assert seen[1] or not has_span, seen

        trace.set_tracer_provider(TracerProvider())
        tracer = trace.get_tracer("test")
        theirs = ThreadingInstrumentor()
        if sys.argv[1] == "True":
            theirs.instrument()
        from cagent_session import current_session_id, session_scope
        if sys.argv[1] == "False":
            theirs.instrument()
        see(True)
        theirs.uninstrument()
        see(False)
    """
    options = [f"-X{name}={value}" for name, value in sys._xoptions.items()]
    command = [sys.executable, *options, "-c", check, str(theirs_first)]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python has no such option")
@pytest.mark.skipif(inherits, reason="this run has the option")
def test_all_of_this_where_threads_inherit():
    """The tests of this file once more, by an interpreter with the option."""
    command = [sys.executable, "-Xthread_inherit_context=1", "-m", "pytest", "-q", __file__]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout
