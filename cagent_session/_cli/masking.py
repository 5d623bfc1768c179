"""Mask secrets in a text, in a time that is linear in the secrets and the text."""

from __future__ import annotations

import base64
import contextlib
import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl

SECRET = 6  # characters; something shorter may be part of an ordinary word
PIECE = 8  # characters of a longer secret; that many in a row are masked wherever they are

# What is left of an escape, or of a character in several bytes, where a text has been cut.
_HALF = re.compile(
    r"[\x80-\xff\ufffd]{0,3}(?:%[0-9a-f]?|\\(?:u[0-9a-f]{0,3}|x[0-9a-f]?)?|&#?\w{0,31})?\Z",
    re.IGNORECASE,
)
_LAYERS = 2  # of escapes: a URL in JSON, JSON in HTML


class Secrets:
    """Words that are not shown, however a text spells them, and be they cut at either end.

    :param words: from :func:`words_of`.
    """

    def __init__(self, words: set[str]) -> None:
        self._pieces = {
            word[start : start + PIECE]
            for word in words
            for start in range(max(len(word) - PIECE, 0) + 1)
            if not word[start : start + PIECE].isspace()
        }
        self._sizes = sorted({len(piece) for piece in self._pieces}, reverse=True)
        self._beginnings = {word[:size] for word in words for size in range(1, PIECE)}

    def masked(self, text: str, *, is_cut: bool = False) -> str:
        """Return ``text`` with ``***`` in place of every word and every piece of one.

        :param is_cut: whether its end is masked, too, where it may be the beginning of a word.
        """
        places = [
            (reading.starts[start], reading.ends[until - 1])
            for reading in _readings(text)
            for start, until in self._found(reading.text, is_cut)
        ]
        parts: list[str] = []
        end = 0  # of the last place that is hidden
        for start, until in sorted(places):
            if start > end or not parts:  # else it goes on where one is hidden already
                parts += [text[end:start], "***"]
            end = max(end, until)
        return "".join([*parts, text[end:]])

    def _found(self, plain: str, is_cut: bool) -> Iterator[tuple[int, int]]:
        """Yield where pieces begin and end in ``plain``, and where its end may begin one."""
        for start in range(len(plain) - SECRET + 1):
            for size in self._sizes:
                piece = plain[start : start + size]
                if piece in self._pieces:
                    # Blanks around a word are no part of it.
                    yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
                    break
        if is_cut:
            until = len(plain)
            for _ in range(_LAYERS + 1):
                for size in range(PIECE - 1, 0, -1):
                    if size <= until and plain[until - size : until] in self._beginnings:
                        yield until - size, len(plain)
                        break
                until = _HALF.search(plain, 0, until).start()  # type: ignore[union-attr]


def words_of(values: Iterable[str]) -> set[str]:
    """Return the words of some values that are long enough to be looked for, with fewer escapes.

    A value without its first word counts as one, too: ``Bearer`` may have been that. And so does
    what stands behind a name, as in a cookie.
    """
    words: set[str] = set()
    for value in values:
        parts = re.split(r"[\s,;&]+", value)
        named = [re.split("[=:]", part, maxsplit=1)[-1].strip("\"'") for part in parts]
        for word in (value, *value.split(maxsplit=1), *value.split(), *parts, *named):
            words |= readings_of(word)
            with contextlib.suppress(UnicodeEncodeError):  # then it is in no header
                words |= readings_of(word.encode("latin-1").decode("utf-8", "replace"))
    return {word for word in words if len(word) >= SECRET}


def readings_of(text: str) -> set[str]:
    """Return what ``text`` may stand for: as it is, and with fewer escapes."""
    return {reading.text for reading in _readings(text)}


@dataclass
class _Reading:
    """A text as it is, or with fewer escapes.

    A plus is a blank, as a query may spell that.

    :param starts: where each of its characters begins in the text as it is.
    :param ends: where it ends there.
    """

    text: str
    starts: list[int]
    ends: list[int]

    def without(self, escape: re.Pattern[str], said: Callable[[str], str]) -> _Reading:
        parts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        read = 0  # up to here
        for found in escape.finditer(self.text):
            start, until = found.span()
            part = said(found[0])
            parts += [self.text[read:start], part]
            starts += [*self.starts[read:start], *[self.starts[start]] * len(part)]
            ends += [*self.ends[read:start], *[self.ends[until - 1]] * len(part)]
            read = until
        text = "".join([*parts, self.text[read:]]).replace("+", " ")
        return _Reading(text, starts + self.starts[read:], ends + self.ends[read:])


def _readings(text: str) -> list[_Reading]:
    """Return ``text`` as it is, less the escapes of each language, and of two within each other."""
    layer = [_Reading(text.replace("+", " "), list(range(len(text))), [*range(1, len(text) + 1)])]
    all_layers = {layer[0].text: layer[0]}
    for _ in range(_LAYERS):
        layer = [each.without(*language) for each in layer for language in _LANGUAGES]
        layer = [each for each in layer if each.text not in all_layers]
        all_layers |= {each.text: each for each in layer}
    return list(all_layers.values())


def _bytes_said(escapes: str) -> str:
    said = bytes.fromhex(re.sub(r"%|\\x", "", escapes)).decode("utf-8", "surrogateescape")
    return said.translate(_LATIN_1)


def _said_in_json(escapes: str) -> str:
    if escapes[1] in _BY_MARK:
        return _BY_MARK[escapes[1]]
    if escapes[1] == "x":
        return _bytes_said(escapes)
    if escapes[1] != "u":
        return escapes[1]
    return bytes.fromhex(escapes.replace(r"\u", "")).decode("utf-16-be", "surrogatepass")


# What "surrogateescape" makes of bytes that are not UTF-8.
_LATIN_1 = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}
_BY_MARK = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LANGUAGES = [
    (re.compile("(?:%[0-9a-fA-F]{2})+"), _bytes_said),
    # \x is not JSON's, but JavaScript's and Python's.
    (re.compile(r"(?:\\u[0-9a-fA-F]{4})+|(?:\\x[0-9a-fA-F]{2})+|\\[^ux]"), _said_in_json),
    # Browsers read those without a semicolon, too.
    (re.compile(r"&(?:#\w{1,31}(?:;|(?=\W))|[a-zA-Z]\w{0,30};?)"), html.unescape),
]


def decoded_of_basic(value: str) -> Iterator[str]:
    """Yield the ``user:password`` of a value for ``Authorization``, in either of its encodings."""
    scheme, _, encoded = value.partition(" ")
    if scheme.lower() != "basic":
        return
    with contextlib.suppress(ValueError):
        decoded = base64.b64decode(encoded)
        yield decoded.decode("utf-8", "replace")
        yield decoded.decode("latin-1")  # as requests encodes it


def values_in_queries(urls: Iterable[str]) -> Iterator[str]:
    """Yield the parts of the queries of some URLs, as they are and decoded."""
    for url in urls:
        query = url.partition("?")[2]
        yield from re.split("[&=]", query)
        yield from (pair.partition("=")[2] for pair in query.split("&"))
        yield from (value for _, value in parse_qsl(query))
