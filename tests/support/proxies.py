"""A proxy of a string, as werkzeug's ``LocalProxy`` is one: ``isinstance()`` takes it for a str."""

from __future__ import annotations

from typing import Any


class TextProxy:
    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def __class__(self) -> Any:
        return str

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text, name)

    def __str__(self) -> str:
        return self._text

    def __len__(self) -> int:
        return len(self._text)

    def __getitem__(self, index: Any) -> str:
        return self._text[index]
