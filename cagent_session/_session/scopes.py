"""The scopes that are open here: one ``ContextVar``, and how its value changes.

The value is a frame, ``(lineage, whoever opened the scope, the frame outside)``, innermost first.
Who opened it stands in the frame so that leaving never takes away another one, and a frame is
immutable, so threads, tasks and suspended generators can each hold their own.
"""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar
from typing import Any, TypeAlias

# A session, its parent, the parent's parent and so on, to a None at least.
Lineage: TypeAlias = tuple[str | None, ...]
NOBODY: Lineage = (None, None)

_Frame: TypeAlias = tuple[Lineage, Any, Any]
_OUTSIDE: _Frame = (NOBODY, None, None)
_frame: ContextVar[_Frame] = ContextVar("cagent_session", default=_OUTSIDE)


def current_lineage() -> Lineage:
    """The session that is running this code, with all its known ancestors."""
    return _frame.get()[0]


def open_scope(lineage: Lineage, opener: object) -> None:
    """Enter a scope inside those that are open."""
    _frame.set((lineage, opener, _frame.get()))


def close_scope(opener: object) -> None:
    """Leave the innermost scope that ``opener`` opened, and no other.

    Scopes may end out of order, or in another context than they began in, as a bare ``with`` in a
    generator can: whoever is current stays current.
    """
    for lineage, other in close_scopes(opener):
        open_scope(lineage, other)


def close_scopes(opener: object) -> list[tuple[Lineage, Any]]:
    """Leave the innermost scope that ``opener`` opened, and all in it; gives those, outer first."""
    inner: list[tuple[Lineage, Any]] = []
    frame = _frame.get()
    while frame[1] is not opener:
        if frame is _OUTSIDE:
            return []
        inner.insert(0, frame[:2])
        frame = frame[2]
    _frame.set(frame[2])
    return inner


class OpenScopes:
    """The scopes that are open in a body of code, which is left and entered again at each step.

    When it is left, the scopes that the body has opened and not closed are put aside, to be open
    again at the next step; whoever called the body finds its own.

    :param lineage: of the session that the body runs in.
    """

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._inner: list[tuple[Lineage, Any]] = []

    def __enter__(self) -> None:
        open_scope(self._lineage, self)
        for lineage, opener in self._inner:
            open_scope(lineage, opener)

    def __exit__(self, *exc_info: object) -> None:
        self._inner = close_scopes(self)


def _leave_all_scopes(_: object) -> None:
    _frame.set(_OUTSIDE)


def _after_fork_in_child() -> None:
    # A worker that multiprocessing forks would be in the session of whoever needed the first
    # worker, for life. It starts without one, as a spawned worker does. The hook is registered
    # here, in the child, where it costs no import: a bare os.fork() runs none, and goes on in
    # the scope that it is in.
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.register_after_fork(_leave_all_scopes, _leave_all_scopes)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
