"""Carry the session along, to threads, pools, processes and queues; receive it from outside."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar, cast

from .ids import InvalidSessionID, check_session_id
from .scopes import OUTSIDE, Lineage, ResumableScopes, current_lineage, open_scope, suspend_scopes
from .wrapping import WrappedCallable

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = logging.getLogger("cagent_session")


def bind_session(fn: Callable[_P, _T]) -> Callable[_P, _T]:
    """A callable that runs ``fn`` in the session that is current now, or in none if none is.

    It can be pickled whenever ``fn`` can, so that it goes through process pools, Dask, joblib
    and task queues. Of generator and coroutine functions it covers the body, as the decorators
    do. ::

        threading.Thread(target=bind_session(generate_title), args=(messages,)).start()

        await loop.run_in_executor(None, bind_session(call_tool), tool)

        client.map(bind_session(summarize), chapters)       # Dask
    """
    return cast("Callable[_P, _T]", WrappedCallable(fn, _InLineage(current_lineage())))


class _InLineage:
    """The scopes for a call, wherever it is made: those of the session that it was bound to."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage

    def __call__(self, args: Any, kwargs: Any) -> ResumableScopes:
        return ResumableScopes(self._lineage)

    def __repr__(self) -> str:
        return f"session {self._lineage.session!r}"


class received_session:
    """Run a ``with`` block in a session that came in from outside, or in none.

    For the worker of a queue, a consumer's loop, a serverless handler. Anyone could have written
    what arrives there, so nothing of it is an error: a malformed ID costs one warning in the log
    ``cagent_session``, and the block runs in no session. Nothing is inferred from where the
    block runs, and scopes that the block leaves open are closed at its end.

    :param session_id: as it arrived; ``None`` if none did.
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
        open_scope(self._lineage, self)
        return self._lineage.session

    def __exit__(self, *exc_info: object) -> None:
        suspend_scopes(self)


def received_lineage(
    session_id: str | None, parent: str | None = None, root: str | None = None
) -> Lineage:
    """Return the lineage of a session that came in from outside, without any if it is malformed."""
    session_id = _checked(session_id, "session ID")
    if session_id is None:
        return OUTSIDE
    parent = _checked(parent, "parent session ID")
    root = _checked(root, "root session ID")
    ancestors = () if parent is None else (parent,)
    return Lineage(session_id, parent, root or parent or session_id, ancestors)


def _checked(value: str | None, what: str) -> str | None:
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise InvalidSessionID(f"{what} must be a str, not {type(value).__name__}")
        return check_session_id(value, what)
    except InvalidSessionID as error:
        _log.warning("ignored what was received: %s", error)
        return None


class SessionThreadPoolExecutor(ThreadPoolExecutor):
    """A ``ThreadPoolExecutor`` whose calls run in the session that submitted them.

    They run in a copy of the whole ``contextvars`` context of the caller, so that traces and
    log contexts come along, too. ::

        with SessionThreadPoolExecutor() as pool:
            results = pool.map(call_tool, tools)
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Schedule ``fn(*args, **kwargs)``, as the base class does, in the session of now."""
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
        """Schedule ``fn(*args, **kwargs)``, as the base class does, in the session of now."""
        return super().submit(bind_session(fn), *args, **kwargs)
