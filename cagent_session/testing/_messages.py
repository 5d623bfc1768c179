"""What goes in and out of the recording gateway."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from typing import Any, TypeAlias

#: What a ``respond`` gives back: JSON, with a status or without, or nothing.
Given: TypeAlias = "dict[str, Any] | list[Any] | tuple[int, dict[str, Any] | list[Any]] | None"


@dataclass(frozen=True)
class RecordedRequest:
    """One request, as it arrived."""

    method: str
    path: str
    query: str
    headers: Message  #: case-insensitive; ``None`` for a header that is missing
    body: bytes
    json: dict[str, Any]  #: the body, if it is a JSON object, else empty
    session_id: str | None
    parent_session_id: str | None
    forward: str | None
    provider: str | None
    model: str | None  #: of the header, else of the JSON body


@dataclass
class Answer:
    """What is sent back, and what is billed for it."""

    status: int
    headers: dict[str, str]
    chunks: list[bytes]
    streamed: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def has_body(self) -> bool:
        """Whether its status allows for one."""
        return self.status not in (204, 304)
