"""Decorated generators: the body runs in its session, the caller in the caller's."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import signal
import subprocess
import sys
import threading
import tracemalloc
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.lifetime import Item, Watch, noting_its_end

from cagent_session import (
    current_session_id,
    no_session,
    session_from,
    session_scope,
)

other = contextvars.ContextVar("other", default="unset")


@pytest.fixture(autouse=True)
def _no_cycle_collector():
    """What goes away here goes because nothing refers to it, and not later, by chance."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


noting_its_end_in_body = session_scope("body")(noting_its_end)


class TestGenerators:
    def test_the_body_is_covered_and_the_caller_is_not(self):
        @session_scope("body")
        def body():
            for _ in range(3):
                yield current_session_id()
            return current_session_id()

        def caller():
            result = yield from body()
            yield result

        with session_scope("caller"):
            for seen in caller():
                assert seen == "body"
                assert current_session_id() == "caller"

    def test_send_throw_and_return(self):
        @session_scope("body")
        def body():
            seen = []
            try:
                seen.append(((yield 1), current_session_id()))
                yield 2
            except KeyError as error:
                seen.append((error.args[0], current_session_id()))
                yield 3
            return seen

        steps = body()
        assert next(steps) == 1
        assert steps.send("hello") == 2
        assert current_session_id() is None
        assert steps.throw(KeyError("oops")) == 3
        assert current_session_id() is None
        with pytest.raises(StopIteration) as stop:
            next(steps)
        assert stop.value.value == [("hello", "body"), ("oops", "body")]

    @pytest.mark.parametrize("end", ["close", "drop", "throw"])
    def test_finally_of_a_generator_runs_in_session(self, end):
        seen = []
        with session_scope("caller"):
            steps = noting_its_end_in_body(seen)
            next(steps)
            if end == "close":
                steps.close()
            elif end == "throw":
                with pytest.raises(KeyError):
                    steps.throw(KeyError)
            else:
                del steps
            assert current_session_id() == "caller"
        assert seen == ["body"]

    @pytest.mark.parametrize("end", ["close", "drop"])
    @pytest.mark.parametrize("kind", ["generator", "handling", "async generator", "coroutine"])
    def test_finally_of_what_the_body_has_in_a_variable_runs_in_session(self, kind, end):
        seen = []

        @types.coroutine
        def pause():
            yield

        @session_scope("body")
        def generator():
            inner = noting_its_end(seen)
            yield next(inner)

        @session_scope("body")
        def handling():
            try:
                raise KeyError
            except KeyError:
                inner = noting_its_end(seen)
                yield next(inner)

        @session_scope("body")
        async def async_generator():
            inner = noting_its_end(seen)
            next(inner)
            await pause()
            yield

        @session_scope("body")
        async def coroutine():
            inner = noting_its_end(seen)
            next(inner)
            await pause()

        kinds = {
            "generator": generator,
            "handling": handling,
            "async generator": lambda: async_generator().asend(None),
            "coroutine": coroutine,
        }
        with session_scope("caller"):
            steps = kinds[kind]()
            steps.send(None)
            if end == "close":
                steps.close()
            del steps
        assert seen == ["body"]

    @pytest.mark.parametrize("answer", ["return", "raise"])
    def test_finally_of_what_a_closed_body_has_in_a_variable_runs_in_session(self, answer):
        seen = []

        @session_scope("body")
        def body():
            inner = noting_its_end(seen)
            next(inner)
            try:
                yield
            except GeneratorExit:
                if answer == "raise":
                    raise GeneratorExit  # noqa: B904

        with session_scope("caller"):
            steps = body()
            next(steps)
            steps.close()
            assert current_session_id() == "caller"
        assert seen == ["body"]

    @pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt, asyncio.CancelledError])
    def test_what_is_thrown_arrives_and_leaves_as_it_is(self, kind):
        seen = []

        @contextlib.contextmanager
        @session_scope("body")
        def body():
            try:
                yield
            except BaseException as exc:
                seen.append(exc)
                raise

        thrown = kind()
        with pytest.raises(kind) as caught, body():
            raise thrown
        assert seen[0] is caught.value is thrown

    def test_finally_runs_in_session_in_a_cycle_that_is_older_than_the_body(self):
        """The collector takes young objects first, and a body is made at the first step."""
        seen = []
        cycle = [noting_its_end_in_body(seen)]
        cycle.append(cycle)
        gc.collect(0)
        next(cycle[0])
        with session_scope("caller"):
            del cycle
            gc.collect()
            assert current_session_id() == "caller"
        assert seen == ["body"]

    def test_a_body_that_does_not_end_when_it_is_dropped_stays_in_session(self, monkeypatch):
        monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # pytest's keeps the generator
        seen = []

        @session_scope("body")
        def body():
            while True:
                seen.append(current_session_id())
                with contextlib.suppress(GeneratorExit):
                    yield

        with session_scope("caller"):
            steps = body()
            next(steps)
            del steps
            assert current_session_id() == "caller"
        assert len(seen) > 1
        assert set(seen) == {"body"}

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
    def test_what_a_signal_handler_raises_during_a_collection_is_not_lost(self):
        """In a process of its own: libraries of tests have functions in ``gc.callbacks``, too."""
        check = """
import gc, signal
from cagent_session import session_scope


class TimeIsUp(Exception): ...


def handler(*_):
    raise TimeIsUp


heap = [[i] for i in range(200_000)]
signal.signal(signal.SIGALRM, handler)
for _ in range(10):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        for _ in range(100):
            gc.collect()
    except TimeIsUp:
        print("raised")
"""
        done = subprocess.run(
            [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.split() == ["raised"] * 10

    def test_a_scope_is_entered_while_the_collector_closes_a_generator(self):
        """Up to Python 3.11 the collector runs within ``ContextVar.set()``, which crashed then."""
        check = """
import gc
from cagent_session import session_scope


@session_scope("body")
def body(cycle):
    yield


gc.set_threshold(31)
for _ in range(10_000):
    cycle = []
    cycle.append(body(cycle))
    next(cycle[0])
    del cycle
    with session_scope("caller"):
        pass
"""
        subprocess.run([sys.executable, "-c", check], check=True, timeout=60)

    def test_a_collection_that_closes_many_takes_no_memory(self):
        @session_scope("body")
        def body(cycle):
            yield

        def leave_in_cycles(number):
            for _ in range(number):
                cycle = []
                cycle.append(body(cycle))
                next(cycle[0])
            gc.collect()

        leave_in_cycles(10)
        tracemalloc.start()
        try:
            leave_in_cycles(1000)
            assert tracemalloc.get_traced_memory()[0] < 100_000  # bytes
        finally:
            tracemalloc.stop()

    def test_two_generators_iterated_alternately_stay_apart(self):
        @session_from("name")
        def body(name):
            for _ in range(3):
                assert current_session_id() == name
                yield name

        for pair in zip(body("a"), body("b"), strict=True):
            assert pair == ("a", "b")
            assert current_session_id() is None

    def test_a_scope_that_the_body_opened_is_current_again_when_it_resumes(self):
        @session_scope("body")
        def body():
            with session_scope("inner"):
                yield current_session_id()
                yield current_session_id()
                with no_session():
                    yield current_session_id()
            yield current_session_id()

        seen = []
        with session_scope("caller"):
            for session_id in body():
                seen.append((session_id, current_session_id()))
        assert [session_id for session_id, _ in seen] == ["inner", "inner", None, "body"]
        assert {callers for _, callers in seen} == {"caller"}

    def test_the_callers_scope_may_end_while_the_body_is_suspended(self):
        @session_scope("body")
        def body():
            while True:
                yield current_session_id()

        steps = body()
        with session_scope("caller"):
            assert next(steps) == "body"
        assert current_session_id() is None
        assert next(steps) == "body"
        assert current_session_id() is None

    def test_other_context_variables_behave_as_in_an_undecorated_generator(self):
        def body():
            seen = other.get()
            other.set("by the body")
            yield seen
            yield other.get()

        def drive(generator_function):
            other.set("by the caller")
            steps = generator_function()
            seen = [next(steps), other.get()]
            other.set("by the caller again")
            return [*seen, next(steps), other.get()]

        undecorated = contextvars.copy_context().run(drive, body)
        decorated = contextvars.copy_context().run(drive, session_scope("a")(body))
        assert decorated == undecorated

    def test_generator_iterated_by_several_threads_keeps_its_session(self):
        @session_scope("body")
        def body():
            for _ in range(20):
                yield current_session_id(), threading.get_ident()

        steps = body()
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
            for pool in (one, two) * 10:
                assert pool.submit(next, steps).result()[0] == "body"
                assert pool.submit(current_session_id).result() is None

    def test_close_behaves_as_without_the_decorator(self):
        def stubborn():
            try:
                yield
            except GeneratorExit:
                yield

        def returning():
            try:
                yield
            except GeneratorExit:
                return "done"

        results = []
        for decorate in (lambda fn: fn, session_scope("a")):
            steps = decorate(stubborn)()
            next(steps)
            with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
                steps.close()
            steps = decorate(returning)()
            next(steps)
            results.append(steps.close())
        assert results[0] == results[1]

    def test_throw_into_a_generator_that_has_not_begun(self):
        @session_scope("a")
        def body():
            yield

        with pytest.raises(KeyError):
            body().throw(KeyError)
        body().close()

    def test_stop_iteration_in_the_body_is_a_runtime_error(self):
        @session_scope("a")
        def body():
            yield
            raise StopIteration

        with pytest.raises(RuntimeError, match="StopIteration"):
            list(body())

    def test_stays_a_generator_function(self):
        @session_scope("a")
        def body(a, b=1):
            yield

        assert inspect.isgeneratorfunction(body)
        assert inspect.isgenerator(body(1))
        assert body(1).__name__ == "body"
        assert str(inspect.signature(body)) == "(a, b=1)"

    @pytest.mark.parametrize("end", ["return", "close", "throw", "raise", "drop"])
    def test_nothing_is_kept_alive(self, end):
        """Neither by the wrapper, nor by a cycle of an exception and the frames that it left."""

        @session_scope("a")
        def body(argument):
            local = Item()
            watches.append(Watch(local))
            del argument
            yield Item()
            if end == "raise":
                raise KeyError
            watches.append(Watch((yield)))

        watches = []
        argument = Item()
        watches.append(Watch(argument))
        steps = body(argument)
        del argument
        watches.append(Watch(next(steps)))
        assert [watch.is_gone for watch in watches] == [True, False, True]
        if end == "return":
            next(steps)
            with pytest.raises(StopIteration):
                steps.send(Item())
        elif end == "throw":
            with pytest.raises(KeyError):
                steps.throw(KeyError)
        elif end == "raise":
            with pytest.raises(KeyError):
                next(steps)
        elif end == "close":
            steps.close()
        del steps
        assert all(watch.is_gone for watch in watches)

    def test_an_exception_does_not_keep_itself_alive(self):
        class Oops(Exception):
            pass

        @session_scope("a")
        def body():
            try:
                yield
            except Oops:
                yield

        steps = body()
        next(steps)
        error = Oops()
        watch = Watch(error)
        steps.throw(error)
        del error
        steps.close()
        del steps
        assert watch.is_gone

    def test_a_scope_of_the_caller_that_the_body_closes(self):
        @session_scope("body")
        def body(stack):
            yield current_session_id()
            stack.close()
            yield current_session_id()

        with contextlib.ExitStack() as stack:
            stack.enter_context(session_scope("caller"))
            steps = body(stack)
            assert next(steps) == "body"
            assert current_session_id() == "caller"
            assert next(steps) == "body"
            assert current_session_id() is None
        assert current_session_id() is None

    def test_generator_made_awaitable_by_types_coroutine(self):
        @session_scope("body")
        @types.coroutine
        def body():
            seen.append(current_session_id())
            yield
            return current_session_id()

        async def main():
            with session_scope("caller"):
                return await body(), current_session_id()

        seen = []
        assert inspect.isgeneratorfunction(body)
        assert inspect.isawaitable(body())
        assert asyncio.run(main()) == ("body", "caller")
        assert seen == ["body"]
