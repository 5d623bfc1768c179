"""Copy a request, as quickly as the gate has to, and whatever its class is."""

from __future__ import annotations

import contextlib
import functools
from types import MemberDescriptorType
from typing import Any, TypeVar

_T = TypeVar("_T")


def shallow_copy(request: _T) -> _T:
    """Return a copy that shares everything with ``request``, also a stream that is read only once.

    The plain code would be ``copy.copy(request)``. That takes more than four times as long, as it
    goes through ``__reduce_ex__``, and requests of httpx are copied without their stream by it.
    """
    kind: Any = type(request)
    copied: Any = object.__new__(kind)
    # Not by assignment, which a subclass may have a __setattr__() for.
    object.__setattr__(copied, "__dict__", request.__dict__.copy())
    for slot in _slots_of(kind):
        with contextlib.suppress(AttributeError):  # the slot is empty
            slot.__set__(copied, slot.__get__(request))
    return copied  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=256)
def _slots_of(kind: type) -> tuple[MemberDescriptorType, ...]:
    """Return what the ``__slots__`` of a class and its base classes have made."""
    return tuple(
        each
        for base in kind.__mro__
        for each in vars(base).values()
        if isinstance(each, MemberDescriptorType)
    )
