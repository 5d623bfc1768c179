"""Where the gateway is, and the gate: one decision for every transport."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_plus

from . import urls
from .context import current_session_id
from .headers import (
    FORWARD,
    MODEL,
    MODEL_NAME,
    PROVIDER,
    RUNTIME,
    SESSION_ID,
    USER_AGENT,
    Headers,
    Stamped,
    by_lower_name,
    check_name,
    check_value,
    lower,
)

if TYPE_CHECKING:
    import requests

    from .adapter import GatewayAdapter

_Item = TypeVar("_Item", bound=tuple[Any, Any])

ENVIRONMENT = ("DOCKER_AGENT_MODELS_GATEWAY", "CAGENT_MODELS_GATEWAY")


def gate(
    url: str,
    headers: Headers,
    gateway: Gateway | None,
    default_agents: Collection[str | bytes | None],
) -> tuple[str, Stamped] | None:
    """Decide whether a request is gateway-bound, and what it then gets.

    A request is gateway-bound if it carries a non-empty ``X-Cagent-Forward``, put there by the
    caller or by a ``gateway`` that owns its URL.

    :param headers: the caller's.
    :param default_agents: the ``User-Agent`` values that the HTTP library sets by itself;
        ``None`` among them stands for a missing one.
    :returns: the URL to send to and the headers to set, or ``None`` for a request that must go
        out untouched.
    """
    owner = gateway if gateway is not None and gateway.owns(url) else None
    marker = headers.get("x-cagent-forward")
    is_bound = bool(marker[1]) if marker is not None else owner is not None
    if not is_bound:
        return None

    session_header = SESSION_ID
    stamped: Stamped = {}
    if owner is not None:
        url = owner._with_query(url)
        session_header = owner.session_header
        stamped = owner._fixed.copy()
        if not stamped.keys().isdisjoint(headers):
            stamped = {key: stamped[key] for key in stamped if key not in headers}
    agent = headers.get("user-agent")
    if (agent[1] if agent is not None else None) in default_agents:
        stamped["user-agent"] = owner._agent if owner is not None else ("User-Agent", USER_AGENT)
    session_id = current_session_id()
    if session_id is not None:
        stamped[session_header.lower()] = (session_header, session_id)
    return url, stamped


def without_identifiers(items: Iterable[_Item], gateway: Gateway | None) -> list[_Item]:
    """The headers less those that are for the gateway alone, and must not follow a redirect."""
    session_header = (SESSION_ID if gateway is None else gateway.session_header).lower()
    return [
        item
        for item in items
        if not lower(item[0]).startswith("x-cagent-") and lower(item[0]) != session_header
    ]


def check_gateway(gateway: Gateway | None) -> Gateway | None:
    """``gateway``, if a transport can take it."""
    if gateway is not None and not isinstance(gateway, Gateway):
        raise TypeError(f"gateway must be a Gateway or None, not {type(gateway).__name__}")
    return gateway


def gateway_headers(
    forward: str,
    *,
    provider: str | None = None,
    model: str | None = None,
    model_name: str | None = None,
) -> dict[str, str]:
    """The headers that mark a request as gateway-bound, for callers who mark it themselves.

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


