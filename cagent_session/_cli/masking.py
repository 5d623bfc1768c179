"""Mask secrets in a text, in a time that is linear in the secrets and the text."""

from __future__ import annotations

import contextlib
import html
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl

SECRET = 6  # characters; something shorter may be part of an ordinary word
LONG = 256  # characters, of a word that is looked for on its own

# Characters as URLs, JSON and HTML spell them.
_ESCAPE = re.compile(r"(?:%[0-9a-f]{2})+|\\u[0-9a-f]{4}|\\[^u]|&#?\w{1,31};", re.IGNORECASE)
_IN_JSON = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# What is left of one, or of a character in several bytes, at the end of a text that has been cut.
_HALF = re.compile(r"(?:%[0-9a-f]?|\\(?:u[0-9a-f]{0,3})?|&#?\w{0,31}|\ufffd)\Z", re.IGNORECASE)
_LAYERS = 3  # a URL in JSON in HTML


class Secrets:
    """Words that are not shown, however a text spells them.

    ``text.replace`` for each word would do, in a time that grows with the number of words times
    the length of the text, and a header of 64 KiB may have ten thousand words. There can be only a
    few long ones.

    :param words: from :func:`words_of`.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = set(words)
        longest_first = sorted(self._words, key=len, reverse=True)
        self._long = [word for word in longest_first if len(word) > LONG]
        # The lengths of the other words that begin with these characters, the longest first.
        self._lengths: defaultdict[str, list[int]] = defaultdict(list)
        for word in longest_first[len(self._long) :]:
            lengths = self._lengths[word[:SECRET]]
            if not lengths or lengths[-1] != len(word):
                lengths.append(len(word))

    def masked(self, text: str, *, is_cut: bool = False) -> str:
        """Return ``text`` with ``***`` in place of every word.

        :param is_cut: whether its end is masked, too, where it may be the beginning of a word.
        """
        plain, starts, ends = _read(text)
        found = [*self._long_ones(plain), *self._short_ones(plain)]
        places = [(starts[start], ends[until - 1]) for start, until in found]
        if is_cut:
            half = _HALF.search(plain)
            for until in {len(plain), half.start() if half else len(plain)}:
                start = until - self._size_of_beginning_at_end(plain[:until])
                if start < until:
                    places.append((starts[start], len(text)))
        parts: list[str] = []
        end = 0  # of the last place that is hidden
        for start, until in sorted(places):
            if start >= end:  # else it overlaps a place that is hidden already
                parts += [text[end:start], "***"]
            end = max(end, until)
        return "".join([*parts, text[end:]])

    def _long_ones(self, plain: str) -> Iterator[tuple[int, int]]:
        """Yield where the long words begin and end in ``plain``."""
        for word in self._long:
            start = plain.find(word)
            while start >= 0:
                yield start, start + len(word)
                start = plain.find(word, start + len(word))

    def _short_ones(self, plain: str) -> Iterator[tuple[int, int]]:
        """Yield where all other words begin and end in ``plain``."""
        for start in range(len(plain) - SECRET + 1):
            for length in self._lengths.get(plain[start : start + SECRET], ()):
                word = plain[start : start + length]
                if word in self._words:
                    yield start, start + len(word)
                    break

    def _size_of_beginning_at_end(self, plain: str) -> int:
        """Return how many characters at the end of ``plain`` may be the beginning of a word."""
        longest = 0
        for word in self._words:
            for size in range(min(len(word) - 1, len(plain)), longest, -1):
                if word.startswith(plain[-size:]):
                    longest = size
                    break
        return longest


def words_of(values: Iterable[str]) -> set[str]:
    """Return the words of some values that are long enough to be looked for, without escapes.

    A value without its first word counts as one, too: ``Bearer`` may have been that.
    """
    words: set[str] = set()
    for value in values:
        for word in (value, *value.split(maxsplit=1), *value.split()):
            words.add(without_escapes(word))
            with contextlib.suppress(UnicodeEncodeError):  # then it is in no header
                words.add(without_escapes(word.encode("latin-1").decode("utf-8", "replace")))
    return {word for word in words if len(word) >= SECRET}


def without_escapes(text: str) -> str:
    return _read(text)[0]


def _read(text: str) -> tuple[str, list[int], list[int]]:
    """Return ``text`` without escapes, and where each of its characters begins and ends there.

    A plus is a blank, as a query may spell that.
    """
    starts, ends = list(range(len(text))), list(range(1, len(text) + 1))
    for _ in range(_LAYERS):
        parts: list[str] = []
        new_starts: list[int] = []
        new_ends: list[int] = []
        read = 0  # up to here
        for found in _ESCAPE.finditer(text):
            start, until = found.span()
            said = _said(found[0])
            parts += [text[read:start], said]
            new_starts += [*starts[read:start], *[starts[start]] * len(said)]
            new_ends += [*ends[read:start], *[ends[until - 1]] * len(said)]
            read = until
        text = "".join([*parts, text[read:]])
        starts, ends = new_starts + starts[read:], new_ends + ends[read:]
    return text.replace("+", " "), starts, ends


def _said(escape: str) -> str:
    """Return what an escape stands for."""
    if escape[0] == "%":
        said = bytes.fromhex(escape.replace("%", ""))
        with contextlib.suppress(UnicodeDecodeError):
            return said.decode()
        return said.decode("latin-1")
    if escape[0] == "&":
        return html.unescape(escape)
    mark, code = escape[1], escape[2:]
    return chr(int(code, 16)) if code else _IN_JSON.get(mark, mark)


def values_in_queries(urls: Iterable[str]) -> Iterator[str]:
    """Yield the parts of the queries of some URLs, as they are and decoded."""
    for url in urls:
        query = url.partition("?")[2]
        yield from re.split("[&=]", query)
        yield from (pair.partition("=")[2] for pair in query.split("&"))
        yield from (value for _, value in parse_qsl(query))
