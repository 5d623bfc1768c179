"""integrations.threads.carry_session(): thread pools of other code, in the submitter's session."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import Pool, ThreadPool

import joblib
import pytest
from asgiref.sync import markcoroutinefunction
from support.lifetime import Item, Watch

from cagent_session import (
    SessionThreadPoolExecutor,
    _patching,
    bind_session,
    current_session_id,
    no_session,
    parent_session_id,
    root_session_id,
    session_scope,
)
from cagent_session._session.scopes import current_lineage
from cagent_session.integrations.threads import carry_session


@pytest.fixture
def carried():
    with carry_session():
        yield


@pytest.fixture
def pool():
    """A pool whose only worker was started in another session."""
    with ThreadPoolExecutor(1) as pool:
        with session_scope("starter"):
            pool.submit(int).result()
        yield pool


def see(*arguments):
    return (current_session_id(), *arguments)


def family():
    return current_session_id(), parent_session_id(), root_session_id()


@pytest.mark.usefixtures("carried")
class TestThreadPoolExecutor:
    def test_submit_runs_in_the_session_of_the_caller(self, pool):
        with session_scope("a"):
            one = pool.submit(see, 1)
        with session_scope("b"):
            two = pool.submit(see)
        assert one.result() == ("a", 1)
        assert two.result() == ("b",)

    def test_call_submitted_outside_every_session_runs_in_none(self, pool):
        assert pool.submit(see).result() == (None,)

    def test_no_session_is_carried_as_deliberate(self, pool):
        assert not pool.submit(current_lineage).result().is_deliberate
        with no_session():
            deliberate = pool.submit(current_lineage)
        assert deliberate.result().is_deliberate

    def test_parent_and_root_come_along(self, pool):
        with session_scope("main"), session_scope("sub"), session_scope("leaf"):
            assert pool.submit(family).result() == ("leaf", "sub", "main")

    def test_map_binds_at_the_call(self, pool):
        with session_scope("a"):
            results = pool.map(see, [1, 2])
        assert list(results) == [("a", 1), ("a", 2)]

    @pytest.mark.skipif(sys.version_info < (3, 14), reason="map() has no buffersize")
    def test_map_with_a_buffer_binds_at_the_call(self, pool):
        with session_scope("a"):
            results = pool.map(see, [1, 2, 3], buffersize=1)
        with session_scope("b"):
            assert list(results) == [("a", 1), ("a", 2), ("a", 3)]

    def test_subclass_with_a_submit_of_its_own(self):
        class Logged(ThreadPoolExecutor):
            def submit(self, fn, *args):
                submitted.append(fn)
                return super().submit(fn, *args)

        submitted = []
        with Logged(1) as pool, session_scope("a"):
            assert pool.submit(see).result() == ("a",)
        assert submitted == [see]

    def test_run_in_executor(self):
        async def main():
            loop = asyncio.get_running_loop()
            seen = []
            for session_id in ("a", "b"):
                with session_scope(session_id):
                    seen.append(await loop.run_in_executor(None, see))
            return [*seen, await loop.run_in_executor(None, see), await asyncio.to_thread(see)]

        assert asyncio.run(main()) == [("a",), ("b",), (None,), (None,)]

    def test_bound_function_keeps_its_session(self, pool):
        with session_scope("a"):
            bound = bind_session(see)
        with session_scope("b"):
            assert pool.submit(bound).result() == ("a",)

    def test_our_executor_stays_right(self):
        with SessionThreadPoolExecutor(1) as pool, session_scope("a"):
            assert pool.submit(see).result() == ("a",)

    def test_generator_function_is_covered_wherever_it_is_driven(self, pool):
        def steps():
            yield current_session_id()

        async def coroutine():
            return current_session_id()

        class Stream:
            def __call__(self):
                yield current_session_id()

        with session_scope("a"):
            futures = [pool.submit(fn) for fn in (steps, Stream(), coroutine)]
        with session_scope("b"):
            assert list(futures[0].result()) == ["a"]
            assert list(futures[1].result()) == ["a"]
            assert asyncio.run(futures[2].result()) == "a"

    @pytest.mark.parametrize("error", [KeyError, RuntimeError])
    def test_object_that_answers_no_question_is_called(self, pool, error):
        class Tools:
            @property
            def __class__(self):
                raise error

            def __getattr__(self, name):
                raise error

            def __call__(self):
                return current_session_id()

        with session_scope("a"):
            future = pool.submit(Tools())
        assert future.result() == "a"

    def test_function_that_is_marked_as_a_coroutine_function_is_covered(self, pool):
        async def coroutine():
            return current_session_id()

        marked = markcoroutinefunction(lambda: coroutine())
        with session_scope("a"):
            future = pool.submit(marked)
        assert asyncio.run(future.result()) == "a"

    @pytest.mark.parametrize(
        "fn", [dict, "x".upper, functools.partial(str.upper, "x"), threading.Event().is_set, Item]
    )
    def test_every_callable_can_be_submitted(self, pool, fn):
        assert type(pool.submit(fn).result()) is type(fn())

    def test_method_and_partial_run_in_the_session_of_the_caller(self, pool):
        class Tool:
            def run(self, number):
                return see(number)

        with session_scope("a"):
            for fn in (Tool().run, functools.partial(see), functools.partial(Tool().run)):
                assert pool.submit(fn, 1).result() == ("a", 1)

    def test_every_name_of_an_argument_goes_through(self, pool):
        def take(self, fn, args, kwargs, func):
            return self, fn, args, kwargs, func

        names = dict.fromkeys(inspect.signature(take).parameters, 1)
        assert pool.submit(take, **names).result() == (1,) * 5

    def test_what_is_not_callable_stays_the_pools_own_error(self, pool):
        with pytest.raises(TypeError, match=r"^'int' object is not callable"):
            pool.submit(5).result()
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'fn'"):
            pool.submit()

    def test_exception_comes_back(self, pool):
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0).result()

    def test_nothing_is_kept_alive(self, pool):
        class Tool(Item):
            def __call__(self, argument):
                return Watch(argument)

        tool, argument = Tool(), Item()
        watches = [Watch(tool), Watch(argument)]
        watches.append(pool.submit(tool, argument).result())
        del tool, argument
        pool.submit(int).result()  # a worker keeps its last call until the next
        gc.collect()
        assert all(watch.is_gone for watch in watches)

    @pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python itself keeps it alive")
    def test_exception_keeps_no_argument_alive(self, pool):
        def fail(argument):
            watches.append(Watch(argument))
            del argument
            raise KeyError

        watches = []
        future = pool.submit(fail, Item())
        assert isinstance(future.exception(), KeyError)
        pool.submit(int).result()  # a worker keeps its last call until the next
        assert watches[0].is_gone

    def test_scopes_that_a_call_leaves_open_are_closed(self, pool):
        def leave_open():
            session_scope("left-open").__enter__()
            return current_session_id()

        with session_scope("a"):
            assert pool.submit(leave_open).result() == "left-open"
        not_carried = ThreadPoolExecutor.submit.__wrapped__
        assert not_carried(pool, see).result() == (None,)

    def test_scopes_that_a_call_closes_stay_closed(self, pool):
        def body():
            with session_scope("dead"):
                yield

        not_carried = ThreadPoolExecutor.submit.__wrapped__
        steps = body()
        assert not_carried(pool, lambda: next(steps)).result() is None
        assert not_carried(pool, see).result() == ("dead",)  # as a with around a yield leaks
        with session_scope("a"):
            assert pool.submit(lambda: (steps.close(), see())[1]).result() == ("a",)
        assert not_carried(pool, see).result() == (None,)

    def test_threads_that_are_no_pool_start_without_a_session(self):
        seen = []
        with session_scope("a"):
            thread = threading.Thread(target=lambda: seen.append(see()))
            thread.start()
            thread.join()
        assert seen == [(None,)]


@pytest.fixture
def thread_pool():
    with ThreadPool(1) as pool:
        with session_scope("starter"):
            pool.apply(int)
        yield pool


CALLS = {
    "apply": lambda pool: [pool.apply(see)],
    "apply_async": lambda pool: [pool.apply_async(see).get()],
    "apply_async, by keyword": lambda pool: [pool.apply_async(func=see).get()],
    "map": lambda pool: pool.map(see, [1, 2]),
    "map, by keyword": lambda pool: pool.map(func=see, iterable=[1, 2]),
    "map_async": lambda pool: pool.map_async(see, [1, 2]).get(),
    "starmap": lambda pool: pool.starmap(see, [(1,), (2,)]),
    "starmap_async": lambda pool: pool.starmap_async(see, [(1,), (2,)]).get(),
    "imap": lambda pool: list(pool.imap(see, [1, 2])),
    "imap, in chunks": lambda pool: list(pool.imap(see, [1, 2, 3], chunksize=2)),
    "imap_unordered": lambda pool: list(pool.imap_unordered(see, [1, 2])),
}


@pytest.mark.usefixtures("carried")
class TestThreadPool:
    @pytest.mark.parametrize("name", CALLS)
    def test_every_call_runs_in_the_session_of_the_caller(self, thread_pool, name):
        with session_scope("a"):
            results = CALLS[name](thread_pool)
        assert {session_id for session_id, *_ in results} == {"a"}
        results = CALLS[name](thread_pool)
        assert {session_id for session_id, *_ in results} == {None}

    @pytest.mark.parametrize("method", ["apply_async", "map_async", "starmap_async"])
    @pytest.mark.parametrize("by_position", [True, False])
    def test_callbacks_run_in_the_session_of_the_caller(self, thread_pool, method, by_position):
        def fail(*_):
            raise KeyError

        seen = []
        arguments = ((), {}) if method == "apply_async" else ([(1,)], None)

        def callback(_):
            seen.append(current_session_id())

        call = getattr(thread_pool, method)
        with session_scope("a"):
            for fn in (see, fail):
                if by_position:
                    result = call(fn, *arguments, callback, callback)
                else:
                    result = call(fn, arguments[0], callback=callback, error_callback=callback)
                result.wait(10)
        thread_pool.close()
        thread_pool.join()
        assert seen == ["a", "a"]

    @pytest.mark.parametrize("name", ["map", "imap", "starmap", "apply_async", "map_async"])
    def test_its_methods_can_be_pickled(self, name):
        method = getattr(ThreadPool, name)
        assert pickle.loads(pickle.dumps(method)) is method

    def test_methods_of_executors_can_be_pickled(self):
        for method in (ThreadPoolExecutor.submit, ThreadPoolExecutor.map):
            assert pickle.loads(pickle.dumps(method)) is method

    def test_joblib(self):
        with session_scope("a"):
            calls = (joblib.delayed(see)(number) for number in range(50))
            results = joblib.Parallel(2, "threading", pre_dispatch=2)(calls)
        assert results == [("a", number) for number in range(50)]

    def test_what_is_not_callable_stays_the_pools_own_error(self, thread_pool):
        with pytest.raises(TypeError, match="'int' object is not callable"):
            thread_pool.apply(5)


def _see_in_process(_):
    return current_session_id()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.usefixtures("carried")
class TestOtherPools:
    def test_process_pools_are_left_alone(self):
        start = multiprocessing.get_context("spawn")
        with start.Pool(1) as pool, session_scope("a"):
            assert pool.map(_see_in_process, [1]) == [None]
            assert pool.apply_async(_see_in_process, (1,)).get(60) is None
        with ProcessPoolExecutor(1, mp_context=start) as executor, session_scope("a"):
            assert executor.submit(_see_in_process, 1).result(60) is None
        assert "map" in vars(ThreadPool)
        assert not hasattr(Pool.map, "__wrapped__")

    @pytest.mark.skipif(sys.version_info < (3, 14), reason="there are no such pools")
    def test_interpreter_pools_are_left_alone(self):
        from concurrent.futures import InterpreterPoolExecutor

        with InterpreterPoolExecutor(1) as pool, session_scope("a"):
            assert pool.submit(lambda: 1).result() == 1
            assert list(pool.map(lambda x: x, [1, 2], buffersize=1)) == [1, 2]

    def test_lock_is_renewed_after_a_fork(self):
        with _patching._lock:
            child = os.fork()
            if child == 0:
                with carry_session():
                    os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


class TestSwitch:
    def test_end_of_the_block_restores_what_was_in_force(self, pool):
        with session_scope("a"):
            assert pool.submit(see).result() == (None,)
            with carry_session():
                assert pool.submit(see).result() == ("a",)
                with carry_session():
                    assert pool.submit(see).result() == ("a",)
                assert pool.submit(see).result() == ("a",)
            assert pool.submit(see).result() == (None,)

    def test_entered_again_it_carries_the_session_again(self, pool):
        carrying = carry_session()
        with session_scope("a"):
            for _ in range(2):
                with carrying:
                    assert pool.submit(see).result() == ("a",)
                assert pool.submit(see).result() == (None,)

    def test_calling_it_twice_patches_once(self):
        with carry_session():
            patched = ThreadPoolExecutor.submit, ThreadPool.map
            with carry_session():
                assert (ThreadPoolExecutor.submit, ThreadPool.map) == patched

    def test_call_submitted_before_is_as_it_was(self, pool):
        gate = threading.Event()
        with session_scope("a"):
            pool.submit(gate.wait, 10)
            before = pool.submit(see)
            with carry_session():
                inside = pool.submit(see)
            gate.set()
        assert before.result() == (None,)
        assert inside.result() == ("a",)


class TestNextToOtherWrappers:
    @pytest.mark.parametrize("ours_first", [True, False])
    def test_generators_and_coroutines_below_opentelemetry_are_bound(self, pool, ours_first):
        otel = pytest.importorskip("opentelemetry.instrumentation.threading")

        def generator():
            yield current_session_id()

        async def coroutine():
            return current_session_id()

        with contextlib.ExitStack() as undo:
            for of_ours in (ours_first, not ours_first):
                if of_ours:
                    undo.enter_context(carry_session())
                else:
                    otel.ThreadingInstrumentor().instrument()
                    undo.callback(otel.ThreadingInstrumentor().uninstrument)
            with session_scope("a"):
                yielding, awaiting = pool.submit(generator), pool.submit(coroutine)
            assert list(yielding.result()) == ["a"]
            assert asyncio.run(awaiting.result()) == "a"

    @pytest.mark.parametrize("ours_first", [True, False])
    @pytest.mark.parametrize("theirs_ends_first", [True, False])
    def test_opentelemetry_in_every_order(self, pool, ours_first, theirs_ends_first, spans):
        otel = pytest.importorskip("opentelemetry.instrumentation.threading")
        from opentelemetry import trace

        def both():
            return current_session_id(), trace.get_current_span().get_span_context().span_id

        theirs = otel.ThreadingInstrumentor()
        tracer = spans.provider.get_tracer("test")
        start = [lambda: carrying.append(carry_session()), theirs.instrument]
        end = [lambda: carrying.pop().__exit__(None, None, None), theirs.uninstrument]
        carrying = []
        for step in start if ours_first else reversed(start):
            step()
        with session_scope("a"), tracer.start_as_current_span("x") as span:
            span_id = span.get_span_context().span_id
            assert pool.submit(both).result() == ("a", span_id)
            steps = list(reversed(end)) if theirs_ends_first else end
            steps[0]()
            expected = ("a", 0) if theirs_ends_first else (None, span_id)
            assert pool.submit(both).result() == expected
            steps[1]()
            assert pool.submit(both).result() == (None, 0)
            with carry_session():
                assert pool.submit(see).result() == ("a",)

    def test_wrapper_that_hides_the_original_costs_a_warning(self, pool, monkeypatch, caplog):
        original = ThreadPoolExecutor.submit
        # As another library does it that came first, and knows nothing of the patch.
        plain = original
        while hasattr(plain, "__wrapped__"):
            plain = plain.__wrapped__
        monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda self, fn: plain(self, fn))
        with carry_session(), session_scope("a"):
            assert pool.submit(see).result() == ("a",)
        (record,) = caplog.records
        assert "ThreadPoolExecutor.submit is not the library's own" in record.getMessage()
        assert "carry_session() has to be called again" in record.getMessage()


def test_many_threads_that_submit_at_once_are_never_mixed_up():
    wrong = []

    def submit_many(number):
        with session_scope(f"s{number}"):
            futures = [pool.submit(current_session_id) for _ in range(500)]
        wrong.extend(f for f in futures if f.result() != f"s{number}")

    with carry_session(), ThreadPoolExecutor(4) as pool:
        submitters = [threading.Thread(target=submit_many, args=(n,)) for n in range(8)]
        for thread in submitters:
            thread.start()
        for thread in submitters:
            thread.join(60)
    assert wrong == []
