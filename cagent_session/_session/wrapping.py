"""Run the body of a function with scopes open, whatever kind of function it is.

Entering a scope around a call is not enough for a generator or a coroutine: its body runs later,
in steps, and between them the caller must be in its own scopes again.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

Function: TypeAlias = Callable[..., Any]
# From the arguments of a call to a context manager that is entered anew for each step of the body.
ScopesFor: TypeAlias = Callable[
    [tuple[Any, ...], dict[str, Any]], AbstractContextManager[object, None]
]


def wrap(fn: Function, scopes_for: ScopesFor) -> Function:
    """Wrap ``fn`` so that its body runs in the scopes that ``scopes_for`` gives for each call.

    What comes back is of the same kind as ``fn``: a function that becomes a method in a class if
    ``fn`` does, a generator function, a coroutine function and so on. To pickle it by value, as
    cloudpickle does with what is defined in ``__main__``, takes no more than to pickle ``fn`` and
    ``scopes_for``; the wrappers below refer to nothing else but modules and their functions.

    :param scopes_for: called as the body begins.
    """
    if isinstance(fn, types.FunctionType) or (
        hasattr(type(fn), "__get__") and not isinstance(fn, functools.partial | types.MethodType)
    ):
        return wrap_body(fn, scopes_for)
    return WrappedCallable(fn, scopes_for)


def wrap_body(fn: Function, scopes_for: ScopesFor) -> Function:
    """What :func:`wrap` does, as a plain function in any case."""
    if not callable(fn):
        raise TypeError(f"{fn!r} is not callable")
    runs = (fn, type(fn).__call__)  # an object with a method __call__ is of that method's kind
    wrapped: Function
    if any(map(inspect.iscoroutinefunction, runs)):
        wrapped = _wrap_coroutine(fn, scopes_for)
    elif any(map(inspect.isasyncgenfunction, runs)):
        wrapped = _wrap_async_generator(fn, scopes_for)
    elif any(map(inspect.isgeneratorfunction, runs)):
        wrapped = _drive_stepwise(
            lambda *args, **kwargs: (scopes_for(args, kwargs), fn(*args, **kwargs))
        )
        if any(map(_is_awaitable, runs)):
            wrapped = types.coroutine(wrapped)
    else:
        wrapped = _wrap_function(fn, scopes_for)
    # A class has in its __dict__ what is no attribute of the wrapper.
    updated = () if isinstance(fn, type) else ("__dict__",)
    return functools.update_wrapper(wrapped, fn, updated=updated)


class WrappedCallable(functools.partial[Any]):
    """A callable that is wrapped, but that is not a function and does not turn into a method.

    A ``partial``, because ``inspect`` and ``asyncio`` look through one at the function in it.
    """

    __wrapped__: Function
    _scopes_for: ScopesFor

    def __new__(cls, fn: Function, scopes_for: ScopesFor) -> WrappedCallable:
        body = wrap_body(fn, scopes_for)
        self = super().__new__(cls, body)
        functools.update_wrapper(self, body)
        self.__wrapped__ = fn
        self._scopes_for = scopes_for
        return self

    def __get__(self, instance: object, owner: type | None = None) -> WrappedCallable:
        return self

    def __reduce__(self) -> Any:
        return type(self), (self.__wrapped__, self._scopes_for)

    def __repr__(self) -> str:
        return f"<{self.__wrapped__!r} bound to {self._scopes_for!r}>"


def _is_awaitable(fn: Any) -> bool:
    """Whether ``fn`` is a generator function that ``types.coroutine`` has made awaitable."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(fn, "__code__", None)  # a method has its function's
    return code is not None and bool(code.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _wrap_function(fn: Function, scopes_for: ScopesFor) -> Function:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with scopes_for(args, kwargs):
            # Handed over, and not kept here, so that fn may let go of them.
            positional, named = [args], [kwargs]
            del args, kwargs
            return fn(*positional.pop(), **named.pop())

    return wrapped


def _wrap_coroutine(fn: Function, scopes_for: ScopesFor) -> Function:
    drive = types.coroutine(
        _drive_stepwise(
            lambda *args, **kwargs: (scopes_for(args, kwargs), fn(*args, **kwargs).__await__())
        )
    )

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        steps = drive(*args, **kwargs)
        del args, kwargs
        return await steps

    return wrapped


def _wrap_async_generator(fn: Function, scopes_for: ScopesFor) -> Function:
    drive = types.coroutine(_drive_stepwise(lambda scopes, step: (scopes, step)))

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        scopes = scopes_for(args, kwargs)
        body = fn(*args, **kwargs)
        del args, kwargs
        step = _first_step(body)
        while True:
            try:
                items = [await drive(scopes, step)]
            except StopAsyncIteration:
                return
            finally:
                step = None
            try:
                step = body.asend((yield items.pop()))
            except BaseException as exc:
                step = body.athrow(exc)

    return wrapped


def _first_step(body: Any) -> Any:
    # At shutdown the event loop closes the generators that it has seen, in any order. It is to see
    # the wrapper alone, which then closes the body, in the body's scopes.
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return body.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _drive_stepwise(start: Function) -> Function:
    """A generator function that drives the body which ``start`` gives, each step in its scopes.

    ``close()`` needs no case of its own: it throws ``GeneratorExit``, and the body may answer
    that, too, as it likes. Nothing is kept from one step to the next, neither what was yielded nor
    what was sent; and nothing by a frame that an exception has left, or the two would keep each
    other alive.
    """

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        scopes, body = start(*args, **kwargs)
        del args, kwargs
        step, argument = body.send, None
        try:
            while True:
                try:
                    with scopes:
                        items = [step(argument)]
                except StopIteration as stop:
                    return stop.value
                finally:
                    argument = None
                try:
                    argument = yield items.pop()
                    step = body.send
                except BaseException as exc:
                    step, argument = body.throw, exc
        finally:
            body = step = None

    return wrapped
