"""Thread pools of other code: each call runs in the session that submitted it."""

from __future__ import annotations

import concurrent.futures
import multiprocessing.pool
import sys
import types
from contextlib import AbstractContextManager
from typing import Any

from .._patching import Switch, patch
from .._session.handoff import bind_call

# This is a ThreadPoolExecutor, too, but it pickles its calls for other interpreters. What
# bind_call() returns cannot be pickled.
_INTERPRETER_POOLS: tuple[type, ...] = ()
if sys.version_info >= (3, 14):
    from concurrent.futures import InterpreterPoolExecutor

    _INTERPRETER_POOLS = (InterpreterPoolExecutor,)

_switch = Switch(off=False)


def carry_session() -> AbstractContextManager[object]:
    """Run each call in a thread pool of this process in the session that submitted it.

    This does what :func:`~cagent_session.bind_session` does, for pools in code that you cannot
    change: agent frameworks, SDKs, ``loop.run_in_executor``. It covers ``submit`` and ``map`` of
    every ``ThreadPoolExecutor``, and the calls and callbacks of every
    ``multiprocessing.pool.ThreadPool``. A call that is submitted outside every session runs in
    none.

    :returns: a context manager that restores what was in force before. Ignore it to carry the
        session for the life of the process. Entered again, it carries the session again.

    ::

        carry_session()

        with carry_session():
            run_agent()

    ``threading.Thread`` is left alone: a thread that lives on would keep the session of the code
    that started it. The same holds for an endless loop that is submitted to a pool; submit it in
    ``no_session()``. Pools of processes and interpreters are left alone, too: see
    :class:`~cagent_session.SessionProcessPoolExecutor`.
    """
    by = "carry_session()"
    patch(concurrent.futures, "ThreadPoolExecutor.submit", _carry_submit, by=by)
    if sys.version_info >= (3, 14):
        patch(concurrent.futures, "ThreadPoolExecutor.map", _carry_map, by=by)
    # Pool defines these for processes as well, so they are patched on ThreadPool alone.
    for name in ("map", "starmap", "imap", "imap_unordered"):
        patch(multiprocessing.pool, f"ThreadPool.{name}", _carry_pool_call, by=by)
    for name in ("apply_async", "map_async", "starmap_async"):
        path, make_patch = f"ThreadPool.{name}", _carry_pool_call_with_callbacks
        patch(multiprocessing.pool, path, make_patch, by=by)
    return _switch.put(True)


def _bound(fn: Any) -> Any:
    if type(fn) is types.FunctionType and fn.__module__ == _OPENTELEMETRY:
        cell = _cell_of_wrapped(fn)
        if cell is not None:
            cell.cell_contents = bind_call(cell.cell_contents)
            return fn
    return bind_call(fn) if callable(fn) else fn  # the pool raises its own error for the rest


_OPENTELEMETRY = "opentelemetry.instrumentation.threading"


def _cell_of_wrapped(fn: Any) -> Any:
    """Return the cell of the function in the wrapper that OpenTelemetry makes for this one call.

    The instrumentation of threads sits above ours. Its wrapper does not show whether the function
    is a generator or coroutine function, of which more than the call has to be bound.
    """
    names = getattr(getattr(fn, "__code__", None), "co_freevars", ())
    return fn.__closure__[names.index("original_func")] if "original_func" in names else None


def _carry_submit(original: Any) -> Any:
    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _switch.last.value and not isinstance(self, _INTERPRETER_POOLS):
            fn = _bound(fn)
        return original.__get__(self, type(self))(fn, *args, **kwargs)

    return submit


def _carry_map(original: Any) -> Any:
    def map(self: Any, fn: Any, *iterables: Any, **options: Any) -> Any:
        # map() calls submit(), at once but for buffersize: then most calls are submitted when a
        # result is taken, and perhaps in another session.
        is_late = options.get("buffersize") is not None
        if _switch.last.value and is_late and not isinstance(self, _INTERPRETER_POOLS):
            fn = _bound(fn)
        return original.__get__(self, type(self))(fn, *iterables, **options)

    return map


def _carry_pool_call(original: Any) -> Any:
    def method(self: Any, func: Any, *args: Any, **options: Any) -> Any:
        if _switch.last.value:
            func = _bound(func)
        return original.__get__(self, type(self))(func, *args, **options)

    return method


def _carry_pool_call_with_callbacks(original: Any) -> Any:
    def method(self: Any, func: Any, *args: Any, **options: Any) -> Any:
        if _switch.last.value:
            func = _bound(func)
            # After two further arguments come callback and error_callback.
            args = (*args[:2], *map(_bound, args[2:]))
            for name in {"callback", "error_callback"} & options.keys():
                options[name] = _bound(options[name])
        return original.__get__(self, type(self))(func, *args, **options)

    return method
