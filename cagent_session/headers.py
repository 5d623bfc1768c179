"""The names on the wire, and the rules for their values."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any

from urllib3._collections import HTTPHeaderDict

from ._gate import urls
from ._session.ids import InvalidSessionID as InvalidSessionID
from ._session.ids import check_session_id as check_session_id
from ._version import __version__

__all__ = [
    "COMPACTING",
    "FORWARD",
    "GENERATING_TITLE",
    "MODEL",
    "MODEL_NAME",
    "PARENT_SESSION_ID",
    "PROVIDER",
    "ROOT_SESSION_ID",
    "SESSION_ID",
]

#: The provider's base URL; what makes a request gateway-bound.
FORWARD = "X-Cagent-Forward"
#: The session, for a gateway that has no name of its own for it.
SESSION_ID = "X-Cagent-Session-Id"
#: The session's parent, for a gateway that wants it: ``parent_header=PARENT_SESSION_ID``.
PARENT_SESSION_ID = "X-Cagent-Parent-Session-Id"
#: The session's outermost ancestor, in the messages of queues. No request carries it.
ROOT_SESSION_ID = "X-Cagent-Root-Session-Id"
#: The provider's name.
PROVIDER = "X-Cagent-Provider"
#: The model's ID.
MODEL = "X-Cagent-Model"
#: The model's name in the agent's configuration.
MODEL_NAME = "X-Cagent-Model-Name"
#: What a call is for: docker-agent sends ``1`` with those that make up a session's title.
GENERATING_TITLE = "X-Cagent-GeneratingTitle"
#: The same for the calls that compact a session's history.
COMPACTING = "X-Cagent-Compacting"

_is_name = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_value = re.compile(r"[!-~](?:[ -~]*[!-~])?").fullmatch


def goos(system: str) -> str:
    """What Go calls the operating system that Python calls ``system`` (``sys.platform``)."""
    if system in ("win32", "cygwin"):
        return "windows"
    if system == "sunos5":
        return "solaris"
    return system.rstrip("0123456789")  # freebsd14


def goarch(machine: str) -> str:
    """What Go calls the architecture that the system calls ``machine``, as in ``uname -m``."""
    machine = machine.lower()
    if re.fullmatch(r"i[3-6]86|x86", machine):
        return "386"
    if machine.startswith("armv"):
        return "arm"
    return {"x86_64": "amd64", "aarch64": "arm64", "loongarch64": "loong64"}.get(machine, machine)


OS = goos(sys.platform)
ARCH = goarch(platform.machine()) or "unknown"
USER_AGENT = f"cagent-session/{__version__} ({OS}; {ARCH})"
RUNTIME = {
    "X-Cagent-Lang": "python",
    "X-Cagent-OS": OS,
    "X-Cagent-Arch": ARCH,
    "X-Cagent-Runtime": "cagent-session",
    "X-Cagent-Runtime-Version": __version__,
}

PREFIX = "x-cagent-"

# Names in lower case. Those that frame a message are never anybody's to choose.
_FRAMING = {
    *("host", "content-length", "content-encoding", "transfer-encoding", "connection"),
    *("keep-alive", "te", "trailer", "upgrade", "expect"),
}
_NEVER_FIXED = _FRAMING | {FORWARD.lower(), SESSION_ID.lower()}
_WITH_A_MEANING = _FRAMING | {
    *("content-type", "authorization", "proxy-authorization", "cookie", "set-cookie"),
    *("accept", "accept-encoding", "user-agent"),
}
_OF_THE_PROTOCOL = frozenset(
    name.lower()
    for name in (
        *(FORWARD, SESSION_ID, PROVIDER, MODEL, MODEL_NAME, GENERATING_TITLE, COMPACTING),
        *RUNTIME,
    )
)


def lower(name: str | bytes) -> str:
    """The key under which headers compare, ``str`` and ``bytes`` alike."""
    return (name if isinstance(name, str) else name.decode("latin-1")).lower()


def is_identifier(key: str, names: frozenset[str]) -> bool:
    """Whether a header, its name in lower case, is for the gateway alone.

    :param names: those that are so besides all ``X-Cagent-*``.
    """
    return key.startswith(PREFIX) or key in names


def by_lower_name(items: Iterable[tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Headers by their names. Of one name several count as the first value that is not empty."""
    items = list(items)
    headers: dict[str, tuple[Any, Any]]
    try:
        headers = {str.lower(item[0]): item for item in items}
    except TypeError:
        headers = {}  # a name is bytes
    if len(headers) < len(items):
        headers = {}
        for item in items:
            key = lower(item[0])
            if key not in headers or not headers[key][1]:
                headers[key] = item
    return headers


