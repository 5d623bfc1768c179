"""session_scope and session_from on functions: what they cover, and what stays as it was."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import types
from unittest import mock

import pytest
from support.lifetime import Item, Watch

from cagent_session import (
    InvalidSessionID,
    current_session_id,
    no_session,
    session_from,
    session_scope,
)

FOR_NONE = (
    "pass an ID; if there may be none, leave the decorator out, and call the function inside "
    "session_scope(...) or no_session()"
)


class LooksLikeIt:
    """A decorator's wrapper that says it is the function in it, as those of wrapt do."""

    __class__ = property(lambda self: types.FunctionType)  # type: ignore[assignment]

    def __init__(self, wrapped, change):
        self._wrapped = wrapped
        self._change = change

    def __getattr__(self, name):
        return getattr(self._wrapped, name)

    def __call__(self, *args):
        return self._change(self._wrapped(*args))


async def items_of(stream):
    return [item async for item in stream]


class PartialOfAKind(functools.partial):
    pass


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

    def test_decorated_function_keeps_name_docstring_and_signature(self):
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

    def test_methods_classmethods_and_staticmethods_are_covered(self):
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

    @pytest.mark.parametrize(
        "inside",
        [
            lambda tool: tool,
            functools.partial,
            lambda tool: types.MethodType(tool, "self"),
            lambda tool: functools.partial(types.MethodType(tool, "self"), 1),
            lambda tool: types.MethodType(functools.partial(tool, 1), "self"),
            PartialOfAKind,
        ],
    )
    def test_callable_objects_that_run_in_steps(self, inside):
        class Streaming:
            def __call__(self, *args):
                yield current_session_id()

        class Answering:
            async def __call__(self, *args):
                return current_session_id()

        class AsyncStreaming:
            async def __call__(self, *args):
                yield current_session_id()

        def covered(tool):
            return session_scope("a")(inside(tool))()

        assert list(covered(Streaming())) == ["a"]
        assert asyncio.run(covered(Answering())) == "a"
        assert asyncio.run(items_of(covered(AsyncStreaming()))) == ["a"]

    def test_what_a_wrapper_does_that_says_it_is_the_function_in_it(self):
        seen: list[str | None] = []

        def note(made):
            seen.append(current_session_id())
            return made

        @session_scope("a")
        @lambda fn: LooksLikeIt(fn, note)
        async def answering():
            return current_session_id()

        @session_scope("a")
        @lambda fn: LooksLikeIt(fn, note)
        def streaming():
            got = yield current_session_id()
            return got, current_session_id()

        @session_scope("a")
        @lambda fn: LooksLikeIt(fn, note)
        async def async_streaming():
            yield current_session_id()

        assert inspect.iscoroutinefunction(answering)
        assert asyncio.run(answering()) == "a"
        generator = streaming()
        assert next(generator) == "a"
        with pytest.raises(StopIteration) as stop:
            generator.send(1)
        assert stop.value.value == (1, "a")
        assert asyncio.run(items_of(async_streaming())) == ["a"]
        assert seen == ["a"] * 3

    def test_what_a_generator_returns_as_it_is_closed_survives_a_wrapper(self):
        def counting():
            count = 0
            try:
                while True:
                    count += yield current_session_id()
            except GeneratorExit:
                return count, current_session_id()

        def results_of(fn):
            steps = fn()
            next(steps)
            steps.send(2)
            results = [steps.close()]  # None before Python 3.13
            steps = fn()
            next(steps)
            with pytest.raises(StopIteration) as stop:
                steps.throw(GeneratorExit)
            return [*results, stop.value.value]

        wrapper = LooksLikeIt(counting, lambda steps: steps)
        with session_scope("a"):
            expected = results_of(counting)
        assert results_of(session_scope("a")(wrapper)) == expected

    def test_a_partial_with_a_call_of_its_own(self):
        class Answering(functools.partial):
            async def __call__(self):
                return self.func()

        class Logged(functools.partial):
            def __call__(self):
                seen.append(current_session_id())
                return super().__call__()

        async def body():
            return current_session_id()

        seen: list[str | None] = []
        assert asyncio.run(session_scope("a")(Answering(current_session_id))()) == "a"
        assert asyncio.run(session_scope("a")(Logged(body))()) == "a"
        assert seen == ["a"]

    def test_a_wrapper_around_an_async_generator_may_return_another_iterator(self):
        class Stream:
            def __init__(self, items):
                self._items = items

            def __aiter__(self):
                return self

            async def __anext__(self):
                return await anext(self._items)

        @session_scope("a")
        @lambda fn: LooksLikeIt(fn, Stream)
        async def streaming():
            yield current_session_id()

        assert asyncio.run(items_of(streaming())) == ["a"]

    def test_a_wrapper_around_an_awaitable_generator_may_be_a_coroutine_function(self):
        async def awaited(steps):
            return await steps

        @session_scope("a")
        @lambda fn: LooksLikeIt(fn, awaited)
        @types.coroutine
        def body():
            yield from asyncio.sleep(0).__await__()
            return current_session_id()

        async def main():
            return await body()

        assert asyncio.run(main()) == "a"

    @pytest.mark.parametrize("mock_class", [mock.Mock, mock.MagicMock, mock.AsyncMock])
    def test_a_mock_of_a_function_is_called(self, mock_class):
        def body(): ...

        double = mock_class(spec=body, side_effect=lambda: current_session_id())
        result = session_scope("a")(double)()
        assert (asyncio.run(result) if mock_class is mock.AsyncMock else result) == "a"

    def test_a_callable_object_in_a_class_is_no_method(self):
        class Tool:
            def __call__(self, *args):
                return args, current_session_id()

        class Agent:
            tool = session_scope("a")(Tool())
            builtin = session_scope("c")(len)
            bound = session_scope("d")(Tool().__call__)

        agent = Agent()
        assert agent.tool("x") == (("x",), "a")
        assert agent.builtin("abc") == 3
        assert agent.bound() == ((), "d")

    def test_a_callable_object_in_a_classmethod_is_given_the_class(self):
        class Loader:
            def __call__(self, *args):
                return args, current_session_id()

        class Table:
            inner = classmethod(session_scope("a")(Loader()))
            outer = session_scope("b")(classmethod(Loader()))
            partial = classmethod(session_scope("c")(functools.partial(Loader())))

        assert Table.inner("x") == ((Table, "x"), "a")
        assert Table.outer("x") == ((Table, "x"), "b")
        assert Table.partial("x") == ((Table, "x"), "c")

    def test_what_a_partial_is_of_can_still_be_seen(self):
        async def call(a): ...

        def stream(a):
            yield

        decorate = session_scope("a")
        assert inspect.iscoroutinefunction(decorate(functools.partial(call, 1)))
        assert inspect.isgeneratorfunction(decorate(functools.partial(stream, 1)))
        assert str(inspect.signature(decorate(functools.partial(call, 1)))) == "()"

    def test_a_scope_of_the_caller_that_the_function_closes(self):
        @session_scope("inner")
        def fn():
            stack.close()
            session_scope("left-open").__enter__()
            return current_session_id()

        with session_scope("outermost"):
            with contextlib.ExitStack() as stack:
                stack.enter_context(session_scope("caller"))
                assert fn() == "left-open"
                assert current_session_id() == "outermost"
            assert current_session_id() == "outermost"

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="Python itself keeps them until then")
    def test_decorated_function_can_free_its_arguments(self):
        @session_scope("a")
        def fn(positional, *, named):
            watches = [Watch(positional), Watch(named)]
            del positional, named
            return [watch.is_gone for watch in watches]

        are_gone = fn(Item(), named=Item())  # in an assert, pytest would keep them
        assert are_gone == [True, True]

    def test_forgotten_parentheses(self):
        for decorate, says in (
            (session_scope, r"write @session_scope\(\)"),
            (no_session, r"write @no_session\(\)"),
            (session_from, r'write @session_from\("\.\.\."\)'),
        ):
            with pytest.raises(TypeError, match=says):

                @decorate
                def fn(): ...

    @pytest.mark.parametrize("decorate", [session_scope("a"), no_session(), session_from("x")])
    def test_what_cannot_be_decorated(self, decorate):
        with pytest.raises(TypeError, match="cannot decorate the class"):
            decorate(type("Agent", (), {"__init__": lambda self, x: None}))
        with pytest.raises(TypeError, match="is not"):
            decorate(5)

    @pytest.mark.parametrize("decorate", [session_scope("a"), no_session(), session_from("x")])
    @pytest.mark.parametrize("kind", [classmethod, staticmethod])
    def test_a_wrapper_that_says_it_is_a_classmethod(self, decorate, kind):
        """wrapt's wrapper is no classmethod, and binds by itself."""

        class Wrapper:
            __class__ = property(lambda self: kind)  # type: ignore[assignment]
            __func__ = lambda cls, x: None  # noqa: E731

        says = rf"cannot decorate what Wrapper has made of a {kind.__name__}: decorate .*, below @"
        with pytest.raises(TypeError, match=says):
            decorate(Wrapper())


