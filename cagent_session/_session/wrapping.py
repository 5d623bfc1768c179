"""Run the body of a function with scopes open, whatever kind of function it is.

Entering a scope around a call is not enough for a generator or a coroutine: its body runs later, in
steps, and between two steps the caller must be in its own scopes again.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

Function: TypeAlias = Callable[..., Any]
# From the arguments of a call to a context manager that is entered anew for each step of the body.
ScopesFor: TypeAlias = Callable[
    [tuple[Any, ...], dict[str, Any]], AbstractContextManager[object, None]
]


def wrap(fn: Function, scopes_for: ScopesFor) -> Function:
    """Wrap ``fn`` so that its body runs in the scopes that ``scopes_for`` returns for each call.

    The wrapper is of the same kind as ``fn``: a generator function, a coroutine function and so on,
    and as a class attribute it becomes a method if ``fn`` does. cloudpickle, which pickles by value
    what is defined in ``__main__``, needs no more than ``fn`` and ``scopes_for``: the wrappers
    below refer to nothing else but modules and importable functions.

    :param scopes_for: called as the body begins.
    """
    if isinstance(fn, functools.partial):
        return (_WrappedPartial if _is_method(fn) else WrappedCallable)(fn, scopes_for)
    if isinstance(fn, types.FunctionType) or (
        hasattr(type(fn), "__get__") and not isinstance(fn, types.MethodType)
    ):
        return wrap_body(fn, scopes_for)
    return WrappedCallable(fn, scopes_for)


def wrap_body(fn: Function, scopes_for: ScopesFor) -> Function:
    """Do what :func:`wrap` does, but return a plain function in any case."""
    wrapped = wrap_call(fn, scopes_for)
    # Otherwise a builtin, which has no annotations to copy, would show those of the wrapper.
    wrapped.__annotations__ = {}
    # The __dict__ of a class is left out: it has much that is no attribute of the wrapper.
    updated = () if isinstance(fn, type) else ("__dict__",)
    # A remote proxy, such as a method of xmlrpc.client, answers to every name with another proxy,
    # as some mocks do, and a function takes only a str as its name. Every class has a __module__
    # and a __doc__.
    names = (getattr(fn, "__name__", ""), getattr(fn, "__qualname__", ""))
    has_name = all(isinstance(name, str) for name in names)
    assigned = functools.WRAPPER_ASSIGNMENTS if has_name else ("__module__", "__doc__")
    return functools.update_wrapper(wrapped, fn, assigned, updated)


def wrap_call(fn: Function, scopes_for: ScopesFor) -> Function:
    """Do what :func:`wrap` does, but return a function without the name and signature of ``fn``."""
    if not callable(fn):
        raise TypeError(f"{fn!r} is not callable")
    if runs_at_once(fn):
        return _wrap_function(fn, scopes_for)
    runs = _what_runs(fn)
    # A call of anything else than a function, such as a decorator's wrapper that only says that it
    # is one, may run code at once, and that belongs to the body, too.
    is_begun_later = any(map(_is_begun_later, runs))
    if _is_any(_is_coroutine_function, runs):
        return _wrap_coroutine(fn if is_begun_later else _call_as_awaited(fn), scopes_for)
    if _is_any(inspect.isasyncgenfunction, runs):
        return _wrap_async_generator(fn, scopes_for, is_begun_later=is_begun_later)
    if _is_any(inspect.isgeneratorfunction, runs):
        is_awaitable = any(map(_is_awaitable, runs))
        wrapped = _wrap_generator(
            fn, scopes_for, by_task=is_awaitable, is_begun_later=is_begun_later
        )
        return types.coroutine(wrapped) if is_awaitable else wrapped
    if _is_any(_wraps_coroutine_function, (fn,)):
        return _wrap_wrapper(fn, scopes_for)
    return _wrap_function(fn, scopes_for)


_RUNS_IN_STEPS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def runs_at_once(fn: Any) -> bool:
    """Return whether a call of ``fn`` certainly runs its whole body, and none of it later.

    A quick check for functions, methods and builtins. It is false for all other objects, too:
    :func:`wrap_call` finds out about those, in ten times the time.
    """
    fn = _innermost(fn)
    if type(fn) is types.FunctionType:
        # A function with attributes may be marked by inspect.markcoroutinefunction().
        return not (fn.__code__.co_flags & _RUNS_IN_STEPS or fn.__dict__)
    return type(fn) is types.BuiltinFunctionType


def _what_runs(fn: Any) -> tuple[Any, ...]:
    """Return the functions of which one being a generator function, or the like, makes ``fn`` one.

    An object is a generator function if its ``__call__`` is.
    """
    by_call = type(_innermost(fn)).__call__
    # A mock of a function says that it is one, but the flags that inspect reads are a mock.
    is_mock = not isinstance(_flags_of(fn), int)
    return (by_call,) if is_mock else (fn, by_call)


def _is_any(kind: Callable[[Any], bool], functions: Iterable[Any]) -> bool:
    for fn in functions:
        with contextlib.suppress(Exception):  # see _flags_of()
            if kind(fn):
                return True
    return False


def _is_coroutine_function(fn: Any) -> bool:
    # asyncio's own mark, which Django sets, and inspect does not know. It has one if it is loaded.
    # On Python 3.10, a generator may have it, too.
    mark = getattr(sys.modules.get("asyncio.coroutines"), "_is_coroutine", None)
    is_marked = mark is not None and getattr(_innermost(fn), "_is_coroutine", None) is mark
    return inspect.iscoroutinefunction(fn) or (is_marked and not inspect.isgeneratorfunction(fn))


_MOST_WRAPPERS = 100  # around each other


def _wraps_coroutine_function(fn: Any) -> bool:
    """Return whether ``functools.wraps``, or wrapt, says that ``fn`` calls such a function."""
    # Not inspect.unwrap(), which stops at a bound method. Only through what is a function, or says
    # that it is one, as a wrapper of wrapt does: a remote proxy answers to __wrapped__ without end.
    for _ in range(_MOST_WRAPPERS):
        fn = _innermost(fn)
        is_function = isinstance(fn, types.FunctionType | types.MethodType)
        if not is_function or not hasattr(fn, "__wrapped__"):
            return _is_coroutine_function(fn)
        fn = fn.__wrapped__
    return False


def _is_begun_later(fn: Any) -> bool:
    """Return whether a call of ``fn`` certainly runs nothing, but makes a generator or the like."""
    is_function = type(_innermost(fn)) is types.FunctionType
    return is_function and bool(_flags_of(fn) & _RUNS_IN_STEPS)


def _innermost(fn: Any) -> Any:
    """Return what a method or a ``partial`` calls in the end."""
    while type(fn) is not types.FunctionType:
        # A subclass of partial may have a __call__() of its own.
        if type(fn).__call__ is functools.partial.__call__:
            fn = fn.func
        elif type(fn) is types.MethodType:
            fn = fn.__func__
        else:
            break
    return fn


def _flags_of(fn: Any) -> Any:
    """Return the flags of the code that ``fn`` runs; 0 if it has none in Python."""
    with contextlib.suppress(Exception):  # an object's __getattr__() may raise anything
        inner = _innermost(fn)
        while isinstance(inner, functools.partial):  # or what only says that it is one
            inner = _innermost(inner.func)
        return getattr(getattr(inner, "__code__", None), "co_flags", 0)
    return 0


def _is_awaitable(fn: Any) -> bool:
    """Return whether ``fn`` is a generator function made awaitable by ``types.coroutine``."""
    return bool(_flags_of(fn) & inspect.CO_ITERABLE_COROUTINE)


class WrappedCallable(functools.partial[Any]):
    """A wrapped callable that does not become a method when it is a class attribute.

    A ``partial``, because ``inspect`` and ``asyncio`` look through one at the function in it.
    """

    if TYPE_CHECKING:  # at run time these would be the annotations of every instance
        __wrapped__: Function
        _scopes_for: ScopesFor

    def __new__(cls, fn: Function, scopes_for: ScopesFor) -> WrappedCallable:
        body = wrap_body(fn, scopes_for)
        self = super().__new__(cls, body)
        functools.update_wrapper(self, body)
        self.__wrapped__ = fn
        self._scopes_for = scopes_for
        return self

    if sys.version_info >= (3, 14):
        # update_wrapper() copies only __annotate__, which functions turn into __annotations__.

        @property
        def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
            return self.func.__annotations__

    if sys.version_info >= (3, 13):
        # A partial has one since then. Before, classmethod would ask it, and lose the class.

        def __get__(self, instance: object, owner: type | None = None) -> Any:
            return self

    def __reduce__(self) -> Any:
        return type(self), (self.__wrapped__, self._scopes_for)

    def __repr__(self) -> str:
        return f"<{self.__wrapped__!r} bound to {self._scopes_for!r}>"


def _is_method(fn: functools.partial[Any]) -> bool:
    """Return whether a ``partial`` becomes a method, as it does from Python 3.14 on."""
    if sys.version_info >= (3, 14):
        return type(fn).__get__ is functools.partial.__get__  # a WrappedCallable has another
    return False


class _WrappedPartial(WrappedCallable):
    """A wrapped ``partial`` that becomes a method when it is a class attribute."""

    if sys.version_info >= (3, 14):
        __get__ = functools.partial.__get__  # type: ignore[assignment]


def _wrap_function(fn: Function, scopes_for: ScopesFor) -> Function:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with scopes_for(args, kwargs):
            # fn(*args, **kwargs), but without references of ours, so that fn can free its
            # arguments.
            positional, named = [args], [kwargs]
            del args, kwargs
            return fn(*positional.pop(), **named.pop())

    return wrapped


def _wrap_wrapper(fn: Function, scopes_for: ScopesFor) -> Function:
    """Wrap what is no coroutine function, but calls one, and may return the coroutine.

    Many a method of an SDK does, as ``create()`` of OpenAI's. Calling and awaiting it is one for
    its users.
    """
    # Once for all calls: it makes code, of which a profiler keeps a record each.
    drive = types.coroutine(_drive_stepwise(lambda given: given.pop(), by_task=True))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        scopes = scopes_for(args, kwargs)
        steps = _StepsOfCoroutine(scopes)
        positional, named = [args], [kwargs]  # as in _wrap_function()
        del args, kwargs
        with scopes:
            result = fn(*positional.pop(), **named.pop())
        if type(result) is not types.CoroutineType or not _is_unbegun(result):
            return result
        steps.take(result)
        # In a list, so that in the end nothing but the driver refers to the steps.
        covered: Any = _await(drive, [(scopes, steps)])
        covered.__name__, covered.__qualname__ = result.__name__, result.__qualname__
        return covered

    return wrapped


async def _await(drive: Function, given: list[Any]) -> Any:
    return await drive(given)


def _is_unbegun(coroutine: Any) -> bool:
    return bool(inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED)


def _wrap_generator(
    fn: Function, scopes_for: ScopesFor, *, by_task: bool, is_begun_later: bool
) -> Function:
    def start(*args: Any, **kwargs: Any) -> Any:
        scopes = scopes_for(args, kwargs)
        steps = _Steps(scopes)
        if is_begun_later:
            steps.take(fn(*args, **kwargs))
        else:
            with scopes:
                steps.take(_as_generator(fn(*args, **kwargs)))
        return scopes, steps

    return _drive_stepwise(start, by_task=by_task)


def _as_generator(items: Any) -> Any:
    """Return ``items`` with the methods of a generator.

    A generator is driven as it is: a generator around it would lose what it returns when closed.
    """
    return items if type(items) is types.GeneratorType else _delegating_to(items)


@types.coroutine  # as items may be a coroutine
def _delegating_to(items: Any) -> Any:
    return (yield from items)


def _wrap_coroutine(fn: Function, scopes_for: ScopesFor) -> Function:
    drive = types.coroutine(_wrap_generator(fn, scopes_for, by_task=True, is_begun_later=True))

    # Returning drive itself would do, but inspect takes only an async def for a coroutine function.
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        steps = drive(*args, **kwargs)
        del args, kwargs
        return await steps

    return wrapped


def _call_as_awaited(fn: Function) -> Function:
    """Make a coroutine function of what only says that it is one."""

    async def called(*args: Any, **kwargs: Any) -> Any:
        positional, named = [args], [kwargs]
        del args, kwargs
        return await fn(*positional.pop(), **named.pop())

    return called


class _Steps:
    """The steps of a generator or coroutine that ends in its scopes, even when nobody drives it.

    Python closes what it drops: the driver, and the body once more, if the body went on when the
    driver was closed. In a reference cycle, it may come to the body before the driver, but not
    before this object, which is made before the body.
    """

    def __init__(self, scopes: AbstractContextManager[object, None]) -> None:
        self._scopes = scopes
        self.send = self.throw = _raise

    def take(self, body: Any) -> None:
        """Make these the steps of ``body``."""
        self.send, self.throw = body.send, body.throw

    def __del__(self) -> None:
        with self._scopes:
            self.send = self.throw = _raise  # nothing else refers to the body, so this drops it


class _StepsOfCoroutine(_Steps):
    """The steps of a coroutine inside another one, which nobody may begin."""

    def __del__(self) -> None:
        coroutine = getattr(self.send, "__self__", None)
        if coroutine is not None and _is_unbegun(coroutine):
            coroutine.close()  # Python warns of the other one alone
        del coroutine
        super().__del__()


def _raise(exc: BaseException) -> Any:
    raise exc


def _wrap_async_generator(fn: Function, scopes_for: ScopesFor, *, is_begun_later: bool) -> Function:
    drive = types.coroutine(_drive_stepwise(lambda scopes, step: (scopes, step), by_task=True))

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        scopes = scopes_for(args, kwargs)
        if is_begun_later:
            body = fn(*args, **kwargs)
        else:
            with scopes:
                body = _as_async_generator(fn(*args, **kwargs))
        del args, kwargs
        step = _first_step(body)
        while True:
            try:
                items = [await drive(scopes, step)]  # a list, as in _drive_stepwise()
            except StopAsyncIteration:
                return
            finally:
                step = None
            try:
                step = body.asend((yield items.pop()))
            except BaseException as exc:
                step = _Throw(body, exc)

    return wrapped


def _as_async_generator(items: Any) -> Any:
    """Return ``items`` with the methods of an async generator."""
    return items if hasattr(items, "asend") else _each(items)


async def _each(items: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    async for item in items:
        yield item


class _Throw:
    """What ``body.athrow(exc)`` returns, but it lets go of ``exc`` as soon as it is over."""

    def __init__(self, body: Any, exc: BaseException) -> None:
        if isinstance(exc, GeneratorExit):
            # It leads to the wrapper, which may be dropped while the body waits.
            exc.__traceback__ = None
        self._step = body.athrow(exc)

    def send(self, value: Any) -> Any:
        try:
            return self._step.send(value)
        except BaseException:
            self._step = None
            raise

    def throw(self, exc: BaseException) -> Any:
        try:
            return self._step.throw(exc)
        except BaseException:
            self._step = None
            del exc  # its traceback leads to this frame
            raise


def _first_step(body: Any) -> Any:
    """Begin an async generator so that the wrapper around it alone closes it.

    The hooks of this moment stay with a generator for life. The event loop's would let the loop
    close the body at shutdown, in any order with the wrapper. Without a finalizer, Python closes
    the body itself when it is collected. Either would run the ``finally`` of the body in a session
    that happens to be current then.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, _leave_open)
    try:
        return body.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _leave_open(body: Any) -> None:
    """Do nothing when an async generator is collected: closing it is up to its wrapper."""


