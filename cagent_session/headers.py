"""The names on the wire, and the rules for their values."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from ._version import __version__

FORWARD = "X-Cagent-Forward"
SESSION_ID = "X-Cagent-Session-Id"
PARENT_SESSION_ID = "X-Cagent-Parent-Session-Id"
PROVIDER = "X-Cagent-Provider"
MODEL = "X-Cagent-Model"
MODEL_NAME = "X-Cagent-Model-Name"

# Headers as the gate reads and sets them: (name, value) by the name in lower case.
Headers: TypeAlias = Mapping[str, tuple[str | bytes, str | bytes]]
Stamped: TypeAlias = dict[str, tuple[str, str]]

_Header = TypeVar("_Header", bound=tuple[Any, Any])

MAX_LENGTH = 256  # of a session ID
_SHOWN = 60  # characters of a malformed one

_is_session_id = re.compile(rf"[!-~]{{1,{MAX_LENGTH}}}").fullmatch
_is_name = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_value = re.compile(r"[!-~](?:[ -~]*[!-~])?").fullmatch


def goos(platform: str) -> str:
    """What Go calls the operating system that Python calls ``platform`` (``sys.platform``)."""
    if platform in ("win32", "cygwin"):
        return "windows"
    if platform == "sunos5":
        return "solaris"
    return platform.rstrip("0123456789")  # freebsd14


def goarch(machine: str) -> str:
    """What Go calls the architecture that the system calls ``machine``, as in ``uname -m``."""
    machine = machine.lower()
    if re.fullmatch(r"i[3-6]86|x86", machine):
        return "386"
    if machine.startswith("armv"):
        return "arm"
    return {"x86_64": "amd64", "aarch64": "arm64", "loongarch64": "loong64"}.get(machine, machine)


def _machine() -> str:
    # platform.machine() knows this too, but importing platform would take longer than the rest.
    if hasattr(os, "uname"):
        return os.uname().machine
    return os.environ.get("PROCESSOR_ARCHITECTURE", "unknown")


OS = goos(sys.platform)
ARCH = goarch(_machine())
USER_AGENT = f"cagent-session/{__version__} ({OS}; {ARCH})"
RUNTIME = {
    "X-Cagent-Lang": "python",
    "X-Cagent-OS": OS,
    "X-Cagent-Arch": ARCH,
    "X-Cagent-Runtime": "cagent-session",
    "X-Cagent-Runtime-Version": __version__,
}


def lower(name: str | bytes) -> str:
    return (name if isinstance(name, str) else name.decode("latin-1")).lower()


def by_lower_name(items: Iterable[_Header]) -> dict[str, _Header]:
    """Of a name that comes more than once the first value counts that is not empty."""
    headers: dict[str, _Header] = {}
    for header in items:
        key = lower(header[0])
        if key not in headers or not headers[key][1]:
            headers[key] = header
    return headers


class InvalidSessionID(ValueError):
    """A session ID that cannot be sent: not 1 to 256 visible ASCII characters (``!`` to ``~``)."""


def check_session_id(value: str, what: str = "session ID") -> str:
    """Give ``value`` back as a plain ``str``, or raise :class:`InvalidSessionID`."""
    if _is_session_id(value) is not None:
        return value if type(value) is str else str.__str__(value)
    if not value:
        problem = "is empty"
    elif len(value) > MAX_LENGTH:
        problem = f"has {len(value)} characters, {MAX_LENGTH} at most can be sent"
    else:
        position, character = next((i, c) for i, c in enumerate(value) if not "!" <= c <= "~")
        problem = f"has {character!a} at position {position}, only '!' to '~' can be sent"
    raise InvalidSessionID(f"{what} {problem}: {shown(value)}")


def shown(value: str) -> str:
    """``value`` for people to read, whatever it contains."""
    return ascii(str.__str__(value[:_SHOWN])) + ("..." if len(value) > _SHOWN else "")


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