class TestSessionFrom:
    def test_session_from_takes_positional_keyword_and_default_values(self):
        @session_from("session_id")
        def fn(a, session_id="default", *args, **kwargs):
            return current_session_id()

        assert fn(1) == "default"
        assert fn(1, "s1") == "s1"
        assert fn(1, "s1", "more") == "s1"
        assert fn(1, session_id="s2", b=3) == "s2"

    def test_session_from_takes_keyword_only_and_positional_only_values(self):
        @session_from("session_id")
        def keyword(*args, session_id):
            return current_session_id()

        @session_from("session_id")
        def positional(session_id, /, **kwargs):
            return current_session_id()

        assert keyword("no", "not me", session_id="s1") == "s1"
        assert positional("s1", session_id="not me") == "s1"

    def test_session_from_takes_attributes_of_an_argument(self):
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

    @pytest.mark.parametrize("name", ["x.", "x..id", ".id", "x.1", "x. id"])
    def test_session_from_refuses_what_is_no_name(self, name):
        with pytest.raises(TypeError, match=r"not a parameter's name|has no parameter"):
            session_from(name)(lambda x: None)

    def test_session_from_takes_every_kind_of_callable(self):
        class Tool:
            def __call__(self, session_id):
                return current_session_id()

        def fn(a, session_id):
            return current_session_id()

        decorate = session_from("session_id")
        assert decorate(Tool())("s1") == "s1"
        assert decorate(Tool().__call__)(session_id="s1") == "s1"
        assert decorate(functools.partial(fn, 1))("s1") == "s1"
        assert decorate(functools.partial(fn, session_id="s1"))(1) == "s1"
        assert session_from("obj")(len)("s1") == 2
        for other in (Tool(), functools.partial(fn, 1, "s1"), len, print, dict.fromkeys, min):
            with pytest.raises(TypeError, match=r"has no (parameter|signature)"):
                session_from("missing")(other)

    def test_call_without_the_argument_names_function_and_argument(self):
        @session_from("session.id")
        def title(session):
            raise AssertionError("has no session")

        with pytest.raises(TypeError, match=r"title\(\) missing the argument 'session'$"):
            title()

    def test_an_error_shows_no_defaults(self):
        def fn(key="hunter2"): ...

        with pytest.raises(TypeError, match=r"fn\(key\) has no parameter 'x'"):
            session_from("x")(fn)

    def test_a_wrapper_that_fills_in_what_is_missing_is_not_fooled(self):
        """Its signature is that of what it wraps, so the argument is asked for."""

        @functools.wraps(lambda session_id: None)
        def filled_in(*args):
            raise AssertionError("must not run outside the session")

        with pytest.raises(TypeError, match="session_id"):
            session_from("session_id")(filled_in)()

    def test_a_missing_argument_is_pythons_own_error(self):
        @session_from("session_id")
        def fn(session_id): ...

        with pytest.raises(TypeError, match="session_id"):
            fn()

    def test_bad_values_are_refused_before_the_body_runs(self):
        @session_from("sess.id")
        def fn(sess):
            raise AssertionError("must not run")

        with pytest.raises(TypeError, match=r"'sess\.id' must be a str, not NoneType, in argument"):
            fn(types.SimpleNamespace(id=None))
        with pytest.raises(InvalidSessionID):
            fn(types.SimpleNamespace(id=""))

    @pytest.mark.parametrize("value", [None, types.SimpleNamespace(id=None)])
    def test_errors_name_the_argument_and_the_function(self, value):
        @session_from("sess.id")
        def fn(sess): ...

        with pytest.raises(
            (AttributeError, TypeError), match=r"argument 'sess' of .*fn\(\)"
        ) as error:
            fn(value)
        assert "'sess.id'" in str(error.value)

    @pytest.mark.parametrize(
        ("name", "value", "remedy"),
        [
            ("x", None, FOR_NONE),
            ("x.id", types.SimpleNamespace(id=None), FOR_NONE),
            ("x", 3, 'pass str(...) of it, or name its attribute: @session_from("session.id")'),
            ("x.id", types.SimpleNamespace(id=3), "store str(...) of it there"),
            ("x", b"s1", "decode it first"),
        ],
    )
    def test_remedy_fits_the_value(self, name, value, remedy):
        @session_from(name)
        def fn(x): ...

        with pytest.raises(TypeError) as error:
            fn(value)
        assert str(error.value).endswith(f".fn(): {remedy}")

    def test_session_from_covers_generators_and_coroutines(self):
        @session_from("session_id")
        def stream(session_id):
            yield current_session_id()

        @session_from("session_id")
        async def call(session_id):
            return current_session_id()

        assert list(stream("s1")) == ["s1"]
        assert asyncio.run(call("s1")) == "s1"


def test_recursion_deep_enough_for_anyone():
    @session_scope()
    def deeper(depth):
        return deeper(depth - 1) if depth else current_session_id()

    assert deeper(sys.getrecursionlimit() // 4) is not None
    assert current_session_id() is None
