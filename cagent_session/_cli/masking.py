"""Mask secrets in a text, in a time that is linear in the secrets and the text."""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl, quote

SECRET = 6  # characters; something shorter may be part of an ordinary word
LONG = 256  # characters, of a word that is looked for on its own


class Secrets:
    """Words that are not shown.

    ``text.replace`` for each word would do, in a time that grows with the number of words times
    the length of the text, and a header of 64 KiB may have ten thousand words. There can be only a
    few long ones.
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
        places = [*self._long_ones(text), *self._short_ones(text)]
        beginning = self._size_of_beginning_at_end(text) if is_cut else 0
        if beginning:
            places.append((len(text) - beginning, len(text)))
        parts: list[str] = []
        end = 0  # of the last place that is hidden
        for start, until in sorted(places):
            if start >= end:  # else it overlaps a place that is hidden already
                parts += [text[end:start], "***"]
            end = max(end, until)
        return "".join([*parts, text[end:]])

    def _long_ones(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where the long words begin and end in ``text``."""
        for word in self._long:
            start = text.find(word)
            while start >= 0:
                yield start, start + len(word)
                start = text.find(word, start + len(word))

    def _short_ones(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where all other words begin and end in ``text``."""
        for start in range(len(text) - SECRET + 1):
            for length in self._lengths.get(text[start : start + SECRET], ()):
                if text[start : start + length] in self._words:
                    yield start, start + length
                    break

    def _size_of_beginning_at_end(self, text: str) -> int:
        """Return how many characters at the end of ``text`` may be the beginning of a word."""
        longest = 0
        for word in self._words:
            for size in range(min(len(word) - 1, len(text)), longest, -1):
                if word.startswith(text[-size:]):
                    longest = size
                    break
        return longest


def spellings(values: Iterable[str]) -> set[str]:
    """Return the words of some values, as they are and as URLs, JSON and HTML spell them.

    A value without its first word counts as one, too: ``Bearer`` may have been that.
    """
    words = {
        word
        for value in values
        for word in [value, *value.split(maxsplit=1), *value.split()]
        if len(word) >= SECRET
    }
    return {spelling for word in words for spelling in _spellings_of(word)}


_ESCAPE = re.compile("%..")
_IN_HTML = re.compile("[&<>]")


def _spellings_of(word: str) -> Iterator[str]:
    yield word
    with contextlib.suppress(UnicodeEncodeError):  # then it is in no header
        yield word.encode("latin-1").decode("utf-8", "replace")
    in_html = html.escape(word)
    yield in_html
    yield in_html.replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
    for quoted in (quote(word), quote(word, safe="")):
        yield quoted
        yield _ESCAPE.sub(lambda escape: escape[0].lower(), quoted)
    for is_ascii in (True, False):
        in_json = json.dumps(word, ensure_ascii=is_ascii)[1:-1]
        yield in_json
        yield in_json.replace("/", r"\/")  # by PHP
        yield _IN_HTML.sub(lambda found: rf"\u{ord(found[0]):04x}", in_json)  # by Go


def values_in_queries(urls: Iterable[str]) -> Iterator[str]:
    """Yield the parts of the queries of some URLs, as they are and decoded."""
    for url in urls:
        query = url.partition("?")[2]
        yield from re.split("[&=]", query)
        yield from (pair.partition("=")[2] for pair in query.split("&"))
        yield from (value for _, value in parse_qsl(query))
