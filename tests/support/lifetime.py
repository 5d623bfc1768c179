"""Watching whether objects go away by themselves."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

from cagent_session import current_session_id


class Item:
    """Something that can be watched."""


class Watch:
    """Whether an object is gone, without the help of the collector of cycles."""

    def __init__(self, watched: object) -> None:
        self._ref = weakref.ref(watched)

    @property
    def is_gone(self) -> bool:
        return self._ref() is None


def noting_its_end(seen: list[str | None]) -> Iterator[None]:
    """A generator that adds the session in which its ``finally`` runs to ``seen``."""
    try:
        yield
    finally:
        seen.append(current_session_id())
