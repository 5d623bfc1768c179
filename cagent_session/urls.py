"""Which URLs are safe to trust, and whose they are.

Two libraries that read one URL differently are how an identifier gets to a stranger. So there
is one pattern here for what all of them read alike; a URL that does not match it belongs to
nobody.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

_HOST = r"\[[0-9A-Fa-f:.]+\]|(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?"
_match = re.compile(
    rf"(?P<scheme>https?)://(?:[^/?#\\\s]*@)?(?P<host>{_HOST})(?::(?P<port>\d{{0,5}}))?"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.ASCII | re.IGNORECASE | re.DOTALL,
).fullmatch

DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Scheme and host in lower case, and the port, written out or not."""

    scheme: str
    host: str
    port: int


class Parts(NamedTuple):
    origin: Origin
    path: str
    query: str


def split(url: str) -> Parts | None:
    """The parts of an absolute http(s) URL, or ``None`` if libraries could differ about it."""
    match = _match(url)
    if match is None:
        return None
    scheme = match["scheme"].lower()
    port = int(match["port"] or DEFAULT_PORTS[scheme])
    origin = Origin(scheme, match["host"].lower(), port)
    return Parts(origin, match["path"] or "", match["query"] or "")


def leaves_origin(url: str, target: str) -> bool:
    """Whether going from ``url`` to ``target`` leaves the origin, or might."""
    here, there = split(url), split(target)
    return here is None or there is None or here.origin != there.origin


def has_dot_segment(path: str) -> bool:
    """Whether some server could read a ``.`` or ``..`` segment in ``path``, however spelt."""
    decoded = ""
    while decoded != path:
        # An escape that was escaped many times over is taken at once: %25252e is %2e.
        decoded, path = path, unquote(re.sub(r"%(?:25)+", "%", path), "latin-1")
    segments = decoded.replace("\\", "/").split("/")
    return any(segment.partition(";")[0] in (".", "..") for segment in segments)


def masked(url: str) -> str:
    """``url`` for people to read, without the values of its query, which may be secrets."""
    base, mark, query = url.partition("?")
    return base + mark + re.sub(r"=[^&]*", "=...", query)


def check(what: str, url: str) -> Parts:
    """The parts of ``url``, which a person configured.

    :raises ValueError: if anything about it is doubtful. The message shows none of it that
        could be a password.
    """
    if not isinstance(url, str):
        raise TypeError(f"{what} must be a str, not {type(url).__name__}")
    problem = _problem(url)
    if problem is None:
        parts = split(url)
        if parts is not None:
            return parts
        problem = "has a host that is not valid"
    raise ValueError(f"{what} {problem}: {_shown(url)}")


def _problem(url: str) -> str | None:
    if re.search(r"[\x00-\x20\x7f]", url):
        return "contains a space or a control character"
    if not url.isascii():
        return "contains non-ASCII characters (percent-encode them; write the host as xn--...)"
    if not re.match(r"https?://", url, re.IGNORECASE):
        if "://" in url:
            return "is neither http:// nor https://"
        return "is not absolute (it must start with http:// or https://)"
    if "\\" in url:
        return "contains a backslash"
    if "#" in url:
        return "contains a fragment (#...)"
    rest = url.partition("://")[2]
    authority, path = re.fullmatch(r"([^/?]*)([^?]*).*", rest).groups()  # type: ignore[union-attr]
    if "@" in authority:
        return "contains credentials"
    if re.match(r"(:|\Z)", authority):
        return "has no host"
    if re.search(r"%(?![0-9A-Fa-f]{2})", url):
        return "contains an invalid percent escape"
    port = re.fullmatch(r"(?:\[[^\]]*\]|[^:\[]*):(.*)", authority)
    if port and not (port[1].isdigit() and len(port[1]) <= 5 and 0 < int(port[1]) < 65536):
        return "has an invalid port"
    if has_dot_segment(path):
        return "contains a dot segment (. or .., also percent-encoded)"
    return None


def _shown(url: str) -> str:
    if "@" in unquote(unquote(url)):
        return "(not shown, it may hold a password)"
    shown = re.split(r"[?#]", url)[0]
    return ascii(shown[:100]) + ("..." if shown != url or len(shown) > 100 else "")
