"""The messages that go in and out of the recording gateway."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, TypeAlias

#: What a ``respond`` may return: JSON, with or without a status, or nothing.
Given: TypeAlias = "dict[str, Any] | list[Any] | tuple[int, dict[str, Any] | list[Any]] | None"


@dataclass(frozen=True)
class RecordedRequest:
    """One request, as it arrived.

    Its ``repr``, which a failed ``assert`` prints, leaves out where keys are: ``query``,
    ``headers`` and ``forward``. It shows the path and the body.
    """

    method: str
    path: str
    query: str = field(repr=False)
    headers: Message = field(repr=False)  #: case-insensitive; ``None`` for a header that is missing
    body: bytes
    json: dict[str, Any]  #: the body, if it is a JSON object, else empty
    session_id: str | None
    parent_session_id: str | None
    forward: str | None = field(repr=False)
    provider: str | None
    model: str | None  #: from the header, else from the JSON body


@dataclass
class Answer:
    """A response, and the tokens that are billed for it.

    ``chunks`` is a list unless the answer is ``streamed``.
    """

    status: int
    headers: dict[str, str]
    chunks: Iterable[bytes]
    streamed: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def has_body(self) -> bool:
        """Whether the status allows for a body."""
        return self.status not in (204, 304)
