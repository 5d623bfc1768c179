"""Know from a request itself that it has passed the gate, and which of its headers the gate set.

A request may come past several places where the gate sits: requests sends over urllib3, and
``instrument`` sits below a mounted adapter. Only the first place is to judge it. A context variable
cannot tell which request that was, because the code that sends a request may send others meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import urls


class Passage:
    """One gateway-bound request, while a transport is sending it.

    :param url: where the request goes.
    :param layer: the layer of urllib3 that judged it, for :meth:`covers`; ``None`` for the others.
    """

    __slots__ = ("is_open", "layer", "method", "url")

    def __init__(self, method: Any, url: Any, layer: str | None = None) -> None:
        self.method = method
        self.url = url
        self.layer = layer
        self.is_open = True  #: until the request has been sent

    def covers(self, method: Any, url: Any, layer: str | None = None) -> bool:
        """Return whether a request is the one of this passage, or a copy made further down.

        :param layer: the layer that asks. urllib3 calls itself for each attempt with the headers
            of the last one, so a layer does not count its own passages.
        """
        return (
            self.is_open
            and (layer is None or self.layer != layer)
            and self.method == method
            and urls.same(str(self.url), str(url))
        )


class Stamped(str):
    """The value of a header that the gate set. Copies of the headers keep it, as they share values.

    Most values are made once per gateway. The session's are made for each request, and know its
    passage; outside every session, one made by :func:`attach` does.
    """

    passage: Passage | None = None

    def __reduce__(self) -> Any:
        return str, (str.__str__(self),)  # whoever unpickles it may not have this package


class StampedBytes(bytes):
    """What :class:`Stamped` is, for httpx, which keeps headers in bytes."""

    passage: Passage | None = None

    def __reduce__(self) -> Any:
        return bytes, (bytes(self),)


def is_stamped(value: Any) -> bool:
    """Return whether the gate set this value of a header, for this request or an earlier one."""
    return isinstance(value, Stamped | StampedBytes)


def attach(passage: Passage | None, stamped: dict[Any, tuple[Any, ...]]) -> None:
    """Let one of the headers that the gate set know the passage."""
    for key in reversed(stamped):
        *names, value = stamped[key]
        value = type(value)(value)
        value.passage = passage
        stamped[key] = (*names, value)
        return


def passage_in(headers: Iterable[tuple[Any, ...]]) -> Passage | None:
    """Return the passage that one of a request's headers knows, whose value stands at its end."""
    for header in headers:
        kind = header[-1].__class__
        if (kind is Stamped or kind is StampedBytes) and header[-1].passage is not None:
            return header[-1].passage  # type: ignore[no-any-return]
    return None
