"""Read and copy header mappings of requests and urllib3, whatever spellings they have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any

from urllib3._collections import HTTPHeaderDict

from .._gate.passage import lower
from .._gate.routes import Headers


def copied(headers: Mapping[str, Any]) -> MutableMapping[str, Any]:
    """Return a copy of ``headers``: a dict, or urllib3's class if a name has several values."""
    if isinstance(headers, HTTPHeaderDict):
        return headers.copy()
    items = list(headers.items())
    made: MutableMapping[str, Any] = dict(items)
    if len(made) < len(items):  # as in a CIMultiDict
        made = HTTPHeaderDict()
        for name, value in items:
            made.add(name, value)
    return made


def without(headers: Mapping[str, Any], keys: Collection[str]) -> MutableMapping[str, Any]:
    """Return a copy of ``headers`` less those whose names, in lower case, are in ``keys``."""
    made = copied(headers)
    for name in [name for name in made if lower(name) in keys]:
        del made[name]
    return made


def with_stamp(
    headers: Mapping[str, Any], stamped: Headers, removed: Iterable[str]
) -> MutableMapping[str, Any]:
    """Return a copy of ``headers`` with a ``Stamp``: first what comes off, then what is set.

    Removing a header before it is set also drops other spellings of its name.
    """
    made = without(headers, {*stamped, *removed})
    made.update(stamped.values())
    return made
