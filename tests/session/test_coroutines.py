"""Decorated coroutines and async generators: the body alone runs in its session."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import cProfile
import functools
import gc
import inspect
import io
import subprocess
import sys
import textwrap
import threading
import types
import unittest.mock
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from support.lifetime import Item, Watch, noting_its_end

from cagent_session import (
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    session_from,
    session_scope,
)
from cagent_session.integrations.threads import carry_session

other = contextvars.ContextVar("other", default="unset")


def adopt(context):
    """Set all variables to what they are in a context, as asgiref's sync_to_async() does."""
    for variable, value in context.items():
        variable.set(value)


@types.coroutine
def pause():
    yield


async def reading(seen):
    inner = noting_its_end(seen)
    next(inner)
    await asyncio.sleep(10)


@pytest.fixture(autouse=True)
def _no_cycle_collector():
    """What goes away here goes because nothing refers to it, and not later, by chance."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class TestCoroutines:
    def test_the_body_is_covered_and_other_tasks_are_not(self):
        @session_from("name")
        async def body(name):
            for _ in range(5):
                assert current_session_id() == name
                await asyncio.sleep(0)
            return current_session_id()

        async def main():
            with session_scope("main"):
                results = await asyncio.gather(*(body(name) for name in "abc"))
                assert current_session_id() == "main"
            return results

        assert asyncio.run(main()) == ["a", "b", "c"]

    def test_driven_by_hand_it_does_not_leak_between_steps(self):
        class Pause:
            def __await__(self):
                return (yield "paused")

        @session_scope("body")
        async def body():
            answer = await Pause()
            return answer, current_session_id()

        coroutine = body()
        assert coroutine.send(None) == "paused"
        assert current_session_id() is None
        with pytest.raises(StopIteration) as stop:
            coroutine.send("go")
        assert stop.value.value == ("go", "body")

    def test_cancelling_and_timeouts_reach_the_body_in_session(self):
        seen = []

        @session_scope("body")
        async def body():
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                seen.append(current_session_id())
                raise

        async def main():
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(body(), 0.01)
            assert current_session_id() is None

        asyncio.run(main())
        assert seen == ["body"]

    @pytest.mark.parametrize("does_go_on", [True, False])
    def test_finally_of_what_is_cancelled_runs_in_session(self, does_go_on):
        """The task holds what cancelled the body, and with it what its traceback leads to."""
        seen = []

        @session_scope("body")
        async def body():
            with contextlib.suppress(asyncio.CancelledError):
                await reading(seen)
            if does_go_on:
                await asyncio.sleep(0)

        async def main():
            with session_scope("caller"):
                task = asyncio.create_task(body())
                await asyncio.sleep(0)
                task.cancel()
                await task

        asyncio.run(main())
        assert seen == ["body"]

    def test_a_cancellation_arrives_with_all_that_it_has(self):
        cancelled, cause, context = asyncio.CancelledError("why"), KeyError(), ValueError()
        cancelled.__cause__, cancelled.__context__, cancelled.note = cause, context, "a note"

        @session_scope("body")
        async def body():
            await asyncio.sleep(0)

        coroutine = body()
        coroutine.send(None)
        with pytest.raises(asyncio.CancelledError, match="why") as caught:
            coroutine.throw(cancelled)
        assert caught.value.note == "a note"
        assert (caught.value.__cause__, caught.value.__context__) == (cause, context)
        assert caught.value.__suppress_context__

    def test_stay_in_session_if_variables_are_set_to_what_they_were(self):
        async def set_back():
            before = contextvars.copy_context()
            await asyncio.sleep(0)
            adopt(before)

        async def nested(depth):
            if depth:
                await session_scope(str(depth - 1))(nested)(depth - 1)
            await set_back()
            with session_scope("tool"):
                pass
            seen.append(current_session_id())

        for levels in range(60, 70):  # some of these leave no room for one more frame
            seen: list[str | None] = []
            asyncio.run(session_scope(str(levels - 1))(nested)(levels - 1))
            assert seen == [str(depth) for depth in range(levels)]

    def test_stay_in_session_if_variables_are_set_to_what_they_are_in_a_thread(self):
        def query():
            with session_scope("query"):
                pass

        @session_scope("tool")
        async def tool():
            context = contextvars.copy_context()
            await asyncio.to_thread(context.run, query)
            adopt(context)

        async def job(number, done):
            await tool()
            seen.append(current_session_id())
            if number == 200:
                done.set()
                return
            with session_scope(str(number + 1)):
                running.append(asyncio.create_task(job(number + 1, done)))

        async def main():
            done = asyncio.Event()
            with session_scope("0"):
                await asyncio.create_task(job(0, done))
            await done.wait()

        seen: list[str | None] = []
        running: list[object] = []
        asyncio.run(main())
        assert seen == [str(number) for number in range(201)]

    def test_what_it_waits_for_can_be_looked_at_while_it_runs(self):
        """As tracers do. Python 3.11 and 3.12 crash when that is done to the wrong bytecode."""
        code = """
            import asyncio
            from cagent_session import session_scope

            def look():
                at = asyncio.current_task().get_coro()
                while at is not None:
                    str(at)
                    at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None)

            @session_scope("a")
            async def body():
                look()
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    look()
                look()

            async def main():
                for _ in range(20_000):
                    task = asyncio.create_task(body())
                    await asyncio.sleep(0)
                    task.cancel()
                    await task

            asyncio.run(main())
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, check=True)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no Runner")
    def test_a_runner_runs_a_bound_call_in_the_session_of_its_caller(self):
        async def call():
            return current_session_id()

        with asyncio.Runner() as runner:
            for session_id in ("s1", "s2"):
                with session_scope(session_id):
                    assert runner.run(bind_session(call)()) == session_id

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="create_task() takes no context")
    def test_tasks_that_share_a_context_share_a_with_but_not_a_decorator(self):
        async def read_later():
            await asyncio.sleep(0)
            return current_session_id()

        async def in_a_with(name):
            with session_scope(name):
                return await read_later()

        @session_from("name")
        async def decorated(name):
            return await read_later()

        async def main(call):
            loop, context = asyncio.get_running_loop(), contextvars.copy_context()
            tasks = [loop.create_task(call(name), context=context) for name in ("s1", "s2")]
            return await asyncio.gather(*tasks)

        assert asyncio.run(main(in_a_with)) == ["s2", "s2"]
        assert asyncio.run(main(decorated)) == ["s1", "s2"]

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no timeout()")
    @pytest.mark.parametrize(
        ("in_thread", "afterwards"),
        [(asyncio.to_thread, "caller"), (lambda fn: sync_to_async(fn)(), "thread")],
        ids=["asyncio", "asgiref"],
    )
    def test_who_gives_up_waiting_for_a_thread_gets_its_session_from_asgiref(
        self, in_thread, afterwards
    ):
        """Which docs/context.md says, and that `asyncio.to_thread` is the remedy."""
        end = threading.Event()

        @session_scope("thread")
        def work():
            end.wait(10)

        async def main():
            with session_scope("caller"):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await in_thread(work)
                end.set()
                return current_session_id()

        assert asyncio.run(main()) == afterwards

    def test_stack_of_a_task_shows_the_frame_of_a_body_with_a_with_but_not_of_a_decorated_one(self):
        """Which docs/context.md says."""

        async def with_a_with():
            with session_scope("a"):
                await asyncio.sleep(10)

        @session_scope("a")
        async def decorated():
            await asyncio.sleep(10)

        async def stack(body):
            task = asyncio.create_task(body())
            await asyncio.sleep(0)
            shown = io.StringIO()
            task.print_stack(file=shown)
            task.cancel()
            return shown.getvalue()

        assert "in with_a_with\n" in asyncio.run(stack(with_a_with))
        assert "in decorated\n" not in asyncio.run(stack(decorated))

    def test_tasks_that_the_body_starts_are_in_session(self):
        async def child():
            return current_session_id()

        @session_scope("body")
        async def body():
            return await asyncio.create_task(child())

        assert asyncio.run(body()) == "body"

    def test_a_body_that_does_not_end_when_it_is_dropped_stays_in_session(self, monkeypatch):
        monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # pytest's keeps the generator
        seen = []

        @session_scope("body")
        async def body():
            while True:
                seen.append(current_session_id())
                with contextlib.suppress(GeneratorExit):
                    await pause()

        with session_scope("caller"):
            coroutine = body()
            coroutine.send(None)
            del coroutine
            assert current_session_id() == "caller"
        assert len(seen) > 1
        assert set(seen) == {"body"}

    @pytest.mark.parametrize("end", ["return", "raise", "cancel"])
    def test_nothing_is_kept_alive(self, end):
        @session_scope("body")
        async def body(argument):
            local = Item()
            watches.append(Watch(local))
            del argument
            await asyncio.sleep(0)
            assert watches[0].is_gone
            if end == "raise":
                raise KeyError
            if end == "cancel":
                await asyncio.sleep(10)

        async def main():
            argument = Item()
            watches.append(Watch(argument))
            task = asyncio.create_task(body(argument))
            del argument
            if end == "cancel":
                await asyncio.sleep(0.01)
                task.cancel()
            with contextlib.suppress(KeyError, asyncio.CancelledError):
                await task
            del task
            await asyncio.sleep(0)
            assert all(watch.is_gone for watch in watches)

        watches = []
        asyncio.run(main())

    def test_marked_coroutine_function_may_return_any_awaitable(self):
        """A function that is marked as a coroutine function may give any awaitable."""
        double = unittest.mock.AsyncMock(side_effect=lambda: current_session_id())
        assert asyncio.run(session_scope("a")(double)()) == "a"

    @pytest.mark.skipif(sys.version_info >= (3, 11), reason="Python has no such decorator")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_generator_of_asyncio_coroutine_stays_one(self):
        @session_scope("a")
        @asyncio.coroutine
        def body():
            yield from asyncio.sleep(0)
            return current_session_id()

        assert inspect.isgeneratorfunction(body)
        assert asyncio.run(body()) == "a"

    @pytest.mark.parametrize("kind", [lambda fn: fn, functools.partial])
    def test_marked_coroutine_function_is_covered_before_it_returns(self, kind):
        """Python has such marks from 3.12 on. Before that, Django sets one of asyncio's."""
        seen: list[str | None] = []

        async def rest():
            seen.append(current_session_id())

        @session_scope("a")
        @kind
        @markcoroutinefunction
        def body():
            seen.append(current_session_id())
            return rest()

        assert iscoroutinefunction(body)
        asyncio.run(body())
        assert seen == ["a", "a"]

    @pytest.mark.parametrize("steps", [[], [None, None]])
    def test_awaitable_may_be_any_iterator(self, steps):
        """An iterator that is no generator has no send() and no throw()."""

        class Awaitable:
            def __await__(self):
                return iter(steps)

        marked = markcoroutinefunction(lambda: Awaitable())
        assert asyncio.run(session_scope("a")(marked)()) is None

    def test_stays_a_coroutine_function(self):
        @session_scope("a")
        async def body(a): ...

        assert inspect.iscoroutinefunction(body)
        coroutine = body(1)
        assert inspect.iscoroutine(coroutine)
        coroutine.close()


