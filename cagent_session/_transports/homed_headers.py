"""urllib3: headers whose identifiers know the origin that they are for.

On a redirect, urllib3 sends the headers again that its caller gave, or those of the last attempt.
So the value of an identifier says by itself where it may go: it knows its origin, and comes off
where a request goes elsewhere.
"""

from __future__ import annotations

import re
from typing import Any

from urllib3._collections import HTTPHeaderDict
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from .._gate import urls
from .._gate.routes import is_identifier
from .mappings import lower


class _Homed(str):
    """The value of an identifier that the caller set, which is for one origin."""

    home: Any

    def __reduce__(self) -> Any:
        return str, (str.__str__(self),)


class _HomedBytes(bytes):
    """What :class:`_Homed` is, for a value that was given in bytes."""

    home: Any

    def __reduce__(self) -> Any:
        return bytes, (bytes(self),)


def _with_home(value: Any, home: Any) -> Any:
    """Return the value of an identifier, bound to the origin ``home`` unless it has one."""
    if isinstance(value, _Homed | _HomedBytes):
        return value
    homed: Any
    if isinstance(value, bytes):
        homed = _HomedBytes(value)
    elif isinstance(value, str):
        homed = _Homed(str.__str__(value))  # of an enum, what is sent
    elif isinstance(value, int):
        homed = _Homed(value)
    else:
        return value  # which cannot be sent
    homed.home = home
    return homed


class _SeveralOfOneName(HTTPHeaderDict):
    """urllib3's headers, which read a value that is the only one of its name as it is.

    The plain class joins even a single value, which makes an ordinary ``str`` of it.
    """

    def __getitem__(self, key: str) -> Any:
        values = self.getlist(key)
        return values[0] if len(values) == 1 else super().__getitem__(key)


class _Spellings(dict[Any, str]):
    """Names in lower case, by how they were spelt.

    The plain code would be ``lower(name)``, which makes a new string that has never been hashed.
    Looking names up takes a fourth of that.
    """

    def __missing__(self, name: str | bytes) -> str:
        if len(self) >= 1024:
            self.clear()
        return self.setdefault(name, lower(name))


lower_name = _Spellings().__getitem__


def homed(headers: Any, identifiers: frozenset[str], origin: Any) -> Any:
    """Return a copy of ``headers`` with every identifier bound to ``origin`` that is bound to none.

    :param identifiers: besides ``X-Cagent-*``, by their names in lower case.
    :param origin: ``None`` to bind none, and only copy.
    """
    items = []
    for name, value in headers.items():
        if origin and is_identifier(lower_name(name), identifiers):
            value = _with_home(value, origin)
        items.append((name, value))
    # Of urllib3's own class, ProxyManager would read the values as ordinary strings.
    if len({lower_name(name) for name, _ in items}) == len(items):
        return dict(items)
    made = _SeveralOfOneName()
    for name, value in items:
        made.add(name, value)
    return made


def is_for_another(value: Any, url: str) -> bool:
    """Return whether ``value`` is of an identifier that is for another origin than ``url``'s."""
    return isinstance(value, _Homed | _HomedBytes) and value.home != origin_of(url)


def origin_of(url: str) -> Any:
    """Return what stands for the origin of ``url``, as urllib3 reads it, in a comparison."""
    origin = urls.origin_of(url)
    if origin is None:
        url = read_by_urllib3(url)
        origin = urls.origin_of(url)
    if origin is not None:
        return origin
    found = re.match("[^/]*//[^/?#]*", url)
    return found[0].lower() if found else object()  # the origin of nothing else


def read_by_urllib3(url: str) -> str:
    """Return ``url`` with the scheme that urllib3 assumes, and without user info."""
    try:
        parsed = parse_url(url)
    except LocationParseError:
        return ""
    return parsed._replace(scheme=parsed.scheme or "http", auth=None, fragment=None).url
