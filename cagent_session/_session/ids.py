"""Check session IDs, and show a malformed one in an error."""

from __future__ import annotations

import re
from typing import TypeGuard

MAX_LENGTH = 256  # characters of a session ID
_SHOWN = 60  # characters of a malformed ID that an error shows

_is_session_id = re.compile(rf"[!-~]{{1,{MAX_LENGTH}}}").fullmatch


class InvalidSessionID(ValueError):
    """A session ID that cannot be sent: not 1 to 256 visible ASCII characters (``!`` to ``~``)."""

    # Tracebacks then show the name that users import.
    __module__ = "cagent_session"


def is_text(value: object) -> TypeGuard[str]:
    """Return whether ``value`` is a ``str`` in fact.

    A proxy, such as werkzeug's ``LocalProxy``, says so to ``isinstance()``, but is none.
    """
    return issubclass(type(value), str)


def check_session_id(value: str, what: str = "session ID") -> str:
    """Return ``value`` as a plain ``str``.

    :param what: what the error calls the value.
    :raises InvalidSessionID: for a value that is not 1 to 256 visible ASCII characters.
    """
    value = str.__str__(value)  # a subclass may override the methods that are used below
    if _is_session_id(value) is not None:
        return value
    if not value:
        problem = "is empty"
    elif len(value) > MAX_LENGTH:
        problem = f"has {len(value)} characters, {MAX_LENGTH} at most can be sent"
    else:
        position, character = next((i, c) for i, c in enumerate(value) if not "!" <= c <= "~")
        problem = f"has {character!a} at position {position}, only '!' to '~' can be sent"
    raise InvalidSessionID(f"{what} {problem}: {shown(value)}")


def shown(value: str) -> str:
    """Return ``value`` quoted, escaped to printable ASCII and cut to 60 characters."""
    return ascii(str.__str__(value[:_SHOWN])) + ("..." if len(value) > _SHOWN else "")