class Gateway:
    """Where the models gateway listens, and what it is to be told with every request.

    :param url: the gateway's base URL. Each parameter of its query is added to every request
        that goes to the gateway and does not have it yet.
    :param forward: the base URL of the provider that the gateway relays to.
    :param provider: the provider's name, for the gateway's records; as the next two, it is
        sent only if it is not empty.
    :param model: the model's ID.
    :param model_name: the model's name in the agent's configuration.
    :param headers: further fixed headers for gateway-bound requests.
    :param session_header: another name for ``X-Cagent-Session-Id``, for a gateway with a
        convention of its own.
    :raises ValueError: for a URL that is not plain http(s), or a value that cannot be sent in a
        header. No error shows a password.

    A gateway cannot be changed. Two with the same arguments are equal. ::

        gateway = Gateway(
            "https://gateway.example/prefix?tenant=a",
            forward="https://api.openai.com/v1",
            provider="openai",
        )
        http = requests.Session()
        gateway.mount(http)
        http.post(gateway.endpoint("v1/chat/completions"), json=prompt)
    """

    url: str
    forward: str
    provider: str | None
    model: str | None
    model_name: str | None
    headers: Mapping[str, str]
    session_header: str

    _fixed: Stamped
    _agent: tuple[str, str]
    _base: str
    _origin: urls.Origin
    _path: str
    _query: list[tuple[str, str]]

    def __init__(
        self,
        url: str,
        *,
        forward: str,
        provider: str | None = None,
        model: str | None = None,
        model_name: str | None = None,
        headers: Mapping[str, str] | None = None,
        session_header: str = SESSION_ID,
    ) -> None:
        origin, path, query = urls.check("gateway URL", url)
        fixed = gateway_headers(forward, provider=provider, model=model, model_name=model_name)
        check_name("session_header", session_header)
        headers = dict(headers or {})
        for name, value in headers.items():
            check_name("header", name)
            check_value(f"header {name!r}", value)
            if name.lower() in (FORWARD.lower(), session_header.lower()):
                raise ValueError(f"header {name!r} cannot be fixed, it has a meaning of its own")
        fixed_headers = by_lower_name(fixed.items()) | by_lower_name(headers.items())
        # Written past __setattr__, which refuses. What a request needs is worked out here, once.
        vars(self).update(
            url=url,
            forward=forward,
            provider=provider,
            model=model,
            model_name=model_name,
            headers=MappingProxyType(headers),
            session_header=session_header,
            _fixed=fixed_headers,
            _agent=fixed_headers.get("user-agent", ("User-Agent", USER_AGENT)),
            _base=url.partition("?")[0].rstrip("/"),
            _origin=origin,
            _path=_canonical(path.rstrip("/")),
            _query=[(_query_name(pair), pair) for pair in query.split("&") if pair],
        )

    @classmethod
    def from_env(
        cls,
        *,
        forward: str,
        provider: str | None = None,
        model: str | None = None,
        model_name: str | None = None,
        headers: Mapping[str, str] | None = None,
        session_header: str = SESSION_ID,
    ) -> Gateway | None:
        """The gateway that the environment names, or ``None`` if it names none.

        ``DOCKER_AGENT_MODELS_GATEWAY`` is looked at first, then ``CAGENT_MODELS_GATEWAY``; an
        empty one counts as missing. The arguments are those of :class:`Gateway`. ::

            gateway = Gateway.from_env(forward="https://api.openai.com/v1")
            if gateway is not None:
                gateway.mount(http)
            base_url = gateway.endpoint("v1") if gateway else "https://api.openai.com/v1"
        """
        for variable in ENVIRONMENT:
            url = os.environ.get(variable)
            if url:
                urls.check(variable, url)
                return cls(
                    url,
                    forward=forward,
                    provider=provider,
                    model=model,
                    model_name=model_name,
                    headers=headers,
                    session_header=session_header,
                )
        return None

    def endpoint(self, path: str) -> str:
        """The full URL of ``path`` below the gateway's own: what to call, or an SDK's base URL.

        The query of the gateway's URL is not in it; the transport adds that.

        :raises ValueError: for a ``path`` that is a URL of its own, has a fragment, spaces,
            control characters, dot segments or invalid escapes.

        >>> Gateway("https://gateway.example/prefix", forward="https://api.openai.com/v1").endpoint(
        ...     "v1/chat/completions"
        ... )
        'https://gateway.example/prefix/v1/chat/completions'
        """
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path):
            raise ValueError("endpoint takes a path below the gateway's URL, not a URL")
        url = f"{self._base}/{path.lstrip('/')}"
        urls.check("endpoint", url)
        return url

    def owns(self, url: str) -> bool:
        """Whether ``url`` has the gateway's origin and lies at or below its path.

        What could be read in two ways is not owned: a URL that is not clean http(s), and, for a
        gateway with a path, one with a dot segment in any spelling.
        """
        base = self._base
        if url.startswith(base) and url[len(base) : len(base) + 1] in _ENDS_BASE:
            if not self._path or not any(doubt in url for doubt in ("/.", "%", "\\")):
                return True
        elif self._origin.host not in url.lower():
            return False
        parts = urls.split(url)
        if parts is None or parts.origin != self._origin:
            return False
        path = self._path
        return not path or (
            not urls.has_dot_segment(parts.path)
            and f"{_canonical(parts.path)}/".startswith(f"{path}/")
        )

    def mount(self, session: requests.Session, **adapter_kwargs: Any) -> GatewayAdapter:
        """Mount a :class:`GatewayAdapter` on ``session`` for the gateway's origin.

        :param adapter_kwargs: what ``requests``' ``HTTPAdapter`` takes, such as ``max_retries``.
        :returns: the adapter.

        ::

            http = requests.Session()
            gateway.mount(http, pool_maxsize=32)
        """
        from .adapter import GatewayAdapter

        adapter = GatewayAdapter(self, **adapter_kwargs)
        scheme, host, port = self._origin
        session.mount(f"{scheme}://{host}:{port}/", adapter)
        if port == urls.DEFAULT_PORTS[scheme]:
            session.mount(f"{scheme}://{host}/", adapter)
        return adapter

    def _with_query(self, url: str) -> str:
        if not self._query:
            return url
        base, hash_mark, fragment = url.partition("#")
        base, _, query = base.partition("?")
        pairs = query.split("&") if query else []
        present = {_query_name(pair) for pair in pairs}
        pairs += [pair for name, pair in self._query if name not in present]
        return f"{base}?{'&'.join(pairs)}{hash_mark}{fragment}"

    def _options(self) -> dict[str, Any]:
        return {
            "forward": self.forward,
            "provider": self.provider,
            "model": self.model,
            "model_name": self.model_name,
            "headers": dict(self.headers),
            "session_header": self.session_header,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gateway):
            return NotImplemented
        return (self.url, self._options()) == (other.url, other._options())

    def __hash__(self) -> int:
        return hash((self.url, self.forward))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Gateway cannot be changed: {name}")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __reduce__(self) -> Any:
        return partial(type(self), **self._options()), (self.url,)

    def __repr__(self) -> str:
        # Neither a header's value nor that of a query: either may be a secret.
        options = self._options() | {
            "forward": urls.masked(self.forward),
            "headers": sorted(self.headers),
        }
        shown = "".join(f", {name}={value!r}" for name, value in options.items() if value)
        return f"{type(self).__name__}({urls.masked(self.url)!r}{shown})"


_ENDS_BASE = ("", "/", "?", "#")


def _canonical(path: str) -> str:
    """``path`` with its percent escapes in the one spelling that RFC 3986 prefers."""

    def spell(escape: re.Match[str]) -> str:
        character = chr(int(escape[1], 16))
        return character if re.match(r"[A-Za-z0-9._~-]", character) else escape[0].upper()

    return re.sub(r"%([0-9A-Fa-f]{2})", spell, path)


def _query_name(pair: str) -> str:
    return unquote_plus(pair.partition("=")[0])
