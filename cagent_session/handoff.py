"""Carry the session along, to threads, pools, processes and queues."""

from __future__ import annotations

import contextvars
import functools
import inspect
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from .context import cover, current_session_id, no_session, session_scope

_P = ParamSpec("_P")
_T = TypeVar("_T")


def bind_session(fn: Callable[_P, _T]) -> Callable[_P, _T]:
    """A callable that runs ``fn`` in the session that is current now, or in none if none is.

    It can be pickled whenever ``fn`` can, so that it goes through process pools, Dask, joblib
    and task queues. Of generator and coroutine functions it covers the body, as the decorators
    do. ::

        threading.Thread(target=bind_session(generate_title), args=(messages,)).start()

        await loop.run_in_executor(None, bind_session(call_tool), tool)

        client.map(bind_session(summarize), chapters)       # Dask
    """
    kind = _BoundCoroutine if inspect.iscoroutinefunction(fn) else _Bound
    return kind(fn, current_session_id())


class _Bound:
    def __init__(self, fn: Callable[..., Any], session_id: str | None) -> None:
        if not callable(fn):
            raise TypeError(f"{fn!r} is not callable")
        self._fn = fn
        self._session_id = session_id
        functools.update_wrapper(self, fn, updated=())

    @functools.cached_property
    def _covered(self) -> Callable[..., Any]:
        # Made at the first call, which is often in another process.
        session_id = self._session_id
        scope = no_session() if session_id is None else session_scope(session_id)
        return cover(self._fn, lambda args, kwargs: scope)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._covered(*args, **kwargs)

    def __reduce__(self) -> Any:
        return type(self), (self._fn, self._session_id)

    def __repr__(self) -> str:
        return f"<{self._fn!r} bound to session {self._session_id!r}>"


class _BoundCoroutine(_Bound):
    """Shows that it is to be awaited to whoever asks, as web frameworks do."""

    def __init__(self, fn: Callable[..., Any], session_id: str | None) -> None:
        super().__init__(fn, session_id)
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self._covered(*args, **kwargs)


class SessionThreadPoolExecutor(ThreadPoolExecutor):
    """A ``ThreadPoolExecutor`` whose calls run in the session that submitted them.

    They run in a copy of the whole ``contextvars`` context of the caller, so that traces and
    log contexts come along, too. ::

        with SessionThreadPoolExecutor() as pool:
            results = pool.map(call_tool, tools)
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        context = contextvars.copy_context()
        bound = bind_session(fn)
        return super().submit(lambda: context.run(bound, *args, **kwargs))


class SessionProcessPoolExecutor(ProcessPoolExecutor):
    """A ``ProcessPoolExecutor`` whose calls run in the session that submitted them.

    ::

        with SessionProcessPoolExecutor() as pool:
            vectors = pool.map(embed, documents)
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        return super().submit(bind_session(fn), *args, **kwargs)