async def look_twice(name):
    before = current_session_id()
    with session_scope("inner"):
        await asyncio.sleep(0)
    return before, current_session_id()


@functools.wraps(look_twice)
def returns_it(name):
    return look_twice(name)


class Patched:
    """A method with a wrapper that says it is the method, as wrapt makes for ddtrace."""

    __class__ = property(lambda self: types.MethodType)  # type: ignore[assignment]

    def __init__(self, wrapped):
        self.__wrapped__ = wrapped

    def __getattr__(self, name):
        return getattr(self.__wrapped__, name)

    def __call__(self, *args):
        return self.__wrapped__(*args)


def checking_arguments(fn):
    @functools.wraps(fn)
    def checking(*args):
        return fn(*args)

    return checking


class Client:
    @checking_arguments
    async def create(self, name):
        return await look_twice(name)


@session_scope("a")
def bound(fn):
    return bind_session(fn)


def carried(fn):
    def call(*args):
        with carry_session(), ThreadPoolExecutor(1) as pool, session_scope("a"):
            return pool.submit(fn, *args).result()

    return call


def in_a_pool_of_ours(fn):
    def call(*args):
        with SessionThreadPoolExecutor(1) as pool, session_scope("a"):
            return pool.submit(fn, *args).result()

    return call


class TestWrappersOfCoroutineFunctions:
    """Many methods of SDKs are, such as `create` of OpenAI's and Anthropic's."""

    @pytest.mark.parametrize(
        "cover", [session_scope("a"), session_from("name"), bound, carried, in_a_pool_of_ours]
    )
    @pytest.mark.parametrize(
        "fn", [returns_it, functools.partial(returns_it), Patched(Client().create)]
    )
    def test_are_covered_until_the_coroutine_ends(self, cover, fn):
        async def main():
            with session_scope("awaited"):
                assert await cover(fn)("a") == ("a", "a")
                assert current_session_id() == "awaited"

        asyncio.run(main())

    @pytest.mark.parametrize("cover", [session_scope("a"), bound, carried, in_a_pool_of_ours])
    def test_other_functions_may_return_a_coroutine_of_somebody_else(self, cover):
        """As the `get` of a queue."""
        coroutine = look_twice("a")
        assert cover(lambda: coroutine)() is coroutine
        coroutine.close()

    def test_an_object_may_say_without_end_what_it_wraps(self):
        """As a remote proxy does, of a function."""

        class Proxy:
            __class__ = property(lambda self: types.FunctionType)  # type: ignore[assignment]
            __wrapped__ = property(lambda self: Proxy())

            def __call__(self):
                return current_session_id()

        assert session_scope("a")(Proxy())() == "a"

    def test_a_coroutine_that_has_begun_is_left_as_it_is(self):
        coroutine = look_twice("a")
        coroutine.send(None)
        again = functools.wraps(look_twice)(lambda: coroutine)
        assert session_scope("a")(again)() is coroutine
        coroutine.close()

    def test_python_warns_once_of_a_coroutine_that_nobody_awaits(self, recwarn):
        session_scope("a")(returns_it)("a")
        message = str(recwarn.pop(RuntimeWarning).message)
        assert message == "coroutine 'look_twice' was never awaited"
        assert not recwarn

    def test_python_warns_of_no_coroutine_that_was_cancelled_before_it_began(self, recwarn):
        async def main():
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(session_scope("a")(returns_it)("a"), 0)

        asyncio.run(main())
        gc.collect()
        assert not recwarn

    def test_a_coroutine_in_a_cycle_ends_in_its_session(self):
        seen = []

        async def body(cycle):
            steps = noting_its_end(seen)
            next(steps)
            cycle.append(steps)
            await pause()

        with session_scope("collecting"):
            cycle = []
            coroutine = session_scope("a")(functools.wraps(body)(lambda it: body(it)))(cycle)
            cycle.append(coroutine)
            coroutine.send(None)
            del coroutine, cycle
            gc.collect()
        assert seen == ["a"]

    def test_a_profiler_sees_the_same_functions_in_each_call(self):
        fn = session_scope("a")(returns_it)

        def functions_of(calls):
            with cProfile.Profile() as profile:
                for _ in range(calls):
                    with contextlib.suppress(StopIteration):
                        fn("a").send(None)
            return len(profile.getstats())

        assert functions_of(20) == functions_of(1)

    def test_a_coroutine_that_is_over_keeps_nothing(self):
        item = Item()
        watch = Watch(item)
        coroutine = session_scope("a")(returns_it)(item)
        del item
        asyncio.run(coroutine)
        assert watch.is_gone


