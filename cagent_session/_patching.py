"""Patch a method of another library once, below the wrappers that further libraries put on it.

A patch is never removed, because restoring the original could undo another library's wrapper. What
it does depends on a :class:`Switch` that it reads at every call.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

# An attribute of a patch, and its value. In another copy of this package, it has another value.
_IS_PATCH, _OURS = "_cagent_session_patch", object()

_log = logging.getLogger("cagent_session")
_warn_once = functools.cache(_log.warning)  # for each message and its arguments
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it when this process was forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def patch(
    module: types.ModuleType,
    path: str,
    make_patch: Callable[..., Any],
    *arguments: Any,
    by: str = "",
) -> None:
    """Replace a method of a class, unless that has been done already.

    A wrapper of wrapt or OpenTelemetry stays outermost and gets the replacement in place of the
    original: outside the wrapper, the replacement would keep the other library from removing it.

    :param module: of the library, where the class is.
    :param path: of the method in it, such as ``"HTTPAdapter.send"``. A method that the class
        inherits is defined on it; the base class and its other subclasses keep theirs.
    :param make_patch: called with the original method and ``arguments``; returns the replacement.
    :param by: the function to call again if another library takes the replacement away, for a
        warning in the log ``cagent_session``. Without it there is no warning.
    """
    with _lock:
        _patch(module, path, make_patch, arguments, by)


def _patch(
    module: types.ModuleType,
    path: str,
    make_patch: Callable[..., Any],
    arguments: tuple[Any, ...],
    by: str,
) -> None:
    class_name, _, name = path.partition(".")
    found = getattr(module, class_name)
    if not issubclass(type(found), type):  # a mock, which may pretend to be a class
        if by:
            _warn(path, found, by)
        return
    owner = _original_class(found, class_name)
    is_inherited = name not in vars(owner)
    holder: Any = owner
    attribute, method = name, _inherited(owner, name) if is_inherited else vars(owner)[name]
    # Only an object with a settable __wrapped__ lets us in; a function keeps its own closure.
    closed = types.FunctionType, types.MethodType, staticmethod, classmethod
    is_bound = True  # by what holds it: a class does that, and so does a wrapper of wrapt
    while type(method) not in closed and hasattr(method, "__wrapped__"):
        is_bound = is_bound and _is_of_wrapt(method)
        holder, attribute = _bound_by(method) if is_bound else method, "__wrapped__"
        method = holder.__wrapped__
    # Also true of a wrapper made with functools.wraps around a patch of ours.
    mark = getattr(method, _IS_PATCH, None)
    if mark is _OURS:
        return
    if type(mark) is object:  # a mock has anything
        _warn_once(
            "%s was patched by a copy of this package that was imported before, and is out of this "
            "copy's reach. Import the package outside mock.patch.dict(sys.modules)",
            path,
        )
        return
    if by and not (is_inherited or _is_of(module, method)):
        _warn(path, method, by)
    if not hasattr(type(method), "__get__"):  # a mock, which is not called with self
        return
    patched = functools.wraps(method)(make_patch(method, *arguments))
    setattr(patched, _IS_PATCH, _OURS)
    setattr(holder, attribute, patched)


def patch_on(
    instance: object,
    module: types.ModuleType,
    path: str,
    make_patch: Callable[..., Any],
    *arguments: Any,
) -> None:
    """Replace a method that was put on one object, bare or in wrappers of wrapt or OpenTelemetry.

    What is on the object is the bound method of before, not the patch that the class got later.
    Everything else that an object may have in place of a method stays as it is.

    :param path: of the method in ``module``, and ``make_patch``: see :func:`patch`.
    """
    holder: Any = instance
    attribute = path.partition(".")[2]
    method: Any = getattr(instance, "__dict__", {}).get(attribute)
    if method is None:  # as with almost every request
        return
    while _is_of_wrapt(method):
        holder, attribute, method = method, "__wrapped__", method.__wrapped__
    if type(method) is not types.MethodType:
        return
    original = method.__func__  # or a patch, which is of this package, or a method of a subclass
    if not _is_of(module, original) or original.__qualname__ != path:
        return
    patched = functools.wraps(original)(make_patch(original, *arguments))
    bound = types.MethodType(patched, method.__self__)
    if holder is instance:
        vars(instance)[attribute] = bound  # its class may refuse setattr(), as frozen ones do
    else:
        setattr(holder, attribute, bound)


def _is_of(module: types.ModuleType, function: Any) -> bool:
    """Return whether ``function`` is the library's own."""
    defined_in = getattr(function, "__globals__", {}).get("__name__", "")
    return _package(defined_in) == _package(module.__name__)


def _is_of_wrapt(wrapper: object) -> bool:
    # Without its __getattr__(): a proxy around a wrapper of wrapt answers as that wrapper does.
    try:
        object.__getattribute__(wrapper, "_self_binding")
    except AttributeError:
        return False
    return True


