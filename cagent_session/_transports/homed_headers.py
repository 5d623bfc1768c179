"""urllib3: headers whose identifiers are tied to an origin, their home.

On a redirect, urllib3 sends the headers that its caller gave, or those of the last attempt. So the
value of an identifier says by itself where it may be sent: a transport takes it off a request to
any other origin. Copies of headers share values, so they keep homes.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from urllib3._collections import HTTPHeaderDict
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from .._gate import urls
from .._gate.passage import SameInCopies, are_plain_text, belongs_to_open, lower, passage_of
from .._gate.routes import Plan, is_identifier
from .guarded_headers import GuardedHeaders


class _Homed(SameInCopies, str):
    """The value of an identifier that the caller set, tied to one origin."""

    home: Any  #: what origin_of() returns for the URL of the request on which the caller set it

    def __reduce__(self) -> Any:
        return str, (str.__str__(self),)


class _HomedBytes(SameInCopies, bytes):
    """The same as :class:`_Homed` for a value that was given in bytes."""

    home: Any

    def __reduce__(self) -> Any:
        return bytes, (bytes(self),)


_HOMED = frozenset({_Homed, _HomedBytes})


def _with_home(value: Any, home: Any) -> Any:
    """Return the value of an identifier, tied to ``home`` unless it has a home."""
    if value.__class__ in _HOMED:
        return value
    homed: Any
    if isinstance(value, str):
        homed = _Homed(str.__str__(value))  # str() of an enum is its name; its value is sent
    elif hasattr(value, "encode"):  # as http.client does it, for a UserString and the like
        homed = _HomedBytes(value.encode("latin-1"))
    elif isinstance(value, int):  # http.client sends its digits
        homed = _Homed(value)
    else:
        try:
            homed = _HomedBytes(memoryview(value))  # bytes, or another buffer
        except TypeError:
            return value  # urllib3 cannot send it
    homed.home = home
    return homed


# Cached, because a client sends the same few headers to the same gateway. Finding them takes a
# fourth of the time of making them. Identifiers are no secrets.
@functools.lru_cache(maxsize=256)
def _texts_with_home(
    names: tuple[str, ...], values: tuple[str, ...], home: Any
) -> dict[str, _Homed]:
    return {name: _with_home(value, home) for name, value in zip(names, values, strict=True)}


class HomedHeaders(dict[str, Any]):
    """Headers whose identifiers all have the same home. Their copies lack the attribute ``home``.

    It lets a pool compare one home in place of one for each header.
    """

    home: Any = None


class _SeveralOfOneName(HTTPHeaderDict):
    """urllib3's headers, but a value keeps its home, also where several are joined.

    The plain class joins even a single value, which turns a ``_Homed`` one into an ordinary
    ``str``.
    """

    def __getitem__(self, key: str) -> Any:
        values: list[Any] = self.getlist(key)
        if len(values) == 1:
            return values[0]
        joined = super().__getitem__(key)
        homes = [value.home for value in values if value.__class__ in _HOMED]
        if not homes:
            return joined
        # Values with different homes may be sent nowhere together.
        return _with_home(joined, homes[0] if homes.count(homes[0]) == len(homes) else object())


def homed(headers: Any, plan: Plan, origin: Any) -> Any:
    """Return a copy of ``headers`` whose identifiers have homes.

    The copy keeps the classes of the values, also of what a gate above has stamped. urllib3's own
    class does not: ``ProxyManager`` would read each value as an ordinary ``str``. If there is no
    such value, this returns ``headers``.

    :param headers: if they are of a request of requests that has been sent, its origin is the home.
        urllib3 makes copies of other classes, which do not know it.
    :param plan: for the names in ``headers``.
    :param origin: the home of identifiers that have none yet; ``None`` to leave them without.
    """
    if not plan.callers_identifiers:
        origin = None  # what has a home was an identifier at an earlier hop
    if origin and headers.__class__ is dict and plan.is_simple and are_plain_text(headers.values()):
        # The plain code is what follows. The caller's headers are mostly like these.
        made: Any = HomedHeaders(headers)
        values = tuple(map(headers.__getitem__, plan.callers_identifiers))
        made.update(_texts_with_home(plan.callers_identifiers, values, origin))
        made.home = origin
        return made
    identifiers = frozenset(plan.callers_identifiers)
    earlier = passage_of(headers, headers.items())
    is_open = earlier is not None and earlier.is_open
    is_sent = isinstance(headers, GuardedHeaders) and headers.left is None and not is_open
    items = []
    has_ours = False
    for name, value in headers.items():
        is_of_stamp = is_open and belongs_to_open(name, value)
        if is_sent and is_identifier(lower(name), headers.session_keys):
            value = _with_home(value, origin_of(headers.url))
        elif origin and name in identifiers and not is_of_stamp:
            value = _with_home(value, origin)
        has_ours |= is_of_stamp or value.__class__ in _HOMED
        items.append((name, value))
    if not has_ours:
        return headers
    if plan.is_simple or isinstance(headers, dict):  # a dict may have a name in two spellings
        return dict(items)
    made = _SeveralOfOneName()
    for name, value in items:
        made.add(name, value)
    return made


def is_for_another(value: Any, origin: Any) -> bool:
    """Return whether ``value`` is of an identifier that has another home than ``origin``."""
    return value.__class__ in _HOMED and value.home != origin


def origin_of(url: str) -> Any:
    """Return an object that is equal for all URLs in which urllib3 reads the same origin.

    :param url: an empty one is doubtful, and the object is then equal to no other.
    """
    if not url:
        return object()
    end = url.find("/", len("https://"))
    start = url if end < 0 else url[:end]
    # User info, queries and fragments may be secrets, which no cache is to keep.
    if "@" in start or "?" in start or "#" in start:
        return _origin_of(url)
    return _cached_origin_of(start)


def _origin_of(url: str) -> Any:
    origin = urls.origin_of(url)
    if origin is None:
        url = read_by_urllib3(url)
        origin = urls.origin_of(url)
    if origin is not None:
        return origin
    found = re.match("[^/]*//[^/?#]*", url)
    return found[0].lower() if found else object()  # equal to that of no other URL


_cached_origin_of = functools.lru_cache(maxsize=1024)(_origin_of)


def read_by_urllib3(url: str) -> str:
    """Return ``url`` with the scheme that urllib3 assumes, and without user info; empty if bad."""
    try:
        parsed = parse_url(url)
    except LocationParseError:
        return ""
    return parsed._replace(scheme=parsed.scheme or "http", auth=None, fragment=None).url
