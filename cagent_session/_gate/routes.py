"""Whose a URL is: a gateway's, or nobody's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ..headers import FORWARD, SESSION_ID, USER_AGENT
from . import urls

AGENT = ("User-Agent", USER_AGENT)

_host = re.compile(r"https?://(?:\[([^\]]*)\]|([^/?#:@\[\]\\\s]*))", re.IGNORECASE).match


class Owner:
    """Who owns a URL, for the gate and the transports: nobody, or the ``Gateway`` that this is.

    What they read at every request is worked out here once.
    """

    url: str
    session_header: str = SESSION_ID
    parent_header: str | None = None
    require_session: bool = False

    @cached_property
    def marks(self) -> dict[str, tuple[str, str]]:
        """What each request gets besides its session: name and value, by the name in lower case."""
        return {}

    @cached_property
    def session_key(self) -> str:
        """The session header's name in lower case."""
        return self.session_header.lower()

    @cached_property
    def session_names(self) -> frozenset[str]:
        """The names, in lower case, of the identifiers besides all ``X-Cagent-*``."""
        return frozenset(
            name.lower() for name in (self.session_header, self.parent_header) if name is not None
        )

    @cached_property
    def looked_at(self) -> Mapping[str | bytes, str]:
        """The names of the caller's headers that matter, by what they can be in lower case."""
        names = {FORWARD.lower(), "user-agent", *self.marks, *self.session_names}
        return {key: name for name in names for key in (name, name.encode())}

    @cached_property
    def in_bytes(self) -> frozenset[bytes]:
        """The names in bytes that matter to requests, for which there is one more."""
        return frozenset(key.encode() for key in {*self.looked_at.values(), "accept-encoding"})

    @cached_property
    def encoded(self) -> Mapping[str, tuple[bytes, bytes, bytes]]:
        """The marks as httpx keeps headers: the name, the name in lower case, the value."""
        marks = {"user-agent": AGENT} | self.marks
        return {
            key: (name.encode(), key.encode(), value.encode())
            for key, (name, value) in marks.items()
        }

    @cached_property
    def origin(self) -> urls.Origin:
        """Scheme, host and port."""
        return urls.check("gateway URL", self.url).origin

    @cached_property
    def path(self) -> str:
        """The path that all its URLs begin with, without a slash at the end; often empty."""
        return urls.canonical(urls.check("gateway URL", self.url).path.rstrip("/"))

    def owns(self, url: str) -> bool:
        """Whether ``url`` is the owner's for certain."""
        return False

    def with_query(self, url: Any) -> Any:
        """``url`` with the parameters that the owner wants on it."""
        return url


NOBODY = Owner()


class Gateways:
    """The gateways that one transport routes to.

    :raises TypeError: for anything but gateways.
    :raises ValueError: for two that differ and have one origin and path.
    """

    def __init__(self, *gateways: Owner) -> None:
        known: dict[tuple[urls.Origin, str], Owner] = {}
        for gateway in gateways:
            if not isinstance(gateway, Owner):
                raise TypeError(f"gateway must be a Gateway or None, not {type(gateway).__name__}")
            if known.setdefault((gateway.origin, gateway.path), gateway) != gateway:
                raise ValueError(
                    f"two different gateways are at {gateway.origin}{gateway.path}: use a client "
                    "for each, or one without a gateway and headers=gateway_headers(...) per call"
                )
        #: by host, an IPv6 address without brackets; the longest path first
        self.hosts: dict[str | bytes, list[Owner]] = {}
        for gateway in sorted(known.values(), key=lambda each: -len(each.path)):
            host = gateway.origin.host.strip("[]")
            for key in (host, host.encode()):
                self.hosts.setdefault(key, []).append(gateway)
        self._only = gateways[0] if len(known) == 1 else None

    def owner(self, url: str) -> Owner:
        """Who owns ``url``, the one with the longest path if several do."""
        if self._only is not None:
            return self._only if self._only.owns(url) else NOBODY
        host = _host(url) if self.hosts else None
        if host is not None:
            for gateway in self.hosts.get((host[1] or host[2] or "").lower(), ()):
                if gateway.owns(url):
                    return gateway
        return NOBODY
