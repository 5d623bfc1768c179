"""Make the values of headers from the session in scope."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from .._session.ids import is_text
from .._session.scopes import Lineage
from .validation import check_value, plain_text

#: What a user gives: a template, or a function (session_id, parent_id, root_id) -> value or None.
Given: TypeAlias = "str | Callable[[str, str | None, str], str | None]"

# What a template can name, by its position in a Lineage. The order is that of the fields there.
_FIELDS = {"session": 0, "parent": 1, "root": 2}


class SessionHeader(NamedTuple):
    """A header that is made from the session."""

    key: str  #: the name in lower case
    name: str
    #: makes the value; ``None`` if this session has no such header
    make: Callable[[Lineage], str | None]


def session_header(name: str) -> SessionHeader:
    """Return the header whose value is the session ID."""
    # The plain code would be lambda lineage: lineage.session. A C function takes less time, and
    # this is called for every request.
    return SessionHeader(name.lower(), name, itemgetter(_FIELDS["session"]))


def parent_header(name: str) -> SessionHeader:
    """Return the header whose value is the parent's ID."""
    return SessionHeader(name.lower(), name, itemgetter(_FIELDS["parent"]))


def further_header(name: str, given: Given) -> SessionHeader:
    """Return the header that one entry of ``session_headers`` describes.

    :raises ValueError: for a template that cannot be filled in or sent.
    :raises TypeError: for anything but a template or a function.
    """
    if is_text(given):
        return SessionHeader(name.lower(), name, _filled_in(name, given))
    if callable(given):
        return SessionHeader(name.lower(), name, _called(name, given))
    raise TypeError(
        f"session header {name!r} must be a template such as '{{session}}' or a function "
        f"(session_id, parent_id, root_id) -> str | None, not {type(given).__name__}"
    )


def _filled_in(name: str, template: str) -> Callable[[Lineage], str | None]:
    """Return a function that fills the template in, or returns ``None`` if a field is missing."""
    # Splitting by a group keeps what it matched: texts and names of fields take turns.
    pieces = re.split(r"\{(session|parent|root)\}", template)
    texts, fields = pieces[::2], [_FIELDS[field] for field in pieces[1::2]]
    write_a_function = "write a function (session_id, parent_id, root_id) -> str | None"
    if not template:
        raise ValueError(
            f"the template of session header {name!r} is empty: write {{session}}, or leave the "
            "header out"
        )
    if any("{" in text or "}" in text for text in texts):
        raise ValueError(
            f"the template of session header {name!r} has a brace that belongs to none of "
            f"{{session}}, {{parent}} and {{root}}: for JSON and other shapes, {write_a_function}"
        )
    # Each field stands for a session ID, so a space next to one is no space at an end.
    try:
        check_value(f"the template of session header {name!r}", "x".join(texts))
    except ValueError as error:
        raise ValueError(f"{error}; or {write_a_function}") from None

    def fill_in(lineage: Lineage) -> str | None:
        parts = [texts[0]]
        for field, text in zip(fields, texts[1:], strict=True):
            value: Any = lineage[field]
            if value is None:
                return None
            parts += value, text
        return "".join(parts)

    return fill_in


def _called(
    name: str, function: Callable[[str, str | None, str], str | None]
) -> Callable[[Lineage], str | None]:
    """Return a function that calls the user's, and checks what that returns."""
    what = f"what the function of session header {name!r} returns"

    def call(lineage: Lineage) -> str | None:
        # The gate calls this inside a session only, where neither session nor root is None.
        value = function(lineage.session, lineage.parent, lineage.root)  # type: ignore[arg-type]
        if value is None:
            return None
        if not check_value(what, value):
            raise ValueError(f"{what} is empty: return None to leave the header out")
        return plain_text(value)  # type: ignore[no-any-return]

    return call
