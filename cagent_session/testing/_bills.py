"""Who has used what: the bill of a session, and that of a session with all its descendants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any


class Usage(dict[str, int]):
    """What one session has used, ready for JSON; its keys are its attributes, too."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def __getattr__(self, name: str) -> int:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def bills(audit_log: Iterable[Mapping[str, Any]]) -> dict[str | None, Usage]:
    """What each session has been served, and ``None`` for the calls outside every session."""
    found: dict[str | None, Usage] = {}
    for entry in audit_log:
        if entry["status"] < 400:
            tokens = {key: entry[key] for key in ("prompt_tokens", "completion_tokens")}
            session_id = entry["session_id"]
            found[session_id] = total([found.get(session_id), Usage(requests=1, **tokens)])
    return found


def total(usages: Iterable[Usage | None]) -> Usage:
    """All of them in one."""
    summed = Usage(requests=0, prompt_tokens=0, completion_tokens=0)
    for usage in usages:
        for key, number in (usage or {}).items():
            summed[key] += number
    return summed


def with_descendants(session_id: str, parents: Mapping[str, str]) -> list[str]:
    """A session and all below it, each of them once.

    :param parents: of each session that has one.
    """
    children = defaultdict(list)
    for child, parent in parents.items():
        children[parent].append(child)
    family = [session_id]
    for member in family:
        # Each has one parent, so a circle can only close where it began.
        family += [child for child in children[member] if child != session_id]
    return family
