"""Which session am I in? Scopes say it for the code that they cover, and for nothing else."""

from __future__ import annotations

import functools
import inspect
import sys
import uuid
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Generic, NoReturn, TypeVar, cast

from .ids import InvalidSessionID, check_session_id, shown
from .scopes import (
    NO_SESSION,
    OUTSIDE,
    Lineage,
    ResumableScopes,
    close_scope,
    current_lineage,
    open_scope,
)
from .wrapping import wrap

__all__ = [
    "InvalidSessionID",
    "current_session_id",
    "no_session",
    "parent_session_id",
    "root_session_id",
    "session_from",
    "session_scope",
]

_UNSET: Any = object()

_ID = TypeVar("_ID")
_Decorated = TypeVar(
    "_Decorated",
    bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]",
)


def current_session_id() -> str | None:
    """The ID of the session that is running this code, or ``None`` outside every scope.

    >>> with session_scope("s1"):
    ...     current_session_id()
    's1'
    """
    return current_lineage().session


def parent_session_id() -> str | None:
    """The parent of the session that is running this code, or ``None`` if it has none.

    >>> with session_scope("main"), session_scope("sub-agent"):
    ...     parent_session_id()
    'main'
    """
    return current_lineage().parent


def root_session_id() -> str | None:
    """Return the outermost known ancestor of the session that is running this code.

    That is the session itself if it has no parent, and ``None`` outside every scope.

    >>> with session_scope("main"), session_scope("sub-agent"), session_scope("sub-sub-agent"):
    ...     root_session_id()
    'main'
    """
    return current_lineage().root


class _Scope(Generic[_ID]):
    """What the two kinds of scope share: entering, leaving and decorating.

    A scope keeps nothing about its entries in itself, so that one object can be entered many
    times, inside itself, and from many threads at once.
    """

    def lineage_in(self, outside: Lineage) -> Lineage:
        """The session to enter, and its ancestors, coming from ``outside``."""
        raise NotImplementedError

    def __enter__(self) -> _ID:
        lineage = self.lineage_in(current_lineage())
        open_scope(lineage, self)
        return cast(_ID, lineage.session)

    def __exit__(self, *exc_info: object) -> None:
        close_scope(self)

    def __call__(self, fn: _Decorated) -> _Decorated:
        return _decorate(fn, functools.partial(_in_scope, self))


class session_scope(_Scope[str]):
    """Bind a session ID to the code of a ``with`` block, or of every call of a function.

    :param session_id: 1 to 256 visible ASCII characters. Left out, every entry gets a fresh
        UUID4. ``None`` is refused: a missing ID must not turn into a random one.
    :param parent: the ID of the session that this one works for. Left out, it is the session
        that the scope is entered in; the current session and its ancestors keep the parent that
        they have.
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

    _are_checked = False

    def __init__(self, session_id: str = _UNSET, *, parent: str = _UNSET) -> None:
        if callable(session_id):
            raise TypeError('write @session_scope() or @session_scope("..."), with parentheses')
        for what, value in (("session ID", session_id), ("parent session ID", parent)):
            if value is not _UNSET and not isinstance(value, str):
                raise TypeError(f"{what} must be a str, not {type(value).__name__}")
        self._session_id = None if session_id is _UNSET else session_id
        self._parent = None if parent is _UNSET else parent

    def lineage_in(self, outside: Lineage) -> Lineage:
        if not self._are_checked:
            if self._session_id is not None:
                self._session_id = check_session_id(self._session_id)
            if self._parent is not None:
                self._parent = check_session_id(self._parent, "parent session ID")
            self._are_checked = True
        session_id = self._session_id if self._session_id is not None else str(uuid.uuid4())
        if self._parent is not None:
            outside = outside.known_part(self._parent) or OUTSIDE.child(self._parent)
        elif known := outside.known_part(session_id):
            return known
        return outside.child(session_id)

    def __repr__(self) -> str:
        given = [] if self._session_id is None else [shown(self._session_id)]
        if self._parent is not None:
            given.append(f"parent={shown(self._parent)}")
        return f"session_scope({', '.join(given)})"


class no_session(_Scope[None]):
    """The opposite of :class:`session_scope`: no session is current inside.

    ::

        with no_session():
            report_health()         # is nobody's bill

        @no_session()
        def report_health(): ...
    """

    def __init__(self, *arguments: NoReturn) -> None:
        if arguments:
            raise TypeError("no_session takes no arguments; as a decorator, write @no_session()")

    def lineage_in(self, outside: Lineage) -> Lineage:
        return NO_SESSION

    def __repr__(self) -> str:
        return "no_session()"


def session_from(name: str) -> Callable[[_Decorated], _Decorated]:
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
    if not isinstance(name, str):
        raise TypeError('write @session_from("..."), with the name of a parameter')
    if not all(map(str.isidentifier, name.split(".")[1:])):
        raise TypeError(f"{name!r} is not a parameter's name with dots for attributes")

    def decorate(fn: _Decorated) -> _Decorated:
        function = fn.__func__ if isinstance(fn, classmethod | staticmethod) else fn
        return _decorate(fn, _SessionOfArgument(function, name))

    return decorate


class _SessionOfArgument:
    """The scopes for a call of ``fn`` one of whose arguments says which session it works for."""

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        self._fn = fn
        self._name = name
        self._parameter, _, path = name.partition(".")
        self._attribute = attrgetter(path) if path else None
        self._called = called = getattr(fn, "__qualname__", type(fn).__qualname__)
        try:
            parameters = inspect.signature(fn).parameters
        except ValueError:
            raise TypeError(f"{called} has no signature to find {name!r} in") from None
        found = parameters.get(self._parameter)
        if found is None or found.kind in (found.VAR_POSITIONAL, found.VAR_KEYWORD):
            raise TypeError(
                f"{called}({', '.join(parameters)}) has no parameter {self._parameter!r}"
            )
        self._position = list(parameters).index(self._parameter)
        if found.kind is found.KEYWORD_ONLY:
            self._position = sys.maxsize
        self._by_name = found.kind is not found.POSITIONAL_ONLY
        self._is_required = found.default is found.empty
        self._default = None if self._is_required else found.default

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ResumableScopes:
        value = self._argument(args, kwargs)
        if self._attribute is not None:
            value = self._attribute(value)
        if not isinstance(value, str):
            raise TypeError(f"session ID {self._name!r} must be a str, not {type(value).__name__}")
        return _in_scope(session_scope(value), args, kwargs)

    def _argument(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._position < len(args):
            return args[self._position]
        if self._by_name and self._parameter in kwargs:
            return kwargs[self._parameter]
        if self._is_required:
            raise TypeError(f"{self._called}() missing the argument {self._parameter!r}")
        return self._default


def _in_scope(scope: _Scope[Any], args: Any, kwargs: Any) -> ResumableScopes:
    return ResumableScopes(scope.lineage_in(current_lineage()))


def _decorate(fn: _Decorated, scopes_for: Callable[..., ResumableScopes]) -> _Decorated:
    if isinstance(fn, classmethod | staticmethod):
        return cast(_Decorated, type(fn)(wrap(fn.__func__, scopes_for)))
    if isinstance(fn, type):
        raise TypeError(f"cannot decorate the class {fn.__qualname__}: decorate its methods")
    return cast(_Decorated, wrap(fn, scopes_for))
