"""Run the body of a function with one context variable set, whatever kind of function it is.

Setting a variable around a call is not enough for a generator or a coroutine: its body runs
later, in steps, and between them the variable must have the value that it has for the caller.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, TypeAlias

_Function: TypeAlias = Callable[..., Any]
_ValueFor: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Any]


def cover(fn: _Function, variable: ContextVar[Any], value_for: _ValueFor) -> _Function:
    """Wrap ``fn`` so that in its body ``variable`` has the value that ``value_for`` gives.

    The wrapper is of the same kind as ``fn``, and keeps its name, docstring and signature.

    :param value_for: gets the arguments of each call, as the body begins.
    """
    import inspect  # here, because it would double the import time of the package

    if not callable(fn):
        raise TypeError(f"{fn!r} is not callable")
    runs = (fn, type(fn).__call__)  # an object with a method __call__ is of that method's kind
    if any(map(inspect.isgeneratorfunction, runs)):
        covered = _cover_generator(fn, variable, value_for)
    elif any(map(inspect.iscoroutinefunction, runs)):
        covered = _cover_coroutine(fn, variable, value_for)
    elif any(map(inspect.isasyncgenfunction, runs)):
        covered = _cover_async_generator(fn, variable, value_for)
    else:
        covered = _cover_function(fn, variable, value_for)
    return functools.wraps(fn)(covered)


def _cover_function(fn: _Function, variable: ContextVar[Any], value_for: _ValueFor) -> _Function:
    def covered(*args: Any, **kwargs: Any) -> Any:
        inside = value_for(args, kwargs)
        outside = variable.get()
        variable.set(inside)
        try:
            return fn(*args, **kwargs)
        finally:
            variable.set(outside)

    return covered


def _cover_generator(fn: _Function, variable: ContextVar[Any], value_for: _ValueFor) -> _Function:
    return _stepwise(
        variable,
        lambda *args, **kwargs: (_Inside(value_for(args, kwargs)), fn(*args, **kwargs)),
    )


def _cover_coroutine(fn: _Function, variable: ContextVar[Any], value_for: _ValueFor) -> _Function:
    drive = _cover_generator(fn, variable, value_for)

    async def covered(*args: Any, **kwargs: Any) -> Any:
        return await _Awaitable(drive(*args, **kwargs))

    return covered


def _cover_async_generator(
    fn: _Function, variable: ContextVar[Any], value_for: _ValueFor
) -> _Function:
    drive = _stepwise(variable, lambda inside, step: (inside, step))

    async def covered(*args: Any, **kwargs: Any) -> Any:
        inside = _Inside(value_for(args, kwargs))
        body = fn(*args, **kwargs)
        # At shutdown the event loop closes the generators that it has seen, in any order. It is
        # to see the wrapper alone, which then closes the body with the value of the body.
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)
        try:
            step = body.asend(None)
        finally:
            sys.set_asyncgen_hooks(*hooks)
        while True:
            try:
                item = await _Awaitable(drive(inside, step))
            except StopAsyncIteration:
                return
            try:
                step = body.asend((yield item))
            except BaseException as exc:
                step = body.athrow(exc)

    return covered


class _Inside:
    """The value in a body, kept while the body is suspended."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Awaitable:
    """Lets ``await`` drive a generator."""

    def __init__(self, steps: Generator[Any, Any, Any]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._steps


def _stepwise(variable: ContextVar[Any], begin: _Function) -> _Function:
    """A generator function that runs the body which ``begin`` gives, each step inside.

    Only ``variable`` is exchanged around a step, so that every other context variable behaves
    as it would without us. ``close()`` needs no case of its own: it throws ``GeneratorExit``,
    and the body may answer that, too, as it likes.
    """

    def drive(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inside, body = begin(*args, **kwargs)
        step, argument = body.send, None
        while True:
            outside = variable.get()
            variable.set(inside.value)
            try:
                item = step(argument)
            except StopIteration as stop:
                return stop.value
            finally:
                inside.value = variable.get()
                variable.set(outside)
                argument = None  # or an exception would keep itself alive through this frame
            try:
                argument = yield item
                step = body.send
            except BaseException as exc:
                step, argument = body.throw, exc

    return drive
