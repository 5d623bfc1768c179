"""Check the names and values of headers that a person configures, before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from .._session.ids import is_text
from ..headers import (
    COMPACTING,
    FORWARD,
    GENERATING_TITLE,
    INSTALL_ID,
    MODEL,
    MODEL_NAME,
    PROVIDER,
    ROOT_SESSION_ID,
    SESSION_ID,
)

#: In lower case, what every header of docker-agent's protocol begins with.
PREFIX = "x-cagent-"

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_is_value = re.compile(r"[!-~](?:[ -~]*[!-~])?").fullmatch

# Each table below says why a name cannot be configured, by the name in lower case.

# Refused for every kind of header.
_FRAMING = dict.fromkeys(
    (
        *("host", "content-length", "content-encoding", "transfer-encoding", "connection"),
        *("keep-alive", "te", "trailer", "upgrade", "expect"),
    ),
    "the HTTP library sets it",
)
# Refused for gateway headers, Gateway(headers=...).
_NOT_CONFIGURABLE = _FRAMING | {
    FORWARD.lower(): "Gateway(forward=...) sets it",
    SESSION_ID.lower(): "the session in scope sets it",
    ROOT_SESSION_ID.lower(): "messages of queues carry it",
}
# Refused for session headers, the parent's included.
RESERVED_NAMES = _FRAMING | {
    **dict.fromkeys(("traceparent", "tracestate", "baggage"), "tracing sets it"),
    **dict.fromkeys(("content-type", "accept", "accept-encoding"), "it describes the body"),
    **dict.fromkeys(
        ("authorization", "proxy-authorization", "cookie", "set-cookie"), "it carries credentials"
    ),
    "user-agent": "it names the client",
    ROOT_SESSION_ID.lower(): "messages of queues carry it",
    INSTALL_ID.lower(): "it identifies the installation",
}
# Refused for the parent's header, besides those. It alone may have a name in X-Cagent-* that is in
# none of these tables. RUNTIME in protocol.py has the last five names, too.
PROTOCOL_NAMES = dict.fromkeys(
    (
        name.lower()
        for name in (
            *(FORWARD, SESSION_ID, PROVIDER, MODEL, MODEL_NAME, GENERATING_TITLE, COMPACTING),
            *("X-Cagent-Lang", "X-Cagent-OS", "X-Cagent-Arch"),
            *("X-Cagent-Runtime", "X-Cagent-Runtime-Version"),
        )
    ),
    "docker-agent's protocol uses it for something else",
)


def check_session_header(
    name: str, what: str = "session_header", taken: Collection[str] = ()
) -> None:
    """Raise if ``name`` cannot be a header that is made from the session.

    :param what: what the error calls the name.
    :param taken: the names of the other session headers, in lower case.
    """
    check_name(what, name)
    key = name.lower()
    # A reserved X-Cagent-* name gets the error below, which says why it is reserved.
    if key.startswith(PREFIX) and key not in {SESSION_ID.lower(), *RESERVED_NAMES}:
        raise ValueError(
            f"{what} cannot be {name!r}: among the X-Cagent-* headers, only {SESSION_ID} carries "
            "the session. Write that, or a name outside X-Cagent-*, such as X-Session-ID"
        )
    _check_is_free(what, name, RESERVED_NAMES)
    _check_is_not_taken(what, name, taken)


def check_parent_header(name: str, taken: Collection[str]) -> None:
    """Raise if ``name`` cannot be the header that a session's parent is sent in."""
    check_name("parent_header", name)
    _check_is_free("parent_header", name, RESERVED_NAMES | PROTOCOL_NAMES)
    _check_is_not_taken("parent_header", name, taken)


def check_gateway_header(name: str, value: str, taken: Collection[str]) -> None:
    """Raise if a header cannot be a gateway header, which is the same on every request.

    :param taken: the names, in lower case, of the session headers.
    """
    check_name("header", name)
    check_value(f"header {name!r}", value)
    _check_is_free("header", name, _NOT_CONFIGURABLE)
    if name.lower() in taken:
        raise ValueError(
            f"header cannot be {name!r}, which is made from the session: take it out of headers="
        )


def _check_is_free(what: str, name: str, reserved: Mapping[str, str]) -> None:
    reason = reserved.get(name.lower())
    if reason is not None:
        example = "X-Parent-Session-ID" if what == "parent_header" else "X-Session-ID"
        remedy = "leave it out" if what == "header" else f"give another name, such as {example}"
        raise ValueError(
            f"{what} cannot be {name!r}, which has a meaning of its own ({reason}): {remedy}"
        )


def _check_is_not_taken(what: str, name: str, taken: Collection[str]) -> None:
    if name.lower() in taken:
        raise ValueError(
            f"{what} cannot be {name!r}, which has a meaning of its own (another header of the "
            "session has this name): give each a name of its own"
        )


def check_name(what: str, name: str) -> None:
    """Raise if ``name`` cannot be a header's name.

    A whole header may have been given by mistake, ``"X-Key: secret"`` or ``"X-Key=secret"``. So the
    error shows nothing from the first character on that no name can have.
    """
    if not is_text(name):
        raise TypeError(f"{what} must be a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        found = _NAME.match(name)
        shown = found[0] if found else ""
        cut = "..." if shown != name else ""
        raise ValueError(
            f"{what} {shown[:60]!r}{cut} is not a valid header name: write the name alone, in "
            "letters, digits and hyphens"
        )


def check_value(what: str, value: str) -> str:
    """Return ``value``, and raise if it cannot be sent as it is.

    An empty value passes: the caller decides what it means. No error shows a value, as it may be a
    secret.
    """
    if not is_text(value):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")
    if value and not _is_value(value):
        raise ValueError(
            f"{what} has characters other than printable ASCII, or a space at an end, "
            "and cannot be sent in a header: percent-encode it, or use json.dumps"
        )
    return value


def checked_dict(what: str, given: Any) -> dict[Any, Any]:
    """Return a copy of a mapping that was given as the parameter ``what``; empty for ``None``."""
    try:
        items = dict(given or {}).items()
    except (TypeError, ValueError):
        kind = type(given).__name__
        raise TypeError(f"{what} must be a dict of names and values, not a {kind}") from None
    return {plain_text(name): plain_text(value) for name, value in items}


def plain_text(value: Any) -> Any:
    """Return a ``str`` as one of that very class, and everything else as it is.

    A subclass may override the methods that are used later: ``str()`` of a member of
    ``class Model(str, Enum)`` is ``"Model.GPT"``.
    """
    return str.__str__(value) if is_text(value) else value
