"""Patch a method of another library once, below the wrappers that further libraries put on it.

A patch is never removed, because restoring the original could undo another library's wrapper. What
it does depends on a variable that it reads at every call; that switches it on and off.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

_IS_PATCH = "_cagent_session_patch"

_log = logging.getLogger("cagent_session")


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
    class_name, _, name = path.partition(".")
    found = getattr(module, class_name)
    if not issubclass(type(found), type):  # a mock, which may pretend to be a class
        _warn(path, found, by)
        return
    owner = _original_class(found, class_name)
    is_inherited = name not in vars(owner)
    holder: Any = owner
    attribute, method = name, _inherited(owner, name) if is_inherited else vars(owner)[name]
    # Also true of a wrapper made with functools.wraps around a patch of ours.
    if getattr(method, _IS_PATCH, False) is True:
        return
    # Only an object with a settable __wrapped__ lets us in; a function keeps its own closure.
    while type(method) is not types.FunctionType and hasattr(method, "__wrapped__"):
        holder, attribute, method = method, "__wrapped__", method.__wrapped__
    defined_in = getattr(method, "__globals__", {}).get("__name__", "")
    is_original = _package(defined_in) == _package(module.__name__)
    if by and not (is_original or is_inherited):
        _warn(path, method, by)
    if not hasattr(type(method), "__get__"):  # a mock, which is not called with self
        return
    patched = functools.wraps(method)(make_patch(method, *arguments))
    setattr(patched, _IS_PATCH, True)
    setattr(holder, attribute, patched)


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


class Switched:
    """A context manager that has switched patches, and restores at its end what was in force.

    It may be entered again, also while it is entered: each entry puts ``wanted`` in force.

    :param switch: puts its argument in force, and returns what was in force before.
    """

    def __init__(self, switch: Callable[[Any], Any], wanted: Any) -> None:
        self._switch, self._wanted = switch, wanted
        self._was_entered = False
        self._before = [switch(wanted)]  # what each __exit__() to come restores, the last one first

    def __enter__(self) -> Switched:
        before = self._switch(self._wanted)
        # The end of the first entry restores what was in force before this object was made, and
        # __init__() has kept that.
        if self._was_entered:
            self._before.append(before)
        self._was_entered = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._was_entered = True  # also without an entry, which ExitStack.push() leaves out
        if self._before:
            self._switch(self._before.pop())
