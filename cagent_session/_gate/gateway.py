"""Where a gateway is, and which headers every request to it carries."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._session.ids import is_text
from ..headers import FORWARD, SESSION_ID
from . import urls
from .gate import gate
from .protocol import gateway_headers
from .routes import Library, Route
from .validation import (
    PREFIX,
    check_gateway_header,
    check_parent_header,
    check_session_header,
    checked_dict,
    plain_text,
)

if TYPE_CHECKING:
    import requests
    from urllib3.util import Retry

    from .._transports.requests import GatewayAdapter

ENVIRONMENT = ("DOCKER_AGENT_MODELS_GATEWAY", "CAGENT_MODELS_GATEWAY")

# For headers_for(): no defaults of a library, as it is not known which one will send.
_NO_LIBRARY = Library({})


@dataclass(frozen=True, repr=False)
class Gateway:
    """Where a models gateway listens, and which headers every request to it carries.

    :param url: the gateway's base URL. Each parameter of its query is added to every request
        that goes to the gateway and does not have it yet.
    :param forward: the base URL of the provider that a docker-agent gateway relays to. Left out
        for a gateway or router that does not speak that protocol: then no ``X-Cagent-*`` header
        is sent, and ``session_header`` or ``session_headers`` has to name another header.
    :param provider: the provider's name, for the gateway's records. An empty one is not sent; the
        same holds for ``model`` and ``model_name``.
    :param model: the model's ID.
    :param model_name: the model's name in the agent's configuration.
    :param headers: further fixed headers for gateway-bound requests. They replace the HTTP
        library's own defaults, and give way to what the caller of a request has set. A ``Cookie``
        gives way to the client's cookie jar, too: put it into that.
    :param session_header: the name of the header that carries the session.
    :param parent_header: the name of the header that carries the session's parent; none by default.
    :param session_headers: further headers made from the session: a dict of names to templates
        with ``{session}``, ``{parent}`` and ``{root}``, or to functions ``(session_id, parent_id,
        root_id) -> str | None``. A header is left out if its template has ``{parent}`` and the
        session has no parent, or if its function returns ``None``.
    :param require_session: refuse to send a request outside every session, with
        :class:`~cagent_session.SessionRequired`, unless the caller has set a session header on it.
        Without it, such requests are sent, and the first one is logged as a warning.
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

        helicone = Gateway(
            "https://helicone.example",
            session_headers={
                "Helicone-Session-Id": "{root}",
                "Helicone-Session-Path": "/{root}/{session}",
            },
        )
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
    session_headers: Mapping[str, str | Callable[[str, str | None, str], str | None]] | None = (
        field(default=None, hash=False)
    )
    require_session: bool = False

    def __post_init__(self) -> None:
        if self.url is None:
            raise TypeError(
                "gateway URL must be a str, not NoneType: if it is optional, set it in the "
                "environment and write Gateway.from_env(...), which returns None without it"
            )
        for each in fields(self):
            given = getattr(self, each.name)
            if each.name in ("headers", "session_headers"):
                given = MappingProxyType(checked_dict(each.name, given))
            object.__setattr__(self, each.name, plain_text(given))  # the dataclass is frozen
        urls.check_gateway("gateway URL", self.url)
        check_session_header(self.session_header)
        # The names that are in use, in lower case. So far that is at most one.
        taken = {self.session_header.lower()} if self._sends_session_header else set()
        if self.parent_header is not None:
            check_parent_header(self.parent_header, taken)
            taken.add(self.parent_header.lower())
        for name in self.session_headers or {}:
            check_session_header(name, "a name in session_headers", taken)
            taken.add(name.lower())
        for name, value in (self.headers or {}).items():
            check_gateway_header(name, value, taken)
        if self.forward is None:
            self._check_without_forward()
        # Built now, as that checks forward, provider, model, model_name and the templates.
        _ = self._route

    def _check_without_forward(self) -> None:
        for what in ("provider", "model", "model_name"):
            if getattr(self, what):
                raise ValueError(
                    f"{what} is sent along with {FORWARD}: give the gateway's forward, as in "
                    'forward="https://api.openai.com/v1"'
                )
        names = [self.parent_header or "", *(self.headers or {}), *(self.session_headers or {})]
        # The default session_header is no mistake if session_headers carry the session instead.
        if self._sends_session_header or not self.session_headers:
            names.insert(0, self.session_header)
        for name in names:
            if name.lower().startswith(PREFIX):
                raise ValueError(
                    f"{name} never travels without {FORWARD}: give the gateway's forward, as in "
                    'forward="https://api.openai.com/v1", or name the header that this gateway '
                    'reads, as in session_header="X-Session-ID"'
                )

    @property
    def _sends_session_header(self) -> bool:
        """Whether ``session_header`` is sent: with a ``forward``, or if it is not the default."""
        return self.forward is not None or self.session_header.lower() != SESSION_ID.lower()

    @classmethod
    def from_env(
        cls,
        *,
        forward: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        model_name: str | None = None,
        headers: Mapping[str, str] | None = None,
        session_header: str = SESSION_ID,
        parent_header: str | None = None,
        session_headers: (
            Mapping[str, str | Callable[[str, str | None, str], str | None]] | None
        ) = None,
        require_session: bool = False,
    ) -> Gateway | None:
        """Return the gateway that the environment names, or ``None`` if it names none.

        ``DOCKER_AGENT_MODELS_GATEWAY`` is looked at first, then ``CAGENT_MODELS_GATEWAY``; an
        empty one counts as missing, and spaces around the URL are taken off. The parameters
        ``forward``, ``provider``, ``model``, ``model_name``, ``headers``, ``session_header``,
        ``parent_header``, ``session_headers`` and ``require_session`` are those of
        :class:`Gateway`. They are checked even if the environment names no gateway.

        ::

            gateway = Gateway.from_env(forward="https://api.openai.com/v1")
            if gateway is not None:
                gateway.mount(http)
            base_url = gateway.endpoint("v1") if gateway else "https://api.openai.com/v1"
        """
        make = partial(
            cls,
            forward=forward,
            provider=provider,
            model=model,
            model_name=model_name,
            headers=headers,
            session_header=session_header,
            parent_header=parent_header,
            session_headers=session_headers,
            require_session=require_session,
        )
        for variable in ENVIRONMENT:
            url = os.environ.get(variable, "").strip()
            if url:
                urls.check_gateway(variable, url)
                return make(url)
        make("http://localhost")  # a mistake shows up on machines without a gateway, too
        logging.getLogger("cagent_session").debug(
            "no gateway, as %s are not set, or empty", " and ".join(ENVIRONMENT)
        )
        return None

    def endpoint(self, path: str) -> str:
        """Return the full URL of ``path`` below the gateway's URL: a URL to call, or a base URL.

        It lacks the query of the gateway's URL, which the transport adds.

        :param path: such as ``v1/chat/completions``, with a slash before it or without.
        :raises ValueError: for a ``path`` that is a URL, has a fragment, spaces, control
            characters, dot segments or invalid escapes.

        >>> gateway = Gateway("https://router.example/team", session_header="X-Session-ID")
        >>> gateway.endpoint("v1/chat/completions")
        'https://router.example/team/v1/chat/completions'
        """
        if not is_text(path):
            raise TypeError(
                f'path must be a str, not {type(path).__name__}: write endpoint("v1/models")'
            )
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
            raise ValueError(
                "endpoint takes a path below the gateway's URL, not a URL: write "
                'endpoint("v1/chat/completions")'
            )
        url = f"{self._route.base}/{path.lstrip('/')}"
        urls.check("endpoint", url)
        return url

    def owns(self, url: str) -> bool:
        """Return whether ``url`` has the gateway's origin and lies at or below its path.

        A URL that libraries could read in two ways is not the gateway's: it is not clean http(s),
        it has user info, or it has a dot segment in any spelling while the gateway has a path.

        :param url: a full URL; its query does not matter.
        """
        if not is_text(url):
            raise TypeError(f"a URL must be a str, not {type(url).__name__}: give str(url)")
        return self._route.owns(url)

    def mount(
        self,
        session: requests.Session,
        *,
        pool_connections: int | None = None,
        pool_maxsize: int | None = None,
        max_retries: Retry | int | None = None,
        pool_block: bool | None = None,
    ) -> GatewayAdapter:
        """Put the gate in front of the adapters that a ``requests.Session`` has for the gateway.

        Retries, pools, TLS settings and caches of adapters that are mounted already stay in use, so
        mount your own adapters first. Several gateways can be mounted on one ``requests.Session``,
        siblings and nested ones, in any order; a request belongs to the one with the longest path.
        Mount before threads use it: a ``requests.Session`` looks up its adapters without a lock.

        :param session: a ``requests.Session``.
        :param pool_connections: with this or one of the next three, a new ``HTTPAdapter`` with
            these settings sends the gateway's requests in place of the adapters that are there.
        :param pool_maxsize: see ``requests.adapters.HTTPAdapter``, as for the others.
        :param max_retries: retries of connections that failed, or a ``urllib3.util.Retry``.
        :param pool_block: whether to wait for a free connection.
        :returns: the adapter that requests to the gateway's URL reach.
        :raises ValueError: if another gateway with the same origin and path is mounted there.

        ::

            http = requests.Session()
            gateway.mount(http)
            gateway.mount(http, max_retries=3)      # with an HTTPAdapter of its own
        """
        # Imported here, because it loads requests, and imports this module.
        from .._transports.mounting import mount

        settings = {
            "pool_connections": pool_connections,
            "pool_maxsize": pool_maxsize,
            "max_retries": max_retries,
            "pool_block": pool_block,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return mount(session, self, given)

    def headers_for(self, url: str) -> dict[str, str]:
        """Return the headers that a request to ``url`` gets now; none if it is not the gateway's.

        For clients that do not accept a custom transport. The caller has to add the query of the
        gateway's URL. The headers do not include a ``User-Agent`` of this package.

        :param url: where the request goes; ``ws`` and ``wss`` count as ``http`` and ``https``.
        :raises SessionRequired: if the gateway requires a session, and there is none.

        ::

            def add(request, **kwargs):
                request.headers.update(gateway.headers_for(request.url))

            bedrock.meta.events.register("before-send.bedrock-runtime", add)
        """
        if not is_text(url):
            raise TypeError(f"a URL must be a str, not {type(url).__name__}: give str(url)")
        url = re.sub("^ws(s?)(?=:)", r"http\1", url, flags=re.IGNORECASE)
        if not self._route.owns(url):
            return {}
        stamp = gate(url, self._route.plan(_NO_LIBRARY, ()), {}, None)
        return {} if stamp is None else {name: str(value) for name, value in stamp[0].values()}

    @cached_property
    def _route(self) -> Route:
        """This gateway as the transports see it."""
        fixed: dict[str, str] = {}
        if self.forward is not None:
            fixed = gateway_headers(
                self.forward, provider=self.provider, model=self.model, model_name=self.model_name
            )
        # Route compares names in lower case, and of two the later one wins: the user's.
        return Route(self, fixed | dict(self.headers or {}))

    def __reduce__(self) -> Any:
        # A MappingProxyType cannot be pickled. The route is left out, and built anew.
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        for what in ("headers", "session_headers"):
            options[what] = dict(options[what])
        return partial(type(self), **options), ()

    def __repr__(self) -> str:
        # No values of headers or query parameters, as they may be secrets.
        options = {each.name: getattr(self, each.name) for each in fields(self)[1:]} | {
            "forward": urls.masked(self.forward or ""),
            "headers": sorted(self.headers or ()),
            "session_header": self.session_header if self._sends_session_header else None,
            "session_headers": sorted(self.session_headers or ()),
        }
        shown = "".join(f", {name}={value!r}" for name, value in options.items() if value)
        return f"{type(self).__name__}({urls.masked(self.url)!r}{shown})"
