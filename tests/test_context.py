"""Which session is current, in every kind of function that a scope can cover."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import enum
import functools
import gc
import inspect
import pickle
import sys
import threading
import types
import uuid
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from cagent_session import (
    InvalidSessionID,
    current_session_id,
    no_session,
    session_from,
    session_scope,
)

other = contextvars.ContextVar("other", default="unset")


class TestScope:
    def test_binds_and_gives_back_the_id(self):
        assert current_session_id() is None
        with session_scope("s1") as session_id:
            assert session_id == "s1"
            assert current_session_id() == "s1"
        assert current_session_id() is None

    def test_nests(self):
        with session_scope("a"):
            with session_scope("b"):
                assert current_session_id() == "b"
                with no_session() as nothing:
                    assert nothing is None
                    assert current_session_id() is None
                assert current_session_id() == "b"
            assert current_session_id() == "a"

    def test_restores_after_an_exception(self):
        with session_scope("a"):
            with pytest.raises(KeyError), session_scope("b"):
                raise KeyError
            assert current_session_id() == "a"

    def test_entering_the_current_one_again_is_harmless(self):
        scope = session_scope("a")
        with scope, scope, session_scope("a"):
            assert current_session_id() == "a"
        assert current_session_id() is None

    def test_fresh_ids(self):
        scope = session_scope()
        with scope as one, scope as two:
            assert one != two
            assert current_session_id() == two
        with scope as three:
            assert uuid.UUID(three).version == 4
        assert len({one, two, three}) == 3

    def test_one_object_in_many_threads_at_once(self):
        scope, barrier = session_scope("a"), threading.Barrier(8)

        def work(number):
            seen = [current_session_id()]
            with scope:
                barrier.wait(10)
                seen.append(current_session_id())
                barrier.wait(10)
            return [*seen, current_session_id()]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == [[None, "a", None]] * 8

    def test_leaving_out_of_order_never_takes_away_another_scope(self):
        outer, inner = session_scope("outer"), session_scope("inner")
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert current_session_id() == "inner"
        inner.__exit__(None, None, None)
        assert current_session_id() is None
        with session_scope("a"):
            inner.__exit__(None, None, None)
            assert current_session_id() == "a"

    def test_a_bare_with_around_a_yield_leaks_as_documented(self):
        def body():
            with session_scope("a"):
                yield

        steps = body()
        next(steps)
        assert current_session_id() == "a"
        with session_scope("b"):
            steps.close()
            assert current_session_id() == "b"
        assert current_session_id() is None

    @pytest.mark.parametrize("scope", [session_scope("a"), no_session()])
    def test_scopes_can_be_copied_and_pickled(self, scope):
        for twin in (copy.deepcopy(scope), pickle.loads(pickle.dumps(scope))):
            with scope as one, twin as two:
                assert one == two


class TestInvalidIDs:
    @pytest.mark.parametrize(
        ("session_id", "says"),
        [
            ("", "is empty: ''"),
            (" ", r"has ' ' at position 0"),
            ("a b", r"has ' ' at position 1"),
            ("a\r\nX: y", r"has '\r' at position 1"),
            ("a\x00", r"has '\x00'"),
            ("é", r"has '\xe9' at position 0"),
            ("a\u202e", r"has '\u202e' at position 1"),
            ("x" * 257, "has 257 characters, 256 at most"),
        ],
    )
    def test_are_refused_on_entering(self, session_id, says):
        scope = session_scope(session_id)
        with pytest.raises(InvalidSessionID) as caught:
            scope.__enter__()
        message = str(caught.value)
        assert says in message
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 200
        assert isinstance(caught.value, ValueError)
        assert current_session_id() is None

    @pytest.mark.parametrize("session_id", ["!", "~", "x" * 256, "a/b:c,d;e=\"f'", "{}"])
    def test_good_ones_are_taken_as_they_are(self, session_id):
        with session_scope(session_id) as bound:
            assert bound == current_session_id() == session_id

    @pytest.mark.parametrize("value", [None, 1, b"s1", uuid.uuid4()])
    def test_anything_but_a_str_is_a_type_error_at_once(self, value):
        with pytest.raises(TypeError, match=f"must be a str, not {type(value).__name__}"):
            session_scope(value)

    def test_a_str_subclass_becomes_a_plain_str(self):
        class Name(str, enum.Enum):
            A = "s1"

        with session_scope(Name.A) as session_id:
            assert type(session_id) is str
            assert session_id == "s1"

    def test_a_decorated_function_is_refused_when_called(self):
        @session_scope("not valid")
        def fn():
            raise AssertionError("must not run")

        with pytest.raises(InvalidSessionID):
            fn()


class TestFunctions:
    def test_every_call_has_a_scope_of_its_own(self):
        @session_scope()
        def fn(depth):
            mine = current_session_id()
            inner = fn(depth - 1) if depth else []
            assert current_session_id() == mine
            return [mine, *inner]

        ids = fn(3) + fn(0)
        assert len(set(ids)) == 5
        assert current_session_id() is None

    def test_keeps_what_it_was(self):
        def fn(a: int, *, b: str = "x") -> str:
            """Doc."""

        for decorate in (session_scope("a"), no_session(), session_from("b")):
            covered = decorate(fn)
            assert covered.__name__ == "fn"
            assert covered.__qualname__ == fn.__qualname__
            assert covered.__doc__ == "Doc."
            assert covered.__module__ == __name__
            assert inspect.signature(covered) == inspect.signature(fn)
            assert isinstance(covered, types.FunctionType)

    def test_methods(self):
        class Agent:
            session_id = "of-the-class"

            def __init__(self):
                self.session_id = "of-the-object"

            @session_scope("a")
            def method(self):
                return self, current_session_id()

            @session_from("self.session_id")
            def from_self(self):
                return current_session_id()

            @classmethod
            @session_from("cls.session_id")
            def inner_class(cls):
                return current_session_id()

            @session_from("cls.session_id")
            @classmethod
            def outer_class(cls):
                return current_session_id()

            @staticmethod
            @session_scope("b")
            def inner_static():
                return current_session_id()

            @session_scope("c")
            @staticmethod
            def outer_static():
                return current_session_id()

        agent = Agent()
        assert agent.method() == (agent, "a")
        assert agent.from_self() == "of-the-object"
        assert Agent.inner_class() == agent.outer_class() == "of-the-class"
        assert agent.inner_static() == "b"
        assert Agent.outer_static() == "c"

    def test_partials_and_callable_objects(self):
        class Tool:
            def __call__(self, suffix):
                return f"{current_session_id()}{suffix}"

        assert session_scope("a")(Tool())("!") == "a!"
        assert session_scope("a")(functools.partial(Tool(), "?"))() == "a?"

        class Streaming:
            def __call__(self):
                yield current_session_id()

        assert list(session_scope("a")(Streaming())()) == ["a"]

    @pytest.mark.parametrize("decorate", [session_scope("a"), no_session(), session_from("x")])
    def test_what_cannot_be_decorated(self, decorate):
        with pytest.raises(TypeError, match="cannot decorate the class"):
            decorate(type("Agent", (), {"__init__": lambda self, x: None}))
        with pytest.raises(TypeError, match="is not"):
            decorate(5)


class TestSessionFrom:
    def test_positional_keyword_and_default(self):
        @session_from("session_id")
        def fn(a, session_id="default", *args, **kwargs):
            return current_session_id()

        assert fn(1) == "default"
        assert fn(1, "s1") == "s1"
        assert fn(1, "s1", "more") == "s1"
        assert fn(1, session_id="s2", b=3) == "s2"

    def test_keyword_only_and_positional_only(self):
        @session_from("session_id")
        def keyword(*args, session_id):
            return current_session_id()

        @session_from("session_id")
        def positional(session_id, /, **kwargs):
            return current_session_id()

        assert keyword("no", "not me", session_id="s1") == "s1"
        assert positional("s1", session_id="not me") == "s1"

    def test_attributes(self):
        class Call:
            sess = types.SimpleNamespace(id="s1")

        @session_from("call.sess.id")
        def fn(call):
            return current_session_id()

        assert fn(Call) == "s1"
        with pytest.raises(AttributeError):
            fn(object())

    @pytest.mark.parametrize("name", ["missing", "args", "kwargs", "", "missing.id"])
    def test_a_name_that_is_no_parameter_fails_at_decoration(self, name):
        with pytest.raises(TypeError, match=r"has no parameter"):

            @session_from(name)
            def fn(a, *args, **kwargs): ...

    def test_a_missing_argument_is_pythons_own_error(self):
        @session_from("session_id")
        def fn(session_id): ...

        with pytest.raises(TypeError, match="session_id"):
            fn()

    def test_bad_values_are_refused_before_the_body_runs(self):
        @session_from("sess.id")
        def fn(sess):
            raise AssertionError("must not run")

        with pytest.raises(TypeError, match=r"'sess\.id' must be a str, not NoneType"):
            fn(types.SimpleNamespace(id=None))
        with pytest.raises(InvalidSessionID):
            fn(types.SimpleNamespace(id=""))

    def test_generators_and_coroutines(self):
        @session_from("session_id")
        def stream(session_id):
            yield current_session_id()

        @session_from("session_id")
        async def call(session_id):
            return current_session_id()

        assert list(stream("s1")) == ["s1"]
        assert asyncio.run(call("s1")) == "s1"


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
    def test_the_end_is_covered_too(self, end):
        seen = []

        @session_scope("body")
        def body():
            try:
                yield
            finally:
                seen.append(current_session_id())

        with session_scope("caller"):
            steps = body()
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

    def test_two_that_are_driven_in_turn(self):
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

    def test_handed_between_threads(self):
        @session_scope("body")
        def body():
            for _ in range(20):
                yield current_session_id(), threading.get_ident()

        steps = body()
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
            for pool in (one, two) * 10:
                assert pool.submit(next, steps).result()[0] == "body"
                assert pool.submit(current_session_id).result() is None

    def test_what_close_gives_and_refuses(self):
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

    def test_throwing_into_one_that_has_not_begun(self):
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

    def test_an_exception_does_not_keep_itself_alive(self):
        class Oops(Exception):
            pass

        @session_scope("a")
        def body():
            try:
                yield
            except Oops:
                yield

        gc.collect()
        gc.disable()
        try:
            steps = body()
            next(steps)
            error = Oops()
            gone = weakref.ref(error)
            steps.throw(error)
            del error
            steps.close()
            del steps
            assert gone() is None
        finally:
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

    def test_tasks_that_the_body_starts_are_in_session(self):
        async def child():
            return current_session_id()

        @session_scope("body")
        async def body():
            return await asyncio.create_task(child())

        assert asyncio.run(body()) == "body"

    def test_stays_a_coroutine_function(self):
        @session_scope("a")
        async def body(a): ...

        assert inspect.iscoroutinefunction(body)
        coroutine = body(1)
        assert inspect.iscoroutine(coroutine)
        coroutine.close()


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
    def test_left_half_way(self, dropped):
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

    def test_stays_an_async_generator_function(self):
        @session_scope("a")
        async def body(a):
            yield

        assert inspect.isasyncgenfunction(body)
        assert inspect.isasyncgen(body(1))


def test_recursion_deep_enough_for_anyone():
    @session_scope()
    def deeper(depth):
        return deeper(depth - 1) if depth else current_session_id()

    assert deeper(sys.getrecursionlimit() // 4) is not None
    assert current_session_id() is None
