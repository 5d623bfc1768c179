"""session_scope and no_session as context managers, and which session IDs are valid."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import enum
import gc
import inspect
import pickle
import threading
import time
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.lifetime import Item, Watch
from support.proxies import TextProxy

from cagent_session import (
    InvalidSessionID,
    bind_session,
    current_session_id,
    no_session,
    session_scope,
)
from cagent_session._session import scopes


class TestScope:
    def test_scope_binds_and_returns_the_id(self):
        assert current_session_id() is None
        with session_scope("s1") as session_id:
            assert session_id == "s1"
            assert current_session_id() == "s1"
        assert current_session_id() is None

    def test_scopes_nest(self):
        with session_scope("a"):
            with session_scope("b"):
                assert current_session_id() == "b"
                with no_session() as nothing:
                    assert nothing is None
                    assert current_session_id() is None
                assert current_session_id() == "b"
            assert current_session_id() == "a"

    def test_scope_restores_after_an_exception(self):
        with session_scope("a"):
            with pytest.raises(KeyError), session_scope("b"):
                raise KeyError
            assert current_session_id() == "a"

    def test_entering_the_current_session_again_is_harmless(self):
        scope = session_scope("a")
        with scope, scope, session_scope("a"):
            assert current_session_id() == "a"
        assert current_session_id() is None

    def test_scope_without_an_id_gets_a_fresh_one_at_each_entry(self):
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

    def test_leaving_many_in_the_order_of_entering_is_no_more_than_quadratic(self):
        def time_for(number):
            scopes = [session_scope(f"s{n}") for n in range(number)]
            for scope in scopes:
                scope.__enter__()
            start = time.process_time()
            for scope in scopes:
                scope.__exit__(None, None, None)
            return time.process_time() - start

        # Quadratic would be 16, cubic 64.
        assert min(time_for(1200) for _ in range(3)) < 40 * min(time_for(300) for _ in range(3))
        assert current_session_id() is None

    @pytest.mark.parametrize("kind", ["with", "function", "bound", "coroutine"])
    def test_job_that_starts_its_successor_takes_no_more_memory(self, kind):
        def job(start, left):
            with session_scope():
                start(left)

        @session_scope()
        def function(start, left):
            start(left)

        @session_scope()
        async def coroutine(start, left):
            await asyncio.sleep(0)
            start(left)

        async def main(runs):
            loop = asyncio.get_running_loop()
            ended = loop.create_future()
            tasks = set()

            def start(left):
                if not left:
                    gc.collect()
                    ended.set_result(tracemalloc.get_traced_memory()[0])
                elif kind == "coroutine":
                    task = loop.create_task(coroutine(start, left - 1))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                else:
                    loop.call_soon(jobs[kind](), start, left - 1)

            jobs = {
                "with": lambda: job,
                "function": lambda: function,
                "bound": lambda: bind_session(call),
            }

            def call(start, left):
                start(left)

            start(runs)
            return await ended

        def growth():
            few, many = (asyncio.run(main(runs)) for runs in (300, 3300))
            return many - few

        # What other threads and asyncio's debug mode take is not there each time.
        tracemalloc.start()
        try:
            assert min(growth() for _ in range(3)) < 100_000  # 3,000 frames are more than 300,000
        finally:
            tracemalloc.stop()

    def test_generator_whose_steps_are_driven_by_their_own_tasks_takes_no_more_memory(self):
        @session_scope("dispatcher")
        async def dispatcher(handle):
            item = None
            while True:
                if item is not None:
                    tasks.append(asyncio.create_task(handle(item)))
                    await asyncio.sleep(0)
                item = yield

        async def main(items):
            async def handle(item):
                tasks.clear()
                if item == items:
                    over.set_result(tracemalloc.get_traced_memory()[0])
                    return
                while steps.ag_running:
                    await asyncio.sleep(0)
                await steps.asend(item + 1)

            over = asyncio.get_running_loop().create_future()
            steps = dispatcher(handle)
            await anext(steps)
            await steps.asend(1)
            return await over

        tasks: list[object] = []
        tracemalloc.start()
        try:
            few, many = (asyncio.run(main(items)) for items in (300, 3300))
            assert many - few < 100_000  # 3,000 frames are more than 300,000
        finally:
            tracemalloc.stop()

    def test_one_object_that_another_context_leaves_stays_open_here(self):
        tenant = session_scope("tenant")

        def steps():
            with tenant:
                yield

        def open_many():
            for number in range(100):
                session_scope(f"s{number}").__enter__()

        def body():
            with tenant:
                generator = steps()
                contextvars.copy_context().run(next, generator)
                contextvars.copy_context().run(generator.close)
                contextvars.copy_context().run(open_many)
            return current_session_id()

        with session_scope("server"):
            with session_scope("main"):
                context = contextvars.copy_context()
            assert context.run(body) == "main"

    @pytest.mark.parametrize("during", ["_search", "_with_nested"])
    def test_scope_that_a_finalizer_closes_meanwhile_stays_closed(self, monkeypatch, during):
        def body():
            with session_scope("dead"):
                yield

        original = getattr(scopes, during)

        def with_collection(*args):
            result = original(*args)
            monkeypatch.undo()
            steps.close()  # as the garbage collector may, at any moment
            return result

        outer, inner = session_scope("outer"), session_scope("inner")
        outer.__enter__()
        steps = body()
        next(steps)
        inner.__enter__()
        monkeypatch.setattr(scopes, during, with_collection)
        outer.__exit__(None, None, None)
        assert current_session_id() == "inner"
        inner.__exit__(None, None, None)
        assert current_session_id() is None

    def test_scope_ends_below_many_that_nobody_can_close(self):
        def body():
            outer, inner = session_scope("outer"), session_scope("inner")
            outer.__enter__()
            for number in range(300):
                session_scope(f"s{number}").__enter__()
            inner.__enter__()
            outer.__exit__(None, None, None)
            assert current_session_id() == "inner"
            inner.__exit__(None, None, None)
            assert current_session_id() == "s299"

        contextvars.Context().run(body)

    def test_scope_that_a_generator_in_a_cycle_left_open_is_closed(self):
        class Agent:
            def __init__(self):
                self.steps = self.run()

            def run(self):
                with session_scope("a"):
                    yield

        next(Agent().steps)
        gc.collect()
        assert current_session_id() is None

    def test_a_collection_keeps_no_values_of_other_variables_alive(self):
        other = contextvars.ContextVar("other")

        def body():
            value = Item()
            other.set(value)
            gc.collect(0)
            return Watch(value)

        watch = contextvars.copy_context().run(body)
        assert watch.is_gone

    def test_a_with_around_a_yield_leaks_as_documented(self):
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

    @pytest.mark.parametrize(
        ("scope", "shown"),
        [
            (session_scope("s1"), "session_scope('s1')"),
            (session_scope(), "session_scope()"),
            (session_scope("s2", parent="s1"), "session_scope('s2', parent='s1')"),
            (session_scope("\n" + "x" * 99), "session_scope('\\n" + "x" * 59 + "'...)"),
            (no_session(), "no_session()"),
        ],
    )
    def test_repr_shows_the_session(self, scope, shown):
        assert repr(scope) == shown

    def test_signature_says_what_is_left_out(self):
        assert str(inspect.signature(session_scope)) == (
            "(session_id: 'str' = <a fresh UUID4>, *, parent: 'str' = <the session outside>) "
            "-> 'None'"
        )

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
            ("~ ", "has ' ' at position 1"),
            ("x" * 255 + " ", "has ' ' at position 255"),
            ("x" * 257, "has 257 characters, 256 at most"),
        ],
    )
    def test_invalid_id_is_refused_on_entering(self, session_id, says):
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

    @pytest.mark.parametrize(
        ("length", "shown"), [(60, "é" * 60), (61, "é" * 60 + "..."), (256, "é" * 60 + "...")]
    )
    def test_long_invalid_id_is_cut_in_the_error(self, length, shown):
        with pytest.raises(InvalidSessionID) as caught:
            session_scope("é" * length).__enter__()
        escaped = "'" + "\\xe9" * 60 + "'" + shown[60:]
        assert str(caught.value).endswith(f"can be sent: {escaped}")

    @pytest.mark.parametrize("session_id", ["!", "~", "x" * 256, "a/b:c,d;e=\"f'", "{}"])
    def test_valid_id_is_taken_as_it_is(self, session_id):
        with session_scope(session_id) as bound:
            assert bound == current_session_id() == session_id

    @pytest.mark.parametrize(
        ("value", "remedy"),
        [
            (None, r"write (session_scope\(\) for a fresh ID|no parent= to have it inferred)"),
            (1, r"pass str\(\.\.\.\) of it"),
            (uuid.uuid4(), r"pass str\(\.\.\.\) of it"),
            (b"s1", "decode it first"),
            (TextProxy("s1"), r"pass str\(\.\.\.\) of it"),
        ],
    )
    def test_id_that_is_no_str_is_a_type_error_at_once(self, value, remedy):
        message = f"ID must be a str, not {type(value).__name__}: {remedy}"
        for options in ({"session_id": value}, {"session_id": "a", "parent": value}):
            with pytest.raises(TypeError, match=message):
                session_scope(**options)

    def test_a_parent_has_to_be_valid_too(self):
        with pytest.raises(InvalidSessionID, match=r"^parent session ID has ' ' at position 1"):
            session_scope("a", parent="b c").__enter__()
        assert current_session_id() is None

    def test_a_str_subclass_becomes_a_plain_str(self):
        class Name(str, enum.Enum):
            A = "s1"

        with session_scope(Name.A) as session_id:
            assert type(session_id) is str
            assert session_id == "s1"

    def test_overridden_methods_of_a_str_subclass_are_not_used(self):
        class Name(str):
            def __iter__(self):
                return iter("valid")

            def __len__(self):
                return 5

        with pytest.raises(InvalidSessionID, match="has ' ' at position 1"):
            session_scope(Name("a b")).__enter__()

    def test_a_decorated_function_is_refused_when_called(self):
        @session_scope("not valid")
        def fn():
            raise AssertionError("must not run")

        with pytest.raises(InvalidSessionID):
            fn()
