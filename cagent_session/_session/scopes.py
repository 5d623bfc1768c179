"""The scopes that are open here: one ``ContextVar``, and how its value changes.

The value is a linked list of frames ``(lineage, opening, outer frame, room)``, innermost first. The
opener identifies the frame to remove on exit, because scopes may be closed out of order. Frames are
immutable, so that threads, tasks and suspended generators can each hold their own.

A task that is started inside a scope has a copy of the context, in which nobody closes that scope.
If each run of a job starts the next one inside its scope, the list grows with each run. So:

- All copies of a frame share its ``opening``, which says whether the scope has been closed in one
  of the contexts. Nobody will close it in the others then.
- ``room`` is how many frames may still be put on top of the frame. When none is left, the list is
  searched for frames that are out of reach.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, TypeAlias, TypeVar

_KNOWN = 32  # ancestors that are kept with their parents, so that an endless chain stays small
_ROOM = 64  # frames; few enough to search quickly, and more than most programs ever have


class Lineage(NamedTuple):
    """A session and its known ancestors."""

    session: str | None  #: ``None`` outside every session
    parent: str | None = None
    root: str | None = None  #: the outermost ancestor; the session itself, if it has no parent
    ancestors: tuple[str, ...] = ()  #: nearest first, so that the parent is the first one
    is_deliberate: bool = False  #: there is no session, because ``no_session()`` asked for that

    def child(self, session_id: str) -> Lineage:
        """Return the lineage of a session whose parent is this one."""
        if self.session is None:
            return Lineage(session_id, None, session_id)
        # One more than is kept with its parent: the last one is there as a parent alone.
        ancestors = (self.session, *self.ancestors[:_KNOWN])
        return Lineage(session_id, self.session, self.root, ancestors)

    def known_part(self, session_id: str) -> Lineage | None:
        """Return the lineage of this session or of an ancestor, or ``None`` if it is neither."""
        chain = (self.session, *self.ancestors)
        if session_id in chain:
            ancestors = self.ancestors[chain.index(session_id) :]
            return Lineage(session_id, ancestors[0] if ancestors else None, self.root, ancestors)
        # However long the chain, the root is known: it has no parent.
        return Lineage(session_id, None, session_id) if session_id == self.root else None


OUTSIDE = Lineage(None)  # no scope is open
NO_SESSION = Lineage(None, is_deliberate=True)  # inside no_session()

_T = TypeVar("_T")
_Opening: TypeAlias = list[Any]  # [the opener, whether the scope is still to be closed]
_Nested: TypeAlias = tuple[Lineage, _Opening]
_Frame: TypeAlias = tuple[Lineage, _Opening, Any, int]
_OUTERMOST: _Frame = (OUTSIDE, [None, False], None, _ROOM)
_frame: ContextVar[_Frame] = ContextVar("cagent_session", default=_OUTERMOST)


if sys.version_info >= (3, 12):
    _set = _frame.set
else:
    # The collector may run in the midst of ContextVar.set(). If it closes a generator there whose
    # scopes set a variable, too, Python frees the mapping that the outer set() is still reading,
    # and crashes. So a copy of the context keeps that mapping for a while.
    import gc
    import threading
    from collections import deque
    from contextvars import Context, copy_context

    _phases: dict[str, object] = {}  # of the collector; the last one is the present one
    # For each of the last collections that closed scopes, its "start", and contexts by threads. A
    # finalizer may have started the next one.
    _kept: deque[tuple[object, dict[int, Context]]] = deque(maxlen=4)

    # Both are called with a phase, and together put it last. A function in Python would not do: a
    # signal handler would run in it, and what that raises would be lost, such as KeyboardInterrupt.
    gc.callbacks += [_phases.pop, _phases.__setitem__]

    def _set(frame: _Frame) -> Token[_Frame]:
        if next(reversed(_phases), None) == "start":
            start = _phases.get("start")
            if not _kept or _kept[-1][0] is not start:
                _kept.append((start, {}))
            _kept[-1][1].setdefault(threading.get_ident(), copy_context())
        return _frame.set(frame)


def current_lineage() -> Lineage:
    """Return the session that is running this code, with its known ancestors."""
    return _frame.get()[0]


def open_scope(lineage: Lineage, opener: object, opening: _Opening | None = None) -> None:
    """Enter a scope inside those that are open.

    :param opening: that of an earlier time, if the same scope is entered again.
    """
    opening = opening or [opener, True]
    while True:
        start = outer = _frame.get()
        if not outer[3]:
            outer = _within_reach(outer)
        if _replaced(start, (lineage, opening, outer, outer[3] - 1)):
            return


def _replaced(start: _Frame, frame: _Frame) -> bool:
    """Make ``frame`` the innermost one, if ``start`` still is, and return whether it was.

    The garbage collector may run in between, and close a generator with a scope that is open here.
    """
    before = _set(frame).old_value
    if before is start or before is Token.MISSING:
        return True
    _set(before)
    return False


def _within_reach(frame: _Frame) -> _Frame:
    """Return ``frame`` without those outer frames that can never become the innermost one again.

    A frame becomes the innermost one when the scope directly inside it is closed. If neither that
    scope nor its own will be closed any more, the frame stays covered for good.
    """
    kept: list[_Nested] = []
    seen: set[int] = set()
    inner_is_to_be_closed = True  # the innermost frame stays in any case
    while frame is not _OUTERMOST:
        lineage, opening, frame, _ = frame
        # The steps of a body share an opening, and only its last step is still to be closed.
        is_to_be_closed = opening[1] and id(opening) not in seen
        seen.add(id(opening))
        if inner_is_to_be_closed or is_to_be_closed:
            kept.append((lineage, opening))
        inner_is_to_be_closed = is_to_be_closed
    # Room for as many again, so that opening many scopes takes linear time.
    room = len(kept) + max(len(kept), _ROOM)
    for lineage, opening in reversed(kept):
        room -= 1
        frame = (lineage, opening, frame, room)
    return frame


def close_scope(opener: object) -> None:
    """Leave the innermost scope that ``opener`` opened, and no other.

    Scopes may end out of order, or in another context than they began in, as an ordinary ``with``
    in a generator can. The scopes inside the one that ends stay open.
    """
    while True:
        start = _frame.get()
        found, nested = _search(start, opener)
        if found is None or _replaced(start, _with_nested(found[2], nested)):
            return


def suspend_scopes(opener: object) -> list[_Nested]:
    """Leave the innermost scope that ``opener`` opened and everything nested in it.

    :returns: the nested scopes, outermost first; empty, also where ``opener`` has no open scope
        here.
    """
    while True:
        start = _frame.get()
        found, nested = _search(start, opener)
        if found is None:
            return []
        if _replaced(start, found[2]):
            return nested


def reopen_scopes(nested: list[_Nested]) -> None:
    """Enter the scopes that :func:`suspend_scopes` has left."""
    while True:
        start = _frame.get()
        if _replaced(start, _with_nested(start, nested)):
            return


def _search(frame: _Frame, opener: object) -> tuple[_Frame | None, list[_Nested]]:
    """Find the innermost frame of ``opener``, and note in its opening that it is being closed.

    :returns: the frame, or ``None``; and the scopes nested in it, outermost first.
    """
    nested: list[_Nested] = []
    while frame[1][0] is not opener:
        if frame is _OUTERMOST:
            return None, []
        lineage, opening, frame, _ = frame
        nested.append((lineage, opening))
    # Of a scope object that was entered again, no exit tells which entry it is for.
    frame[1][1] = getattr(opener, "_was_entered_again", False)
    nested.reverse()
    return frame, nested


def _with_nested(frame: _Frame, nested: list[_Nested]) -> _Frame:
    for lineage, opening in nested:
        frame = (lineage, opening, frame, max(frame[3] - 1, 0))
    return frame


def exchange_frames(frame: Any = _OUTERMOST) -> Any:
    """Leave all scopes, or return to those of a ``frame`` that was left.

    :returns: the frame that is left now.
    """
    left = _frame.get()
    _set(frame)
    return left


def call_in(lineage: Lineage, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T:
    """Return ``fn(*args, **kwargs)``, called in a scope that is closed by its end."""
    opener = object()
    open_scope(lineage, opener)
    try:
        return fn(*args, **kwargs)
    finally:
        suspend_scopes(opener)
        del args, kwargs  # a traceback must not keep what fn has let go of


class Opener:
    """Base class of a context manager that opens a scope, and that may be entered several times."""

    _was_entered = _was_entered_again = False

    def _open(self, lineage: Lineage) -> None:
        """Enter a scope, for ``__exit__`` to close."""
        self._was_entered_again = self._was_entered
        self._was_entered = True
        open_scope(lineage, self)


class _Body:
    """The opener of the scopes of a body."""

    _was_entered_again = True  # at each step


class ResumableScopes:
    """The scopes of a body of code that runs in steps: a context manager, entered for each step.

    When a step ends, the scopes that the body has opened and not closed are put aside. The next
    step reopens them. Between two steps, the caller of the body is in the caller's own scopes.

    :param lineage: the session that the body runs in.
    """

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self._nested: list[_Nested] = []
        # One for all steps, and to be closed as long as there may be a further one: asgiref's
        # sync_to_async() brings frames back that an earlier step or a copy of the context had.
        self._opening: _Opening = [_Body(), True]

    def __del__(self) -> None:
        self._opening[1] = False

    def __enter__(self) -> None:
        open_scope(self._lineage, self._opening[0], self._opening)
        if self._nested:
            reopen_scopes(self._nested)

    def __exit__(self, *exc_info: object) -> None:
        self._nested = suspend_scopes(self._opening[0])


def _leave_all_scopes(_: object) -> None:
    _frame.set(_OUTERMOST)


def _after_fork_in_child() -> None:
    # A worker forked by multiprocessing would keep, for life, the session of the code that needed
    # the first worker. So it leaves all scopes, and starts without a session as a spawned worker
    # does. The hook is registered here, in the child, because multiprocessing runs it after this
    # function, and the parent then need not import multiprocessing. The child of os.fork() alone
    # runs no such hook, and stays in its scope. multiprocess is the copy that pathos uses.
    for name in ("multiprocessing.util", "multiprocess.util"):
        util = sys.modules.get(name)
        if util is not None:
            util.register_after_fork(_leave_all_scopes, _leave_all_scopes)


def _start_without_session(original: Any) -> Any:
    def start(self: Any) -> None:
        # start() copies the context for the new thread, unless the Thread was given one. The copy
        # must be without a session; in the starting thread the session is back at once.
        token = _frame.set(_OUTERMOST)
        try:
            original.__get__(self, type(self))()
        finally:
            _frame.reset(token)

    return start


if getattr(sys.flags, "thread_inherit_context", False):
    # Python hands the context of the starting thread to the new one: on free-threaded builds from
    # 3.14 on, and with -X thread_inherit_context=1. A worker thread would keep, for life, the
    # session in which its pool grew, and bill everybody's calls to it.
    import threading

    from .._patching import patch

    patch(threading, "Thread.start", _start_without_session)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
