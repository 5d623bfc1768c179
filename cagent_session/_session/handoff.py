"""Take the session along to threads, pools and processes, and receive one from outside."""

from __future__ import annotations

import contextvars
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar, cast

from .ids import InvalidSessionID, check_session_id, is_text
from .scopes import (
    OUTSIDE,
    Lineage,
    Opener,
    ResumableScopes,
    call_in,
    current_lineage,
    suspend_scopes,
)
from .wrapping import WrappedCallable, runs_at_once, wrap_call

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = logging.getLogger("cagent_session")


def bind_session(fn: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return a callable that runs ``fn`` in the session that is current now, or in none.

    It can be pickled whenever ``fn`` can, so that it can be sent to process pools, Dask, joblib and
    task queues. The bodies of generator and coroutine functions are covered as the decorators cover
    them, also where a decorator of an SDK hides that ``fn`` is a coroutine function. ::

        threading.Thread(target=bind_session(generate_title), args=(messages,)).start()

        await loop.run_in_executor(None, bind_session(call_tool), tool)

        client.map(bind_session(summarize), chapters)       # Dask

    :raises TypeError: if ``fn`` is not callable.
    """
    if not callable(fn):
        kind = type(fn).__name__
        raise TypeError(f"bind_session takes a function, not {kind}: write bind_session(fn)(...)")
    return cast("Callable[_P, _T]", WrappedCallable(fn, _InLineage(current_lineage())))


def bind_call(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Do what :func:`bind_session` does, in a tenth of the time, for one call in this process.

    What it returns has no name and no signature, and cannot be pickled.
    """
    lineage = current_lineage()
    if runs_at_once(fn):
        return functools.partial(call_in, lineage, fn)
    return wrap_call(fn, _InLineage(lineage))


class _InLineage:
    """Return the scopes for a call of a bound function: those of the session at the binding."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage

    def __call__(self, args: Any, kwargs: Any) -> ResumableScopes:
        return ResumableScopes(self._lineage)

    def __repr__(self) -> str:
        return f"session {self._lineage.session!r}"


class received_session(Opener):
    """Run a ``with`` block in a session that came in from outside, or in none.

    For the worker of a queue, a consumer's loop, a serverless handler. Nothing is inferred from the
    scope around the block, and scopes that the block leaves open are closed at its end.

    What arrives may have been written by anyone, so none of it raises an error. A malformed
    session ID costs one warning in the log ``cagent_session``, and the block runs in no session.

    :param session_id: the ID as it arrived; ``None`` if none did.
    :param parent: the ID of its parent, as it arrived. The session has none if this is left out
        or malformed.
    :param root: the ID of its outermost ancestor, as it arrived. Left out or malformed, it is the
        parent, or the session itself if that has no parent.

    ::

        for message in queue:
            with received_session(message.headers.get("session-id")):
                handle(message)
    """

    def __init__(
        self, session_id: str | None, *, parent: str | None = None, root: str | None = None
    ) -> None:
        self._lineage = received_lineage(session_id, parent, root)

    def __enter__(self) -> str | None:
        self._open(self._lineage)
        return self._lineage.session

    def __exit__(self, *exc_info: object) -> None:
        suspend_scopes(self)


def received_lineage(
    session_id: str | None,
    parent: str | None = None,
    root: str | None = None,
    names: Sequence[str] = ("session ID", "parent session ID"),
) -> Lineage:
    """Return the lineage of a session that came in from outside; ``OUTSIDE`` for a malformed ID.

    :param names: what warnings call the session ID and its parent.
    """
    session_id = _checked(session_id, names[0])
    if session_id is None:
        return OUTSIDE
    parent = _checked(parent, names[1])
    root = _checked(root, "root session ID")
    ancestors = () if parent is None else (parent,)
    return Lineage(session_id, parent, root or parent or session_id, ancestors)


def _checked(value: str | None, what: str) -> str | None:
    """Return ``value``, or ``None`` with a warning in the log if it is malformed."""
    if value is None:
        return None
    try:
        if not is_text(value):
            raise InvalidSessionID(f"{what} must be a str, not {type(value).__name__}")
        return check_session_id(value, what)
    except InvalidSessionID as error:
        _log.warning("ignored what was received: %s", error)
        return None


class SessionThreadPoolExecutor(ThreadPoolExecutor):
    """A ``ThreadPoolExecutor`` whose calls run in the session that submitted them.

    They run in a copy of the caller's whole ``contextvars`` context, so that traces and log
    contexts come along, too. ::

        with SessionThreadPoolExecutor() as pool:
            results = pool.map(call_tool, tools)
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Schedule ``fn(*args, **kwargs)`` in the current session, as the base class does."""
        context = contextvars.copy_context()
        # The session is in the context; only what runs later, outside of it, has to be bound.
        bound = fn if runs_at_once(fn) else bind_call(fn)
        # Context.run() of PyPy has names for its parameters, so fn's arguments stay in a lambda.
        return super().submit(lambda: context.run(lambda: bound(*args, **kwargs)))

    def map(self, fn: Callable[..., _T], *iterables: Iterable[Any], **options: Any) -> Iterator[_T]:
        """Map in the current session, as the base class does, with the same options."""
        if options.get("buffersize") is not None:
            # Most calls are submitted later, when a result is taken, and perhaps in a session that
            # is not the current one. A context can be entered once at a time: each call copies it.
            context = contextvars.copy_context()
            bound = bind_call(fn)
            return super().map(
                lambda *args: context.copy().run(lambda: bound(*args)), *iterables, **options
            )
        return super().map(fn, *iterables, **options)


class SessionProcessPoolExecutor(ProcessPoolExecutor):
    """A ``ProcessPoolExecutor`` whose calls run in the session that submitted them.

    ::

        with SessionProcessPoolExecutor() as pool:
            vectors = pool.map(embed, documents)
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Schedule ``fn(*args, **kwargs)`` in the current session, as the base class does."""
        return super().submit(bind_session(fn), *args, **kwargs)

    def map(self, fn: Callable[..., _T], *iterables: Iterable[Any], **options: Any) -> Iterator[_T]:
        """Map in the current session, as the base class does, with the same options."""
        if options.get("buffersize") is not None:
            fn = bind_session(fn)  # most calls are submitted later, when a result is taken
        return super().map(fn, *iterables, **options)
