"""Which session am I in?

One ``ContextVar`` holds the answer. :class:`session_scope`, :func:`session_from` and
:class:`no_session` set it for the code that they cover, and for nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, Generic, TypeAlias, TypeVar, cast

from . import covering

MAX_LENGTH = 256

_is_valid = re.compile(rf"[!-~]{{1,{MAX_LENGTH}}}").fullmatch
_FRESH: Any = object()

# The scopes that are open here, innermost first: (session ID, scope, the frame outside it).
# The scope stands in its frame so that leaving it never takes away another one, and a frame is
# immutable, so threads, tasks and suspended generators can each hold their own.
_Frame: TypeAlias = "tuple[Any, _Scope[Any] | None, Any]"
_OUTSIDE: _Frame = (None, None, None)
_frame: ContextVar[_Frame] = ContextVar("cagent_session", default=_OUTSIDE)

_ID = TypeVar("_ID")

_Covered = TypeVar(
    "_Covered",
    bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]",
)


class InvalidSessionID(ValueError):
    """A session ID that cannot be sent: not 1 to 256 visible ASCII characters (``!`` to ``~``)."""


def current_session_id() -> str | None:
    """The ID of the session that is running this code, or ``None`` outside every scope.

    >>> with session_scope("s1"):
    ...     current_session_id()
    's1'
    """
    session_id: str | None = _frame.get()[0]
    return session_id


class _Scope(Generic[_ID]):
    """What the two kinds of scope share: entering, leaving and decorating.

    A scope keeps nothing about its entries in itself, so that one object can be entered many
    times, inside itself, and from many threads at once.
    """

    _checked: _ID | None = None

    def _entry_id(self) -> _ID:
        raise NotImplementedError

    def __enter__(self) -> _ID:
        session_id = self._checked or self._entry_id()
        _frame.set((session_id, self, _frame.get()))
        return session_id

    def __exit__(self, *exc_info: object) -> None:
        frame = _frame.get()
        _frame.set(frame[2] if frame[1] is self else _without(frame, self))

    def __call__(self, fn: _Covered) -> _Covered:
        return _decorate(fn, lambda args, kwargs: self)


class session_scope(_Scope[str]):
    """Bind a session ID to the code of a ``with`` block, or of every call of a function.

    :param session_id: 1 to 256 visible ASCII characters. Left out, every entry gets a fresh
        UUID4. ``None`` is refused: a missing ID must not turn into a random one.
    :raises TypeError: at once, for anything but a ``str``.
    :raises InvalidSessionID: on entering the scope, for an ID that cannot be sent.

    ::

        with session_scope("order-4711") as session_id:
            http.post(url, json=prompt)

        @session_scope()            # a session of its own for every call
        def handle(job): ...

    Functions, methods, generator functions, ``async def`` and async generators can be
    decorated. Of a generator the decorator covers the body: while it is suspended at a
    ``yield``, the caller is in its own session again. A bare ``with session_scope(...)``
    around a ``yield`` cannot do that, as no context variable can: it leaks into the caller
    until the generator goes on. Decorate the generator function instead.
    """

    def __init__(self, session_id: str = _FRESH) -> None:
        if session_id is not _FRESH and not isinstance(session_id, str):
            raise TypeError(f"session ID must be a str, not {type(session_id).__name__}")
        self._session_id = None if session_id is _FRESH else session_id

    def _entry_id(self) -> str:
        if self._session_id is None:
            import uuid  # here, for the same reason as inspect below

            return str(uuid.uuid4())
        self._checked = check_session_id(self._session_id)
        return self._checked


class no_session(_Scope[None]):
    """The opposite of :class:`session_scope`: no session is current inside.

    ::

        with no_session():
            report_health()         # is nobody's bill
    """

    def _entry_id(self) -> None:
        return


def session_from(name: str) -> Callable[[_Covered], _Covered]:
    """Decorate a function one of whose arguments says which session it works for.

    :param name: a parameter's name, with dots for attributes of its value.
    :raises TypeError: on decorating, if the function has no such parameter; on calling, if the
        value found is not a ``str``.
    :raises InvalidSessionID: on calling, if the value cannot be sent.

    ::

        @session_from("session_id")
        def generate_title(session_id, messages): ...

        @session_from("sess.id")
        def run_loop(sess): ...

        class Agent:
            @session_from("self.session_id")
            def step(self): ...
    """
    parameter, _, path = name.partition(".")

    def decorate(fn: _Covered) -> _Covered:
        argument = _argument_getter(fn, parameter)
        attribute = attrgetter(path) if path else None

        def scope_for(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Scope[Any]:
            value = argument(args, kwargs)
            if attribute is not None:
                value = attribute(value)
            if not isinstance(value, str):
                raise TypeError(f"session ID {name!r} must be a str, not {type(value).__name__}")
            return session_scope(value)

        return _decorate(fn, scope_for)

    return decorate


def check_session_id(value: str) -> str:
    """Give ``value`` back as a plain ``str``, or raise :class:`InvalidSessionID`."""
    if _is_valid(value) is not None:
        return value if type(value) is str else str.__str__(value)
    if not value:
        problem = "is empty"
    elif len(value) > MAX_LENGTH:
        problem = f"has {len(value)} characters, {MAX_LENGTH} at most can be sent"
    else:
        position, character = next((i, c) for i, c in enumerate(value) if not "!" <= c <= "~")
        problem = f"has {character!a} at position {position}, only '!' to '~' can be sent"
    shown = ascii(str.__str__(value[:60])) + ("..." if len(value) > 60 else "")
    raise InvalidSessionID(f"session ID {problem}: {shown}")


_ScopeFor: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], _Scope[Any]]


def cover(fn: Callable[..., Any], scope_for: _ScopeFor) -> Callable[..., Any]:
    """Wrap ``fn`` so that its body runs in the scope that ``scope_for`` gives for each call."""
    return covering.cover(fn, _frame, lambda args, kwargs: _alone(scope_for(args, kwargs)))


@contextlib.contextmanager
def boundary(scope: _Scope[Any]) -> Iterator[None]:
    """Where work comes in from outside: the scope for it, and whatever it leaves open is closed."""
    outside = _frame.get()
    _frame.set(_alone(scope))
    try:
        yield
    finally:
        _frame.set(outside)


def _alone(scope: _Scope[Any]) -> _Frame:
    return scope._checked or scope._entry_id(), scope, _OUTSIDE


def _decorate(fn: _Covered, scope_for: _ScopeFor) -> _Covered:
    if isinstance(fn, classmethod | staticmethod):
        return cast(_Covered, type(fn)(cover(fn.__func__, scope_for)))
    if isinstance(fn, type):
        raise TypeError(f"cannot decorate the class {fn.__qualname__}: decorate its methods")
    return cast(_Covered, cover(fn, scope_for))


def _without(frame: _Frame, scope: _Scope[Any]) -> _Frame:
    """``frame`` less the innermost entry of ``scope``; as it is, if there is none.

    For scopes that end out of order, or in another context than they began in, as a bare
    ``with`` in a generator can: whoever is current stays current.
    """
    inner: list[_Frame] = []
    at = frame
    while at[1] is not scope:
        if at is _OUTSIDE:
            return frame
        inner.append(at)
        at = at[2]
    at = at[2]
    for session_id, owner, _ in reversed(inner):
        at = (session_id, owner, at)
    return at


def _argument_getter(fn: Any, name: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """How to find the argument for the parameter ``name`` in a call of ``fn``."""
    import inspect  # here, because it would double the import time of the package

    if isinstance(fn, classmethod | staticmethod):
        fn = fn.__func__
    signature = inspect.signature(fn)
    parameter = signature.parameters.get(name)
    if parameter is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise TypeError(f"{fn.__qualname__}{signature} has no parameter {name!r}")
    position = list(signature.parameters).index(name)
    if parameter.kind is parameter.KEYWORD_ONLY:
        position = sys.maxsize
    by_name = parameter.kind is not parameter.POSITIONAL_ONLY

    def argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if position < len(args):
            return args[position]
        if by_name and name in kwargs:
            return kwargs[name]
        if parameter.default is parameter.empty:
            signature.bind(*args, **kwargs)  # raises the TypeError that names what is missing
        return parameter.default

    return argument


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
