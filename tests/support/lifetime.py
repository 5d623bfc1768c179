"""Watching whether objects go away by themselves."""

from __future__ import annotations

import weakref


class Item:
    """Something that can be watched."""


class Watch:
    """Whether an object is gone, without the help of the collector of cycles."""

    def __init__(self, watched: object) -> None:
        self._ref = weakref.ref(watched)

    @property
    def is_gone(self) -> bool:
        return self._ref() is None