def _bound_by(wrapper: Any) -> Any:
    """Return the wrapper of wrapt whose ``__wrapped__`` is called where ``wrapper`` is bound."""
    # A class gives a wrapper that is bound to it. OpenTelemetry's unwrap() puts such a one in the
    # class. It binds anew what its parent wraps, and what it has itself is not called.
    parent = wrapper._self_parent
    return wrapper if parent is None else parent


def _warn(path: str, found: object, by: str) -> None:
    _log.warning(
        "%s is not the library's own, but %r: when that is taken back, %s has to be called again",
        path,
        found,
        by,
    )


def _original_class(found: type, name: str) -> type:
    """Return the library's class, where ``found`` is a subclass that somebody has put in its place.

    A patch of the subclass would not reach the library's class and its other subclasses.
    """
    # By the name, as other libraries change the __module__ of a class that they export.
    return next((each for each in reversed(found.__mro__) if each.__name__ == name), found)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _inherited(owner: type, name: str) -> Any:
    """Return a method for ``owner`` that calls the one of its base class."""

    @functools.wraps(getattr(owner, name))
    def inherited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(owner, self), name)(*args, **kwargs)

    # pickle looks the method up by these two.
    inherited.__module__, inherited.__qualname__ = owner.__module__, f"{owner.__qualname__}.{name}"
    return inherited


class Switch:
    """What patches are to do, for the whole process: what the last call has put in force.

    A call counts until it is taken back, or for good. Blocks of several threads or tasks may be
    taken back in any order.

    :param off: the value before the first call.
    """

    def __init__(self, off: Any) -> None:
        #: The last call that counts: the patches read its ``value``. It knows the one before.
        self.last = _Call(off, None)
        self._length = 1
        self._limit = 8  # the length at which it is worth looking for superfluous calls

    def put(self, value: Any) -> Switched:
        """Put ``value`` in force, until what is returned takes it back."""
        return Switched(self, value)

    def put_for_good(self, value: Any) -> None:
        """Put ``value`` in force, until a call that was made before is taken back."""
        self.add(_Call(value, None))

    def add(self, call: _Call) -> None:
        """Put the value of ``call`` in force."""
        with _lock:
            call.below, self.last.above = self.last, call
            self.last = call
            self._length += 1
            if self._length > self._limit:
                self._drop_superfluous()
                self._limit = 2 * self._length + 8

    def take_back(self, call: _Call) -> None:
        """Put what was in force before ``call`` in force again."""
        with _lock:
            later = call.above
            self._drop(call)
            # It takes later calls along. But not from a block on that has not ended: that is
            # another thread's or task's.
            while later is not None and not later.is_block:
                gone, later = later, later.above
                self._drop(gone)

    def _drop(self, call: _Call) -> None:
        # Without a call of any function, at which the collector might end a block in between.
        below, above = call.below, call.above
        if below is None:  # it is gone already, or the first of all
            return
        call.below = call.above = None
        below.above = above
        if above is None:
            self.last = below
        else:
            above.below = below
        self._length -= 1

    def _drop_superfluous(self) -> None:
        """Drop the first of two calls in a row that nobody can take back any more."""
        above, call = self.last, self.last.below
        while call is not None:
            below = call.below
            if call.can_end() or above.can_end():
                above = call
            else:
                self._drop(call)
            call = below


class _Call:
    """A call that has put ``value`` in force.

    :param owner: what can take it back, as long as it exists.
    :param is_block: whether it is a ``with`` block that has begun, and will take it back.
    """

    below: _Call | None = None  #: the call before it
    above: _Call | None = None  #: the call after it

    def __init__(self, value: Any, owner: Switched | None, *, is_block: bool = False) -> None:
        self.value = value
        self.is_block = is_block
        self._owner = None if owner is None else weakref.ref(owner)

    def can_end(self) -> bool:
        """Return whether it may yet be taken back."""
        # A block may be, though its owner is gone: the collector clears weak references to what is
        # in a cycle, and then closes the generator that ends the block.
        return self.is_block or (self._owner is not None and self._owner() is not None)


class Switched:
    """A context manager for a value that is in force from now on, until the block ends.

    It may be entered again, also while it is entered: each entry puts the value in force.
    """

    def __init__(self, switch: Switch, value: Any) -> None:
        self._switch, self._value = switch, value
        self._was_entered = False
        first = _Call(value, self)
        self._calls = [first]  # what each __exit__() to come takes back, the last one first
        switch.add(first)

    def __enter__(self) -> Switched:
        block = _Call(self._value, self, is_block=True)
        with _lock:
            self._switch.add(block)
            if not self._was_entered:
                # The end of the first block restores what was in force before this object was made.
                self._switch.take_back(self._calls.pop())
            self._was_entered = True
            self._calls.append(block)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            self._was_entered = True  # also without an entry, which ExitStack.push() leaves out
            if self._calls:
                self._switch.take_back(self._calls.pop())

    def __reduce__(self) -> Any:
        # Initializers of interpreter pools, and Dask's run(), send back what a call returns. From
        # there nothing can be switched off here.
        return contextlib.nullcontext, ()
