"""Who has used what: the usage of a session, and of a session with all its descendants."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from .._session.ids import shown

_NAMED = 20  # sessions in a message


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


class Sessions(dict[str, Usage]):
    """The usage per session ID. Asking for another session says which ones there are."""

    def __init__(self, usages: Mapping[str, Usage], calls: Counter[str | None]) -> None:
        super().__init__(usages)
        self._calls = calls

    def __missing__(self, session_id: object) -> NoReturn:
        made = self._calls[session_id] if isinstance(session_id, str) else 0
        if made == 0:
            what = "no call"
        elif made == 1:
            what = "1 call, which was answered with an error"
        else:
            what = f"{made} calls, all of them answered with errors"
        name = shown(session_id) if isinstance(session_id, str) else repr(session_id)
        raise KeyError(f"session {name} made {what}; seen: {seen(self._calls)}")


def calls_per_session(audit_log: Iterable[Mapping[str, Any]]) -> Counter[str | None]:
    """Return how many calls each session made; those outside every session are under ``None``."""
    return Counter(entry["session_id"] for entry in audit_log)


def seen(calls: Mapping[str | None, int]) -> str:
    """Describe calls for a person: how many, of which sessions, and how many without one."""
    total = sum(calls.values())
    if total == 0:
        return "no calls"
    sessions = [(key, count) for key, count in calls.items() if key is not None]
    parts = [f"{count} of {shown(session_id)}" for session_id, count in sessions[:_NAMED]]
    if others := sum(count for _, count in sessions[_NAMED:]):
        parts.append(f"{others} of other sessions")
    parts.append(f"{calls.get(None, 0)} without a session")
    return f"{total} call{'s' * (total != 1)} ({', '.join(parts)})"


def bills(audit_log: Iterable[Mapping[str, Any]]) -> dict[str | None, Usage]:
    """Return the served usage per session, and under ``None`` that of the calls outside them."""
    found: dict[str | None, Usage] = {}
    for entry in audit_log:
        if is_served(entry):
            tokens = {key: entry[key] for key in ("prompt_tokens", "completion_tokens")}
            session_id = entry["session_id"]
            found[session_id] = total([found.get(session_id), Usage(requests=1, **tokens)])
    return found


def forward_of(entry: Mapping[str, Any]) -> str | None:
    """Return the forward of a call for people to read: a provider's key may be in its query."""
    forward: str | None = entry["forward"]
    return forward and re.sub(r"//[^/?#]*@", "//", forward.partition("?")[0])


def is_served(entry: Mapping[str, Any]) -> bool:
    """Return whether a call is billed: calls answered with an error are not."""
    status: int = entry["status"]
    return status < 400


def total(usages: Iterable[Usage | None]) -> Usage:
    """Return the sum of several usages; ``None`` counts as zero."""
    summed = Usage(requests=0, prompt_tokens=0, completion_tokens=0)
    for usage in usages:
        for key, number in (usage or {}).items():
            summed[key] += number
    return summed


def with_descendants(session_id: str, parents: Mapping[str, str]) -> list[str]:
    """Return a session and all sessions below it, each of them once.

    :param parents: the parent of each session that has one.
    """
    children = defaultdict(list)
    for child, parent in parents.items():
        children[parent].append(child)
    family = [session_id]
    for member in family:
        # Each session has one parent, so a cycle can only close where it began.
        family += [child for child in children[member] if child != session_id]
    return family
