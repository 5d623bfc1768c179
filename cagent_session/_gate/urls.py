"""Read URLs so strictly that every HTTP library reads them alike.

If two libraries parse a URL differently, an identifier can end up at the wrong host. Only URLs that
match the strict pattern below have an origin here. Of those, the ones without user info and without
dot segments can be a gateway's.
"""

from __future__ import annotations

import html
import re
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import quote, unquote

from .._session.ids import is_text

_HOST = r"\[[0-9A-Fa-f:.]+\]|(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?"
_match = re.compile(
    rf"(?P<scheme>https?)://(?P<user>[^/?#\\\s]*@)?(?P<host>{_HOST})(?::(?P<port>\d{{0,5}}))?"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.ASCII | re.IGNORECASE | re.DOTALL,
).fullmatch
# An authority that an error may show. One with a colon could hold a password.
_is_plain_authority = re.compile(r"[\w.-]*|\[[0-9A-Fa-f:.]*\]").fullmatch

DEFAULT_PORTS = {"http": 80, "https": 443}
# How often to decode. What was decoded may be an escape again: %%32e is %2e. A path that is still
# not decoded then is doubtful.
_ROUNDS = 8


class Origin(NamedTuple):
    """Scheme and host in lower case, and the port with its default filled in."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        if self.port == DEFAULT_PORTS[self.scheme]:
            return f"{self.scheme}://{self.host}"
        return f"{self.scheme}://{self.host}:{self.port}"


class Parts(NamedTuple):
    """The parts of a URL; path and query as they were written, the query without its ``?``."""

    origin: Origin
    path: str
    query: str
    has_user: bool


def split(url: str) -> Parts | None:
    """Return the parts of an absolute http(s) URL; ``None`` if libraries may read it otherwise."""
    match = _match(url)
    if match is None:
        return None
    scheme = match["scheme"].lower()
    port = int(match["port"] or DEFAULT_PORTS[scheme])
    origin = Origin(scheme, match["host"].lower(), port)
    return Parts(origin, match["path"] or "", match["query"] or "", match["user"] is not None)


def origin_of(url: str) -> Origin | None:
    """Return the origin of ``url``, or ``None`` if it is doubtful."""
    parts = split(url)
    return None if parts is None else parts.origin


def same_origin(url: str, other: str) -> bool:
    """Return whether two URLs have the same origin; false if either is doubtful."""
    here = origin_of(url)
    return here is not None and here == origin_of(other)


def equivalent(url: str, other: str) -> bool:
    """Return whether a server gets the same from two URLs.

    They may differ in how escapes are spelt, and in user info and fragment, which are not sent as
    part of the URL. Of several slashes at the beginning of the path, some versions of requests send
    one. Doubtful URLs are the same only if they are equal.
    """
    if url == other:
        return True
    here, there = split(url), split(other)
    return (
        here is not None
        and there is not None
        and here.origin == there.origin
        and canonical(here.path.lstrip("/")) == canonical(there.path.lstrip("/"))
        and canonical(here.query) == canonical(there.query)
    )


def is_printable(url: str) -> bool:
    """Return whether ``url`` has no spaces, line breaks or control characters of any kind."""
    return url.isprintable() and " " not in url


def canonical(part: str, plain: str = "-._~") -> str:
    """Return a path or query with its percent escapes in the spelling that RFC 3986 prefers.

    :param plain: the characters besides letters and digits that are not escaped.
    """

    def spell(escape: re.Match[str]) -> str:
        character = chr(int(escape[1], 16))
        is_plain = re.match("[A-Za-z0-9]", character) or character in plain
        return character if is_plain else escape[0].upper()

    return re.sub(r"%([0-9A-Fa-f]{2})", spell, part)


def comparable(path: str) -> str:
    """Return a path in a spelling in which two are equal if a library may send one for the other.

    yarl, and so aiohttp, decodes many more escapes than RFC 3986 asks for.
    """
    return canonical(path, "-._~!$&'()*,:;=@")


def has_dot_segment(path: str) -> bool:
    """Return whether a server could read a ``.`` or ``..`` segment in ``path``, however spelt."""
    return decoded_segments(path) is None


def decoded_segments(path: str) -> list[str] | None:
    """Return the segments of ``path`` as a server could read them.

    They are decoded, and without parameters and empty segments. ``None`` if there may be a dot
    segment among them: servers disagree on what that leaves.
    """
    path = path.encode(errors="replace").decode("latin-1")  # a character as its escapes are decoded
    for _ in range(_ROUNDS):
        # An escape that was escaped many times over is decoded at once: %25252e is %2e.
        decoded = unquote(re.sub(r"%(?:25)+", "%", path), "latin-1")
        if decoded == path:
            break
        path = decoded
    else:
        return None
    segments = [re.split("[;?#]", each)[0] for each in path.replace("\\", "/").split("/")]
    return None if "." in segments or ".." in segments else list(filter(None, segments))


def redacted(url: str) -> str:
    """Return ``url`` for a log: without user info, query and fragment, which may hold secrets."""
    parts = split(url)
    if parts is None:
        return "a URL that is not clear"
    return re.sub(r"[^!-~]", "?", f"{parts.origin}{parts.path}")


def masked(url: str) -> str:
    """Return ``url`` for people to read, with the values of its query replaced by dots.

    :param url: one that :func:`check` has passed, so that it has no user info.
    """
    base, mark, query = url.partition("?")
    # A parameter without a name may be nothing but a secret.
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return base + mark + "&".join(f"{name}=..." if equals else "..." for name, equals, _ in pairs)


def check(what: str, url: str) -> Parts:
    """Return the parts of a URL that a person configured.

    :param what: what the error calls the URL.
    :raises ValueError: if anything about it is doubtful. The message leaves out what could be a
        password.
    :raises TypeError: if it is not a ``str``.
    """
    if not is_text(url):
        raise TypeError(f"{what} must be a str, not {type(url).__name__}")
    problem = _problem(url)
    if problem is None:
        parts = split(url)
        if parts is not None:
            return parts
        problem = "has a host that is not valid"
    raise ValueError(f"{what} {problem}: {_shown(url)}")


def check_gateway(what: str, url: str) -> Parts:
    """Do what :func:`check` does, and see that no library spells the host or the path otherwise.

    What a library sends would not be the gateway's then.
    """
    parts = check(what, url)
    host = parts.origin.host
    if host.startswith("["):
        address = _shortest(host.strip("[]"))
        if address is None:
            raise ValueError(f"{what} has an IPv6 address that is not valid")
        if host != f"[{address}]":
            raise ValueError(f"{what} spells its IPv6 address in an unusual way: write [{address}]")
    odd = re.search(r'["<>^`{|}\[\]]', parts.path)
    if odd:
        raise ValueError(f"{what} has {odd[0]!r} in its path: write {quote(odd[0])}")
    return parts


def _shortest(address: str) -> str | None:
    """Return an IPv6 address as yarl writes it, or ``None`` if it is not valid."""
    try:
        return IPv6Address(address).compressed
    except ValueError:
        return None


def _problem(url: str) -> str | None:
    """Return what is wrong with ``url``, as the end of a sentence that begins with its name."""
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
    authority, path = _authority_and_path(url)
    if "@" in authority:
        return "contains credentials (send them in a header: Gateway(headers=...))"
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


def _authority_and_path(url: str) -> tuple[str, str]:
    rest = url.partition("://")[2]
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    return authority, rest[len(authority) :].partition("?")[0]


def _shown(url: str) -> str:
    """Return a refused URL for an error, without anything that could be a password."""
    authority, _ = _authority_and_path(url)
    if _hides_at_sign(url) or not _is_plain_authority(authority):
        return "(not shown, it may hold a password)"
    shown = re.split(r"[?#]", url)[0]
    return ascii(shown[:100]) + ("..." if shown != url or len(shown) > 100 else "")


def _hides_at_sign(url: str) -> bool:
    """Return whether there is an ``@`` in ``url``, however spelt: escaped, fullwidth or small."""
    for _ in range(_ROUNDS):
        url = html.unescape(unquote(url))
    return re.search("[@\uff20\ufe6b]", url) is not None