class TestAsyncGenerators:
    def test_the_body_is_covered_and_the_caller_is_not(self):
        @session_scope("body")
        async def body():
            for number in range(3):
                await asyncio.sleep(0)
                with session_scope("inner"):
                    yield number, current_session_id()
                    assert current_session_id() == "inner"

        async def main():
            with session_scope("caller"):
                async for _, session_id in body():
                    assert session_id == "inner"
                    assert current_session_id() == "caller"

        asyncio.run(main())

    def test_asend_athrow_and_aclose(self):
        seen = []

        @session_scope("body")
        async def body():
            try:
                seen.append((yield 1))
                yield 2
            except KeyError:
                yield current_session_id()
            finally:
                await asyncio.sleep(0)
                seen.append(current_session_id())

        async def main():
            steps = body()
            assert await steps.asend(None) == 1
            assert await steps.asend("hello") == 2
            assert await steps.athrow(KeyError("x")) == "body"
            assert current_session_id() is None
            await steps.aclose()
            assert current_session_id() is None

        asyncio.run(main())
        assert seen == ["hello", "body"]

    @pytest.mark.parametrize("dropped", [True, False])
    def test_unfinished_async_generator_ends_in_its_own_session(self, dropped):
        """By the collector while the loop runs, or by the loop when it ends."""
        seen = []
        kept = []

        @session_scope("body")
        async def body():
            try:
                yield
            finally:
                await asyncio.sleep(0)
                seen.append(current_session_id())

        async def main():
            steps = body()
            await steps.__anext__()
            if not dropped:
                kept.append(steps)
            del steps
            for _ in range(5):
                await asyncio.sleep(0)
            assert seen == (["body"] if dropped else [])

        asyncio.run(main())
        assert seen == ["body"]

    @pytest.mark.parametrize("answer", ["return", "raise"])
    def test_finally_of_what_a_closed_body_has_in_a_variable_runs_in_session(self, answer):
        seen = []

        @session_scope("body")
        async def body():
            inner = noting_its_end(seen)
            next(inner)
            try:
                yield
            except GeneratorExit:
                if answer == "raise":
                    raise GeneratorExit  # noqa: B904

        async def main():
            with session_scope("caller"):
                steps = body()
                await steps.asend(None)
                await steps.aclose()

        asyncio.run(main())
        assert seen == ["body"]

    def test_finally_of_what_is_cancelled_runs_in_session(self):
        seen = []

        @session_scope("body")
        async def body():
            with contextlib.suppress(asyncio.CancelledError):
                await reading(seen)
            yield

        async def main():
            with session_scope("caller"):
                task = asyncio.ensure_future(body().asend(None))
                await asyncio.sleep(0)
                task.cancel()
                await task

        asyncio.run(main())
        assert seen == ["body"]

    def test_closing_that_is_given_up_while_the_body_waits_frees_the_body(self):
        seen = []

        @session_scope("body")
        async def body():
            inner = noting_its_end(seen)
            next(inner)
            try:
                yield
            finally:
                await pause()

        with session_scope("caller"):
            steps = body()
            with pytest.raises(StopIteration):
                steps.asend(None).send(None)
            closing = steps.aclose()
            closing.send(None)
            del closing, steps
        assert seen == ["body"]

    def test_closing_that_is_cancelled_while_the_body_waits_frees_the_body(self):
        @session_scope("body")
        async def body():
            local = Item()
            watches.append(Watch(local))
            try:
                yield
            finally:
                await asyncio.sleep(10)

        async def main():
            steps = body()
            await steps.asend(None)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(steps.aclose(), 0.01)
            del steps
            await asyncio.sleep(0)
            assert watches[0].is_gone

        watches = []
        asyncio.run(main())

    def test_a_loop_that_is_closed_while_the_body_waits_crashes_nothing(self):
        """Python 3.11 did, when the collector came to a coroutine between wrapper and body."""
        check = """
import asyncio, contextlib, gc
from cagent_session import session_scope


@contextlib.asynccontextmanager
@session_scope("a")
@session_scope("b")
async def resource():
    try:
        yield
    except ValueError:
        pass
    finally:
        await asyncio.sleep(60)


async def job():
    async with resource():
        raise ValueError


loop = asyncio.new_event_loop()
task = loop.create_task(job())
loop.run_until_complete(asyncio.sleep(0.01))
loop.close()
del task
gc.collect()
print("done")
"""
        command = [sys.executable, "-W", "ignore", "-c", check]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.split() == ["done"]

    def test_finally_that_waits_when_it_is_dropped_runs_in_no_other_session(self, monkeypatch):
        """Without an event loop, nobody drives it. Python may close it while it waits."""
        monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # pytest's keeps the generator
        seen = []

        @session_scope("body")
        async def body():
            try:
                yield
            finally:
                try:
                    await pause()
                finally:
                    seen.append(current_session_id())

        with session_scope("caller"):
            steps = body()
            with pytest.raises(StopIteration):
                steps.asend(None).send(None)
            del steps
            gc.collect()
        assert set(seen) <= {"body"}

    @pytest.mark.parametrize("in_cycle", [True, False])
    def test_finally_runs_in_its_own_session_wherever_it_is_collected(self, in_cycle):
        """Without an event loop, Python closes a generator that is collected by itself."""
        seen = []

        @session_scope("body")
        async def body():
            try:
                yield
            finally:
                seen.append(current_session_id())

        steps = body()
        with pytest.raises(StopIteration):
            steps.__anext__().send(None)
        if in_cycle:
            cycle = [steps]
            cycle.append(cycle)
            del cycle
        with session_scope("other"):
            del steps
            gc.collect()
            assert current_session_id() == "other"
        assert seen == ["body"]

    @pytest.mark.filterwarnings("ignore:.*coroutine:RuntimeWarning")
    @pytest.mark.parametrize("is_waiting", [True, False])
    def test_finally_never_runs_in_another_session_after_the_loop_was_closed(self, is_waiting):
        """Without ``shutdown_asyncgens()``, which ``asyncio.run()`` calls."""
        seen = []

        @session_scope("body")
        async def body():
            try:
                yield
                await asyncio.sleep(100)
            finally:
                seen.append(current_session_id())

        async def main():
            await kept[0].__anext__()
            if is_waiting:
                kept.append(asyncio.ensure_future(kept[0].__anext__()))
                await asyncio.sleep(0)

        kept = [body()]
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # it says that a task is still pending
        loop.run_until_complete(main())
        loop.close()
        with session_scope("other"):
            del loop
            kept.clear()
            gc.collect()
            assert current_session_id() == "other"
        # As without the decorator, Python does not run it at all for a generator at a yield.
        assert seen == (["body"] if is_waiting else [])

    def test_the_event_loop_sees_the_wrapper_alone(self):
        """It closes at its end all that it has seen, in any order, and so the body's own."""
        seen = []

        @session_scope("body")
        async def body():
            yield

        async def main():
            steps = body()
            hooks = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(firstiter=seen.append)
            await steps.__anext__()
            assert sys.get_asyncgen_hooks().firstiter == seen.append
            sys.set_asyncgen_hooks(*hooks)
            assert seen == [steps]
            await steps.aclose()

        asyncio.run(main())

    def test_errors_of_the_body_reach_the_caller(self):
        @session_scope("body")
        async def body():
            yield 1
            raise KeyError("x")

        async def main():
            steps = body()
            await steps.__anext__()
            with pytest.raises(KeyError):
                await steps.__anext__()
            with pytest.raises(StopAsyncIteration):
                await steps.__anext__()

        asyncio.run(main())

    @pytest.mark.parametrize("end", ["return", "aclose", "athrow", "raise", "cancel", "drop"])
    def test_nothing_is_kept_alive(self, end):
        @session_scope("body")
        async def body(argument):
            local = Item()
            watches.append(Watch(local))
            del argument
            yield Item()
            if end == "raise":
                raise KeyError
            if end == "cancel":
                await asyncio.sleep(10)

        async def main():
            argument = Item()
            watches.append(Watch(argument))
            steps = body(argument)
            del argument
            watches.append(Watch(await steps.__anext__()))
            assert [watch.is_gone for watch in watches] == [True, False, True]
            if end == "return":
                assert [item async for item in steps] == []
            elif end == "athrow":
                with pytest.raises(KeyError):
                    await steps.athrow(KeyError)
            elif end == "raise":
                with pytest.raises(KeyError):
                    await steps.__anext__()
            elif end == "cancel":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(steps.__anext__(), 0.01)
            elif end == "aclose":
                await steps.aclose()
            del steps
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert all(watch.is_gone for watch in watches)

        watches = []
        asyncio.run(main())

    def test_stays_an_async_generator_function(self):
        @session_scope("a")
        async def body(a):
            yield

        assert inspect.isasyncgenfunction(body)
        assert inspect.isasyncgen(body(1))
