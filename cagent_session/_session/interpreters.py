"""Take the session along to other interpreters of this process (Python 3.14 and later)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from .handoff import bind_session

_P = ParamSpec("_P")
_T = TypeVar("_T")

if sys.version_info >= (3, 14):
    from concurrent.futures import Future, InterpreterPoolExecutor

    class SessionInterpreterPoolExecutor(InterpreterPoolExecutor):
        """An ``InterpreterPoolExecutor`` whose calls run in the session that submitted them.

        The functions must be picklable, and this package importable in the other interpreters.
        ``instrument()`` does not reach them: call it in the executor's ``initializer``. ::

            with SessionInterpreterPoolExecutor(initializer=wire_clients) as pool:
                vectors = pool.map(embed, documents)
        """

        def submit(
            self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
        ) -> Future[_T]:
            """Schedule ``fn(*args, **kwargs)`` in the current session, as the base class does."""
            return super().submit(bind_session(fn), *args, **kwargs)

        def map(
            self, fn: Callable[..., _T], *iterables: Iterable[Any], **options: Any
        ) -> Iterator[_T]:
            """Map in the current session, as the base class does, with the same options."""
            if options.get("buffersize") is not None:
                fn = bind_session(fn)  # most calls are submitted later, when a result is taken
            return super().map(fn, *iterables, **options)

else:

    def __getattr__(name: str) -> Any:
        if name == "SessionInterpreterPoolExecutor":
            raise ImportError(
                f"{name} needs Python 3.14 or later; use SessionProcessPoolExecutor or "
                "SessionThreadPoolExecutor on older ones"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
