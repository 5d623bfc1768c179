"""The transports under test behind one function, so that one table of cases serves them all."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import httpx2
import requests
import urllib3
from requests.adapters import HTTPAdapter

from cagent_session import Gateway, GatewayAdapter, GatewayMixin, GatewayPoolManager
from cagent_session.integrations import aiohttp as for_aiohttp
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

# send(method, url, headers=None, body=None) -> the status, redirects followed
Send = Callable[..., int]


@dataclass(frozen=True)
class Transport:
    name: str
    open: Callable[..., contextlib.AbstractContextManager[Send]]
    takes_bytes: bool = True  #: as values of headers

    def __str__(self) -> str:
        return self.name


class _Mixed(GatewayMixin, HTTPAdapter):
    """Any other adapter with the mixin."""


def _requests(adapter_class: Any) -> Any:
    @contextlib.contextmanager
    def open_client(
        gateway: Gateway | None = None,
        *,
        plain: bool = False,
        ca: str | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> Iterator[Send]:
        with requests.Session() as http:
            http.trust_env = False
            http.headers.update(defaults or {})
            adapter = HTTPAdapter() if plain else adapter_class(gateway)
            http.mount("http://", adapter)
            http.mount("https://", adapter)

            def send(method: str, url: str, headers: Any = None, body: Any = None) -> int:
                response = http.request(
                    method, url, headers=headers, data=body, verify=ca or True, timeout=20
                )
                return response.status_code

            yield send

    return open_client


@contextlib.contextmanager
def _urllib3(
    gateway: Gateway | None = None,
    *,
    plain: bool = False,
    ca: str | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Iterator[Send]:
    options: dict[str, Any] = {"ca_certs": ca, "timeout": 20, "headers": defaults}
    http = urllib3.PoolManager(**options) if plain else GatewayPoolManager(gateway, **options)
    with http:

        def send(method: str, url: str, headers: Any = None, body: Any = None) -> int:
            merged = None if headers is None else {**(defaults or {}), **headers}
            return http.request(method, url, headers=merged, body=body).status

        yield send


def _verify(ca: str | None) -> Any:
    # Loading the system's certificates takes longer than the test.
    return False if ca is None else ssl.create_default_context(cafile=ca)


def _httpx(library: Any, gateway_transport: Any) -> Any:
    @contextlib.contextmanager
    def open_client(
        gateway: Gateway | None = None,
        *,
        plain: bool = False,
        ca: str | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> Iterator[Send]:
        inner = library.HTTPTransport(verify=_verify(ca), trust_env=False)
        with library.Client(
            transport=inner if plain else gateway_transport(gateway, inner),
            follow_redirects=True,
            headers=defaults,
            timeout=20,
            trust_env=False,
        ) as http:

            def send(method: str, url: str, headers: Any = None, body: Any = None) -> int:
                return http.request(method, url, headers=headers, content=body).status_code

            yield send

    return open_client


def _async_httpx(library: Any, gateway_transport: Any) -> Any:
    @contextlib.contextmanager
    def open_client(
        gateway: Gateway | None = None,
        *,
        plain: bool = False,
        ca: str | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> Iterator[Send]:
        def send(method: str, url: str, headers: Any = None, body: Any = None) -> int:
            async def once() -> int:
                inner = library.AsyncHTTPTransport(verify=_verify(ca), trust_env=False)
                async with library.AsyncClient(
                    transport=inner if plain else gateway_transport(gateway, inner),
                    follow_redirects=True,
                    headers=defaults,
                    timeout=20,
                    trust_env=False,
                ) as http:
                    answer = await http.request(method, url, headers=headers, content=body)
                    return answer.status_code

            return asyncio.run(once())

        yield send

    return open_client


async def connections_closed() -> None:
    """Wait until the event loop has no connections: aiohttp ends TLS after the client is closed."""
    loop: Any = asyncio.get_running_loop()
    for _ in range(500):
        if len(loop._selector.get_map()) == 1:  # by which other threads wake the loop
            return
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def _aiohttp(
    gateway: Gateway | None = None,
    *,
    plain: bool = False,
    ca: str | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Iterator[Send]:
    middlewares = () if plain else (for_aiohttp.GatewayMiddleware(gateway),)

    def send(method: str, url: str, headers: Any = None, body: Any = None) -> int:
        async def once() -> int:
            async with aiohttp.ClientSession(
                middlewares=middlewares,
                headers=defaults,
                timeout=aiohttp.ClientTimeout(20),
            ) as http:
                options = {"headers": headers, "data": body, "ssl": _verify(ca)}
                async with http.request(method, url, **options) as answer:
                    status = answer.status
            await connections_closed()
            return status

        return asyncio.run(once())

    yield send


TRANSPORTS = [
    Transport("requests", _requests(GatewayAdapter)),
    Transport("mixin", _requests(_Mixed)),
    Transport("urllib3", _urllib3),
    Transport("httpx", _httpx(httpx, for_httpx.GatewayTransport)),
    Transport("httpx-async", _async_httpx(httpx, for_httpx.AsyncGatewayTransport)),
    Transport("httpx2", _httpx(httpx2, for_httpx2.GatewayTransport)),
    Transport("httpx2-async", _async_httpx(httpx2, for_httpx2.AsyncGatewayTransport)),
    Transport("aiohttp", _aiohttp, takes_bytes=False),
]
