"""Where the gateway is, and what it is to be told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote_plus

import requests

from .._transports.requests import GatewayAdapter, mount
from ..headers import (
    FORWARD,
    PREFIX,
    SESSION_ID,
    check_fixed_header,
    check_parent_header,
    check_session_header,
    gateway_headers,
)
from . import urls
from .gate import gate
from .routes import Owner

__all__ = ["Gateway", "gateway_headers"]

ENVIRONMENT = ("DOCKER_AGENT_MODELS_GATEWAY", "CAGENT_MODELS_GATEWAY")


@dataclass(frozen=True, repr=False)
class Gateway(Owner):
    """Where the models gateway listens, and what it is to be told with every request.

    :param url: the gateway's base URL. Each parameter of its query is added to every request
        that goes to the gateway and does not have it yet.
    :param forward: the base URL of the provider that a docker-agent gateway relays to. Left out
        for a gateway or router that does not speak that protocol: then no ``X-Cagent-*`` header
        is sent, and ``session_header`` has to be named.
    :param provider: the provider's name, for the gateway's records; as the next two, it is
        sent only if it is not empty.
    :param model: the model's ID.
    :param model_name: the model's name in the agent's configuration.
    :param headers: further fixed headers for gateway-bound requests. They stand in for the HTTP
        library's own defaults, and give way to what the caller of a request has set.
    :param session_header: the name under which this gateway wants the session.
    :param parent_header: the name under which it wants the session's parent, if it does.
    :param require_session: refuse to send a request outside every session, with
        :class:`~cagent_session.SessionRequired`.
    :raises ValueError: for a URL that is not plain http(s), a name that has a meaning of its own,
        or a value that cannot be sent in a header. No error shows a password.

    A gateway cannot be changed; ``dataclasses.replace(gateway, model="...")`` makes another one.
    Two with the same arguments are equal. ::

        gateway = Gateway(
            "https://gateway.example/prefix?tenant=a",
            forward="https://api.openai.com/v1",
            provider="openai",
        )
        http = requests.Session()
        gateway.mount(http)
        http.post(gateway.endpoint("v1/chat/completions"), json=prompt)

        router = Gateway("http://router.example:8000", session_header="X-Session-ID")
    """

    url: str
    _: KW_ONLY
    forward: str | None = None
    provider: str | None = None
    model: str | None = None
    model_name: str | None = None
    headers: Mapping[str, str] | None = field(default=None, hash=False)
    session_header: str = SESSION_ID
    parent_header: str | None = None
    require_session: bool = False

    def __post_init__(self) -> None:
        urls.check("gateway URL", self.url)
        try:
            headers = dict(self.headers or {})
        except (TypeError, ValueError):
            kind = type(self.headers).__name__
            raise TypeError(f"headers must be a dict of names and values, not a {kind}") from None
        object.__setattr__(self, "headers", MappingProxyType(headers))
        check_session_header(self.session_header)
        if self.parent_header is not None:
            check_parent_header(self.parent_header, self.session_header)
        for name, value in (self.headers or {}).items():
            check_fixed_header(name, value, self.session_names)
        if self.forward is None:
            self._check_that_nothing_needs_forward()
        _ = self.marks  # made now, so that what cannot be sent is refused now

    def _check_that_nothing_needs_forward(self) -> None:
        for what in ("provider", "model", "model_name"):
            if getattr(self, what):
                raise ValueError(f"{what} is sent along with {FORWARD}: give the gateway's forward")
        names = [self.session_header, self.parent_header or "", *(self.headers or {})]
        for name in names:
            if name.lower().startswith(PREFIX):
                raise ValueError(
                    f"{name} never travels without {FORWARD}: give the gateway's forward, or name "
                    "the session_header that this gateway reads"
                )

    @classmethod
    def from_env(cls, **options: Any) -> Gateway | None:
        """The gateway that the environment names, or ``None`` if it names none.

        ``DOCKER_AGENT_MODELS_GATEWAY`` is looked at first, then ``CAGENT_MODELS_GATEWAY``; an
        empty one counts as missing.

        :param options: all that :class:`Gateway` takes besides ``url``. They are checked in any
            case.

        ::

            gateway = Gateway.from_env(forward="https://api.openai.com/v1")
            if gateway is not None:
                gateway.mount(http)
            base_url = gateway.endpoint("v1") if gateway else "https://api.openai.com/v1"
        """
        for variable in ENVIRONMENT:
            url = os.environ.get(variable)
            if url:
                urls.check(variable, url)
                return cls(url, **options)
        cls("http://localhost", **options)
        return None

    def endpoint(self, path: str) -> str:
        """The full URL of ``path`` below the gateway's own: what to call, or an SDK's base URL.

        The query of the gateway's URL is not in it; the transport adds that.

        :param path: such as ``v1/chat/completions``, with a slash before it or without.
        :raises ValueError: for a ``path`` that is a URL of its own, has a fragment, spaces,
            control characters, dot segments or invalid escapes.

        >>> gateway = Gateway("https://router.example/team", session_header="X-Session-ID")
        >>> gateway.endpoint("v1/chat/completions")
        'https://router.example/team/v1/chat/completions'
        """
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
            raise ValueError("endpoint takes a path below the gateway's URL, not a URL")
        url = f"{self._base}/{path.lstrip('/')}"
        urls.check("endpoint", url)
        return url

    def owns(self, url: str) -> bool:
        """Whether ``url`` has the gateway's origin and lies at or below its path.

        What could be read in two ways is not owned: a URL that is not clean http(s), or has user
        info, and, for a gateway with a path, one with a dot segment in any spelling.

        :param url: a full URL; its query does not matter.
        """
        if not isinstance(url, str):
            raise TypeError(f"a URL must be a str, not {type(url).__name__}: give str(url)")
        # Most URLs are decided by one of these two lines.
        if self._is_plain(url) and not (self.path and "/." in url):
            return True
        if self.origin.host not in url.lower() or not urls.is_printable(url):
            return False
        parts = urls.split(url)
        if parts is None or parts.has_user or parts.origin != self.origin:
            return False
        return not self.path or (
            not urls.has_dot_segment(parts.path)
            and f"{urls.canonical(parts.path)}/".startswith(f"{self.path}/")
        )

    def mount(self, session: requests.Session, **adapter_kwargs: Any) -> GatewayAdapter:
        """Mount a :class:`GatewayAdapter` on ``session`` for the gateway's URLs.

        A session can have many gateways, siblings and nested ones, mounted in any order; a request
        belongs to the one with the longest path.

        :param session: a ``requests.Session``.
        :param adapter_kwargs: what ``requests``' ``HTTPAdapter`` takes, such as ``max_retries``.
        :returns: the adapter.
        :raises ValueError: if another gateway with the same origin and path is on the session.

        ::

            http = requests.Session()
            gateway.mount(http, pool_maxsize=32)
        """
        adapter = GatewayAdapter(self, **adapter_kwargs)
        mount(session, self, adapter)
        return adapter

    def headers_for(self, url: str) -> dict[str, str]:
        """The headers that a request to ``url`` gets right now; none if it is not the gateway's.

        For clients that let nobody plug in a transport. The query of the gateway's URL is the
        caller's to add, and a ``User-Agent`` of this package is not among them.

        :param url: where the request goes.
        :raises SessionRequired: if the gateway requires a session, and there is none.

        ::

            def add(request, **kwargs):
                request.headers.update(gateway.headers_for(request.url))

            bedrock.meta.events.register("before-send.bedrock-runtime", add)
        """
        stamp = gate(url, self, {}, {}) if self.owns(url) else None
        return {} if stamp is None else dict(stamp.headers.values())

    @cached_property
    def marks(self) -> dict[str, tuple[str, str]]:
        """What each request gets besides its session: name and value, by the name in lower case."""
        marks: dict[str, str] = {}
        if self.forward is not None:
            marks = gateway_headers(
                self.forward, provider=self.provider, model=self.model, model_name=self.model_name
            )
        # A fixed header of the user's comes second, and wins, in whatever case it is written.
        pairs = [*marks.items(), *(self.headers or {}).items()]
        return {name.lower(): (name, value) for name, value in pairs}

    def with_query(self, url: Any) -> Any:
        """``url`` with the parameters of the gateway's own that it does not have yet."""
        if not self._query:
            return url
        base, hash_mark, fragment = url.partition("#")
        base, _, query = base.partition("?")
        pairs = query.split("&") if query else []
        present = set(map(_query_name, pairs))
        pairs += [pair for name, pair in self._query if name not in present]
        return f"{base}?{'&'.join(pairs)}{hash_mark}{fragment}"

    @cached_property
    def _base(self) -> str:
        return self.url.partition("?")[0].rstrip("/")

    @cached_property
    def _is_plain(self) -> Callable[[str], object]:
        """Whether a URL is the gateway's own and more, in ASCII, without what is to be decoded."""
        return re.compile(rf"{re.escape(self._base)}([/?#][!-$&-\[\]-~]*)?").fullmatch

    @cached_property
    def _query(self) -> list[tuple[str, str]]:
        query = urls.check("gateway URL", self.url).query
        return [(_query_name(pair), pair) for pair in query.split("&") if pair]

    def __reduce__(self) -> Any:
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        options["headers"] = dict(options["headers"])
        return partial(type(self), **options), ()

    def __repr__(self) -> str:
        # Neither a header's value nor that of a query: either may be a secret.
        options = {each.name: getattr(self, each.name) for each in fields(self)[1:]} | {
            "forward": urls.masked(self.forward or ""),
            "headers": sorted(self.headers or ()),
        }
        shown = "".join(f", {name}={value!r}" for name, value in options.items() if value)
        return f"{type(self).__name__}({urls.masked(self.url)!r}{shown})"


def _query_name(pair: str) -> str:
    return unquote_plus(pair.partition("=")[0])