def without(headers: Mapping[str, Any], keys: Collection[str]) -> MutableMapping[str, Any]:
    """A copy of ``headers`` less those named in ``keys``, which are in lower case."""
    # Only this class can have several of one name.
    made = headers.copy() if isinstance(headers, HTTPHeaderDict) else dict(headers)
    spellings = {*keys, *(key.encode() for key in keys)}
    for name in [name for name in headers if name.lower() in spellings]:
        del made[name]
    return made


def check_session_header(name: str) -> None:
    """Raise if ``name`` cannot be the header that sessions are sent in."""
    check_name("session_header", name)
    key = name.lower()
    if key.startswith(PREFIX) and key != SESSION_ID.lower():
        raise ValueError(f"session_header cannot be {name!r}: of X-Cagent-* it is {SESSION_ID}")
    _check_that_it_is_free("session_header", name, _WITH_A_MEANING)


def check_parent_header(name: str, session_header: str) -> None:
    """Raise if ``name`` cannot be the header that a session's parent is sent in."""
    check_name("parent_header", name)
    taken = _WITH_A_MEANING | _OF_THE_PROTOCOL | {session_header.lower()}
    _check_that_it_is_free("parent_header", name, taken)


def check_fixed_header(name: str, value: str, session_names: frozenset[str]) -> None:
    """Raise if a header cannot be the same on every request."""
    check_name("header", name)
    check_value(f"header {name!r}", value)
    _check_that_it_is_free("header", name, session_names | _NEVER_FIXED)


def _check_that_it_is_free(what: str, name: str, taken: Collection[str]) -> None:
    if name.lower() in taken:
        raise ValueError(f"{what} cannot be {name!r}, which has a meaning of its own")


def check_name(what: str, name: str) -> None:
    """Raise if ``name`` cannot be a header's."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {type(name).__name__}")
    if not _is_name(name):
        raise ValueError(f"{what} {name[:60]!a} is not a valid header name")


def check_value(what: str, value: str) -> str:
    """``value``, if it can be sent as it is. It may be a secret, so no error shows it."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")
    if value and not _is_value(value):
        raise ValueError(
            f"{what} has characters other than printable ASCII, or a space at an end, "
            "and cannot be sent in a header"
        )
    return value


def gateway_headers(
    forward: str,
    *,
    provider: str | None = None,
    model: str | None = None,
    model_name: str | None = None,
) -> dict[str, str]:
    """The headers that mark a request as gateway-bound, for callers who mark it themselves.

    For several providers or models over one client.

    :param forward: the provider's base URL, to which the gateway relays the request.
    :param provider: the provider's name; left out of the headers if empty, as the next two.
    :param model: the model's ID.
    :param model_name: the model's name in the agent's configuration.
    :raises ValueError: for a ``forward`` that :class:`Gateway` would refuse, or a value that
        cannot be sent in a header.

    ::

        http.mount("https://", GatewayAdapter())
        http.post(url, json=prompt, headers=gateway_headers("https://api.openai.com/v1"))
    """
    urls.check("forward URL", forward)
    headers = {FORWARD: forward}
    for what, name, value in (
        ("provider", PROVIDER, provider),
        ("model", MODEL, model),
        ("model_name", MODEL_NAME, model_name),
    ):
        if value is not None and check_value(what, value):
            headers[name] = value
    return headers | RUNTIME
