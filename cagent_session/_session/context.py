"""Open a session for a block of code or a function, and ask which session is current."""

from __future__ import annotations

import functools
import inspect
import sys
import uuid
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Generic, NoReturn, TypeVar, cast

from .ids import InvalidSessionID, check_session_id, is_text, shown
from .scopes import (
    NO_SESSION,
    OUTSIDE,
    Lineage,
    Opener,
    ResumableScopes,
    close_scope,
    current_lineage,
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

_ID = TypeVar("_ID")
_Decorated = TypeVar(
    "_Decorated",
    bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]",
)

if sys.version_info >= (3, 14):
    from annotationlib import Format

    # Annotations may name what is imported for type checkers alone, or defined later. FORWARDREF
    # does not fail on such names; the default does.
    _signature = functools.partial(inspect.signature, annotation_format=Format.FORWARDREF)
else:
    _signature = inspect.signature


def current_session_id() -> str | None:
    """Return the ID of the session that is running this code, or ``None`` outside every scope.

    >>> with session_scope("s1"):
    ...     current_session_id()
    's1'
    """
    return current_lineage().session


def parent_session_id() -> str | None:
    """Return the parent of the session that is running this code, or ``None`` if it has none.

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


class _Default:
    """The default of an argument, shown in ``help()`` by what it stands for."""

    def __init__(self, stands_for: str) -> None:
        self._stands_for = stands_for

    def __repr__(self) -> str:
        return f"<{self._stands_for}>"


_FRESH: Any = _Default("a fresh UUID4")
_INFERRED: Any = _Default("the session outside")


class _Scope(Opener, Generic[_ID]):
    """Base class of :class:`session_scope` and :class:`no_session`.

    A scope stores nothing about its entries in itself, but that there was more than one. One object
    can therefore be entered many times, inside itself, and from many threads at once.
    """

    def lineage_in(self, outside: Lineage) -> Lineage:
        """Return the lineage to enter from the scope ``outside``."""
        raise NotImplementedError

    def __enter__(self) -> _ID:
        lineage = self.lineage_in(current_lineage())
        self._open(lineage)
        return cast(_ID, lineage.session)

    def __exit__(self, *exc_info: object) -> None:
        close_scope(self)

    def __call__(self, fn: _Decorated) -> _Decorated:
        return _decorate(fn, functools.partial(_in_scope, self))


class session_scope(_Scope[str]):
    """Run a ``with`` block, or every call of a decorated function, in a session.

    :param session_id: 1 to 256 visible ASCII characters. Left out, every entry gets a fresh
        UUID4. ``None`` is refused: a missing ID must not turn into a random one.
    :param parent: the ID of the session that this one works for. Left out, it is the session in
        which the scope is entered; the current session and its ancestors keep the parent that
        they have.
    :raises TypeError: at once, for anything but a ``str``.
    :raises InvalidSessionID: on entering the scope, for an ID that cannot be sent.

    ::

        with session_scope("order-4711") as session_id:
            http.post(url, json=prompt)

        @session_scope()            # a session of its own for every call
        def handle(job): ...

    Functions, methods, generator functions, ``async def`` and async generators can be decorated.
    A decorated generator runs its body in the session. While it is suspended at a ``yield``, its
    caller is in the caller's own session. A ``with session_scope(...)`` around a ``yield`` cannot
    do that: it leaks into the caller until the generator continues, as every context variable does
    in Python. Decorate the generator function instead.
    """

    _are_checked = False

    def __init__(self, session_id: str = _FRESH, *, parent: str = _INFERRED) -> None:
        if session_id is not _FRESH and not is_text(session_id):
            raise TypeError(
                f"session ID must be a str, not {type(session_id).__name__}: "
                + _remedy(session_id, "session_scope() for a fresh ID, or no_session() for none")
            )
        if parent is not _INFERRED and not is_text(parent):
            raise TypeError(
                f"parent session ID must be a str, not {type(parent).__name__}: "
                + _remedy(parent, "no parent= to have it inferred")
            )
        self._session_id = None if session_id is _FRESH else session_id
        self._parent = None if parent is _INFERRED else parent

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


def _remedy(value: object, for_none: str) -> str:
    if value is None:
        return f"write {for_none}"
    if callable(value):
        return 'as a decorator, write @session_scope() or @session_scope("..."), with parentheses'
    return "decode it first" if isinstance(value, bytes) else "pass str(...) of it"


class no_session(_Scope[None]):
    """Run a ``with`` block, or every call of a decorated function, outside every session.

    Requests to a gateway are then sent without a session, and without the warning that a forgotten
    scope gets.

    ::

        with no_session():
            report_health()         # not billed to any session

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
    """Decorate a function so that each call runs in the session that an argument names.

    :param name: the name of a parameter whose value is the session ID, or a parameter and
        attributes of its value, separated by dots.
    :raises TypeError: on decorating, if the function has no such parameter; on calling, if the
        value found is not a ``str``.
    :raises AttributeError: on calling, if the value has no such attribute.
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
    if not is_text(name):
        raise TypeError('write @session_from("..."), with the name of a parameter')
    if not all(map(str.isidentifier, name.split(".")[1:])):
        raise TypeError(f"{name!r} is not a parameter's name with dots for attributes")

    def decorate(fn: _Decorated) -> _Decorated:
        function = fn.__func__ if isinstance(fn, classmethod | staticmethod) else fn
        return _decorate(fn, _SessionOfArgument(function, name))

    return decorate


class _SessionOfArgument:
    """Find the session of a call of ``fn`` in its arguments, and return the scopes for the call."""

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        self._fn = fn
        self._name = name
        self._parameter, _, path = name.partition(".")
        self._attribute = attrgetter(path) if path else None
        self._called = called = getattr(fn, "__qualname__", type(fn).__qualname__)
        try:
            parameters = _signature(fn).parameters
        except ValueError:
            raise TypeError(f"{called} has no signature to find {name!r} in") from None
        found = parameters.get(self._parameter)
        if found is None or found.kind in (found.VAR_POSITIONAL, found.VAR_KEYWORD):
            raise TypeError(
                f"{called}({', '.join(parameters)}) has no parameter {self._parameter!r}"
            )
        self._position = list(parameters).index(self._parameter)
        if found.kind is found.KEYWORD_ONLY:
            self._position = sys.maxsize  # never among the positional arguments
        self._by_name = found.kind is not found.POSITIONAL_ONLY
        self._is_required = found.default is found.empty
        self._default = None if self._is_required else found.default

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ResumableScopes:
        value = self._argument(args, kwargs)
        if self._attribute is not None:
            try:
                value = self._attribute(value)
            except AttributeError as error:
                raise AttributeError(f"no {self._name!r} in {self._where()}: {error}") from error
        if not is_text(value):
            raise TypeError(
                f"session ID {self._name!r} must be a str, not {type(value).__name__}, in "
                f"{self._where()}: {self._remedy(value)}"
            )
        return _in_scope(session_scope(value), args, kwargs)

    def _remedy(self, value: object) -> str:
        if value is None:  # str(None) would be one session for everybody
            return (
                "pass an ID; if there may be none, leave the decorator out, and call the function "
                "inside session_scope(...) or no_session()"
            )
        if isinstance(value, bytes):
            return "decode it first"
        if self._attribute is not None:
            return "store str(...) of it there"
        return 'pass str(...) of it, or name its attribute: @session_from("session.id")'

    def _argument(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._position < len(args):
            return args[self._position]
        if self._by_name and self._parameter in kwargs:
            return kwargs[self._parameter]
        if self._is_required:
            raise TypeError(f"{self._called}() missing the argument {self._parameter!r}")
        return self._default

    def _where(self) -> str:
        return f"argument {self._parameter!r} of {self._called}()"


def _in_scope(scope: _Scope[Any], args: Any, kwargs: Any) -> ResumableScopes:
    return ResumableScopes(scope.lineage_in(current_lineage()))


def _decorate(fn: _Decorated, scopes_for: Callable[..., ResumableScopes]) -> _Decorated:
    if isinstance(fn, classmethod | staticmethod):
        if not issubclass(type(fn), classmethod | staticmethod):
            kind = fn.__class__.__name__  # what a wrapper says that it is, as those of wrapt do
            raise TypeError(
                f"cannot decorate what {type(fn).__name__} has made of a {kind}: decorate the "
                f"function itself, below @{kind}"
            )
        return cast(_Decorated, type(fn)(wrap(fn.__func__, scopes_for)))
    if isinstance(fn, type):
        raise TypeError(f"cannot decorate the class {fn.__qualname__}: decorate its methods")
    return cast(_Decorated, wrap(fn, scopes_for))