def _drive_stepwise(start: Function, *, by_task: bool) -> Function:
    """Return a generator function that drives the body from ``start``, each step in its scopes.

    ``close()`` needs no case of its own: it throws ``GeneratorExit``, which the body may handle as
    it likes. What was yielded, sent or thrown is not kept until the next step. When an exception
    leaves the frame, the frame lets go of the body: the two would keep each other alive.

    :param start: called with the arguments of a call; returns its scopes and its body.
    :param by_task: whether a task may be what drives the generator.
    """

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        scopes, body = start(*args, **kwargs)
        del args, kwargs
        step, argument = body.send, None
        try:
            while True:
                try:
                    with scopes:
                        try:
                            # A list that is emptied by the yield: the item is not kept until the
                            # next step. Called like this, as Python 3.11 and 3.12 take what they
                            # have cached behind a plain call for an instruction, and crash, when
                            # somebody closes or inspects a generator in the midst of it.
                            items = [step(*(argument,))]
                        except GeneratorExit as exit_:
                            # Its traceback, and that of what the body was handling, would keep the
                            # body's local variables, such as another generator, until the scopes
                            # are left.
                            exit_.__context__ = None
                            raise exit_.with_traceback(None)  # noqa: B904
                        finally:
                            step = argument = None
                except StopIteration as stop:
                    return stop.value
                try:
                    argument = yield items.pop()
                    step = body.send
                except BaseException as exc:
                    step, argument = body.throw, _copied(exc) if by_task else exc
        finally:
            body = step = argument = None

    return wrapped


def _copied(exc: BaseException) -> BaseException:
    """Return what to throw into the body: a copy of a cancellation, or else ``exc`` itself.

    The task that cancels holds ``exc`` until the step is over and its scopes are left. If the body
    has handled it, its traceback would hold local variables as long, such as another generator.
    """
    kind = type(exc)
    if kind.__module__ != "asyncio.exceptions" or issubclass(kind, Exception):
        return exc
    copied = kind(*exc.args)
    copied.__dict__.update(exc.__dict__)
    copied.__cause__, copied.__context__ = exc.__cause__, exc.__context__
    copied.__suppress_context__ = exc.__suppress_context__
    return copied.with_traceback(exc.__traceback__)
