"""Code of others, below a gate, sends a stamped request to another host.

Without ``instrument`` nothing of ours is below that code. With it, the stamp comes off.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from multidict import CIMultiDict
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from support.wire import Arrived, Server, redirect, response
from urllib3._collections import HTTPHeaderDict

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayPoolManager,
    GatewayProxyManager,
    current_session_id,
    instrument,
    no_session,
    session_scope,
)
from cagent_session.integrations import aiohttp as for_aiohttp
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

KEYS = {"X-Api-Key": "KEY", "Authorization": "KEY"}
CALLERS = {"User-Agent": "mine", "X-Cagent-Model": "model", "X-Trace": "trace"}

#: Makes the headers to send elsewhere from (name, value) of the stamped ones, bytes for httpx.
Rebuild = Callable[[list[tuple[Any, Any]]], list[tuple[Any, Any]]]


def _whole(items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return items


def _without_authorization(items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """It is the last header that the gate sets outside every session."""
    return [item for item in items if item[0].lower() not in ("authorization", b"authorization")]


def _deep(items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return copy.deepcopy(items)


def _over_requests(kind: Any) -> Callable[..., None]:
    def get(gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild) -> None:
        class Failover(HTTPAdapter):
            def send(self, request: Any, *args: Any, **options: Any) -> Any:
                request = request.copy()
                request.url = elsewhere
                request.headers = kind(rebuild(list(request.headers.items())))
                return super().send(request, *args, **options)

        with requests.Session() as http:
            http.mount("http://", GatewayAdapter(gateway, adapter=Failover()))
            http.get(url, headers=CALLERS, timeout=10)

    return get


def _over_requests_with_its_copy(
    gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild
) -> None:
    class Failover(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            request = request.copy()
            request.url = elsewhere
            items = list(request.headers.items())
            for name in {name for name, _ in items} - {name for name, _ in rebuild(items)}:
                del request.headers[name]
            return super().send(request, *args, **options)

    with requests.Session() as http:
        http.mount("http://", GatewayAdapter(gateway, adapter=Failover()))
        http.get(url, headers=CALLERS, timeout=10)


def _over_urllib3(keep: bool) -> Callable[..., None]:
    def get(gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild) -> None:
        class Failover(urllib3.HTTPConnectionPool):
            def urlopen(self, method: str, url: str, *args: Any, **options: Any) -> Any:
                headers = options["headers"].copy()
                items = rebuild(list(headers.items()))
                for name in set(headers) - {name for name, _ in items}:
                    del headers[name]
                options["headers"] = headers if keep else dict(items)
                target = urllib3.util.parse_url(elsewhere)
                if (target.host, target.port) == (self.host, self.port):
                    return super().urlopen(method, target.request_uri, *args, **options)
                with urllib3.connection_from_url(elsewhere) as http:
                    return http.urlopen(method, target.request_uri, *args, **options)

        with GatewayPoolManager(gateway) as http:
            http.pool_classes_by_scheme = {"http": Failover}
            http.request("GET", url, headers=CALLERS, timeout=10)

    return get


def _over_requests_by_urllib3(gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild) -> None:
    class Failover(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            headers = dict(rebuild(list(request.headers.items())))
            with urllib3.PoolManager() as http:
                answer = http.request("GET", elsewhere, headers=headers, preload_content=False)
                return self.build_response(request, answer)

    with requests.Session() as http:
        http.mount("http://", GatewayAdapter(gateway, adapter=Failover()))
        http.get(url, headers=CALLERS, timeout=10)


def _over_requests_by_a_pool(kind: Any) -> Callable[..., None]:
    def get(gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild) -> None:
        class Failover(HTTPAdapter):
            def send(self, request: Any, *args: Any, **options: Any) -> Any:
                headers = kind(rebuild(list(request.headers.items())))
                path = urllib3.util.parse_url(elsewhere).request_uri
                with urllib3.connection_from_url(elsewhere) as http:
                    answer = http.urlopen("POST", path, headers=headers, body=b"x")
                return self.build_response(request, answer)

        with requests.Session() as http:
            http.mount("http://", GatewayAdapter(gateway, adapter=Failover()))
            http.get(url, headers=CALLERS, timeout=10)

    return get


def _over_requests_by_a_proxy_manager(kind: Any) -> Callable[..., None]:
    def get(gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild) -> None:
        class Failover(HTTPAdapter):
            def send(self, request: Any, *args: Any, **options: Any) -> Any:
                headers = dict(rebuild(list(request.headers.items())))
                with kind(elsewhere) as http:
                    # With a body urllib3 makes other headers.
                    answer = http.request("POST", "http://b.test", headers=headers, body=b"x")
                return self.build_response(request, answer)

        with requests.Session() as http:
            http.mount("http://", GatewayAdapter(gateway, adapter=Failover()))
            # Without any of our own names among the caller's.
            given = {name: CALLERS[name] for name in CALLERS if name != "X-Cagent-Model"}
            http.get(url, headers=given, timeout=10)

    return get


def _over_httpx_by_requests(gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild) -> None:
    class Failover(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            headers = [item for item in request.headers.raw if item[0].lower() != b"host"]
            answer = requests.get(elsewhere, headers=dict(rebuild(headers)), timeout=10)
            return httpx.Response(answer.status_code)

    with httpx.Client(transport=for_httpx.GatewayTransport(gateway, Failover())) as http:
        http.get(url, headers=CALLERS)


def _over_httpx(library: Any, ours: Any) -> Callable[..., None]:
    def get(gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild) -> None:
        class Failover(library.BaseTransport):  # type: ignore[misc]
            def handle_request(self, request: Any) -> Any:
                headers = [item for item in request.headers.raw if item[0].lower() != b"host"]
                return transport.handle_request(
                    library.Request("GET", elsewhere, headers=rebuild(headers))
                )

        with (
            library.HTTPTransport() as transport,
            library.Client(transport=ours.GatewayTransport(gateway, Failover())) as http,
        ):
            http.get(url, headers=CALLERS)

    return get


def _of_their_class(headers: Any, items: list[tuple[Any, Any]]) -> Any:
    return type(headers)(items)


def _copied(headers: Any, items: list[tuple[Any, Any]]) -> Any:
    copied = headers.copy()
    for name in copied.keys() - {name for name, _ in items}:
        copied.popall(name)
    return copied


def _over_aiohttp(make: Callable[[Any, list[tuple[Any, Any]]], Any]) -> Callable[..., None]:
    def get(gateway: Gateway, url: str, elsewhere: str, rebuild: Rebuild) -> None:
        async def failover(request: Any, handler: Any) -> Any:
            request.headers = make(request.headers, rebuild(list(request.headers.items())))
            request.url = aiohttp.client.URL(elsewhere)
            request.update_host(request.url)
            return await handler(request)

        async def main() -> None:
            middlewares = (for_aiohttp.GatewayMiddleware(gateway), failover)
            async with (
                aiohttp.ClientSession(middlewares=middlewares) as http,
                http.get(url, headers=CALLERS) as answer,
            ):
                await answer.read()

        asyncio.run(main())

    return get


@pytest.fixture
def stranger() -> Iterator[Server]:
    with Server() as server:
        yield server


#: Each sends a request to a URL by a client of the gateway, and below the gate to another URL.
LIBRARIES = [
    pytest.param(_over_requests(dict), id="requests-dict"),
    pytest.param(_over_requests(CaseInsensitiveDict), id="requests-its-own"),
    pytest.param(_over_requests(HTTPHeaderDict), id="requests-urllib3"),
    pytest.param(_over_requests_by_urllib3, id="requests-by-urllib3"),
    pytest.param(_over_urllib3(keep=True), id="urllib3-copied"),
    pytest.param(_over_urllib3(keep=False), id="urllib3-dict"),
    pytest.param(_over_httpx(httpx, for_httpx), id="httpx"),
    pytest.param(_over_httpx(httpx2, for_httpx2), id="httpx2"),
    pytest.param(_over_aiohttp(lambda headers, items: CIMultiDict(items)), id="aiohttp"),
    pytest.param(_over_aiohttp(_of_their_class), id="aiohttp-of-their-class"),
    pytest.param(_over_aiohttp(_copied), id="aiohttp-copied"),
]
ALL = [*LIBRARIES, pytest.param(_over_requests_with_its_copy, id="requests-with-its-copy")]
#: Those that are of use for another host alone, too.
TO_ANOTHER_HOST = [
    *ALL,
    pytest.param(_over_httpx_by_requests, id="httpx-by-requests"),
    pytest.param(_over_requests_by_a_pool(dict), id="by-a-pool"),
    pytest.param(_over_requests_by_a_pool(HTTPHeaderDict), id="by-a-pool-urllib3"),
    pytest.param(_over_requests_by_a_proxy_manager(urllib3.ProxyManager), id="by-a-proxy"),
    pytest.param(_over_requests_by_a_proxy_manager(GatewayProxyManager), id="by-our-proxy"),
]


@pytest.mark.parametrize("scope", [no_session(), session_scope("s1")], ids=["outside", "inside"])
@pytest.mark.parametrize("rebuild", [_whole, _without_authorization, _deep])
@pytest.mark.parametrize("get", TO_ANOTHER_HOST)
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("forward", [None, "https://api.example"], ids=["own-header", "forward"])
def test_takes_no_stamp_along(
    server: Server,
    stranger: Server,
    get: Any,
    rebuild: Rebuild,
    scope: contextlib.AbstractContextManager[object],
    is_known: bool,
    forward: str | None,
):
    gateway = Gateway(server.origin, forward=forward, session_header="X-Session-ID", headers=KEYS)
    with instrument(*[gateway] if is_known else []), scope:
        get(gateway, server.origin, stranger.at("localhost"), rebuild)
    (arrived,) = stranger.arrived
    assert _of_ours(arrived) == {}
    assert arrived.get("X-Trace") == "trace"


@pytest.mark.parametrize("get", TO_ANOTHER_HOST)
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
def test_takes_no_session_along_that_the_caller_set(
    server: Server,
    stranger: Server,
    get: Any,
    is_known: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(CALLERS, "X-Session-ID", "own")
    gateway = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    with instrument(*[gateway] if is_known else []):
        get(gateway, server.origin, stranger.at("localhost"), _whole)
    (arrived,) = stranger.arrived
    assert _of_ours(arrived) == {}


@pytest.mark.parametrize("has_instrument", [True, False])
def test_keeps_a_session_that_it_set_for_another_gateway(
    server: Server, stranger: Server, has_instrument: bool
):
    gateway = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    other = Gateway(stranger.at("localhost"), session_header="X-Other", require_session=True)

    class Failover(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            headers = {**request.headers, "X-Other": "job"}
            with urllib3.PoolManager() if has_instrument else GatewayPoolManager(other) as http:
                return self.build_response(request, http.request("GET", other.url, headers=headers))

    patch = instrument(gateway, other) if has_instrument else contextlib.nullcontext()
    with requests.Session() as http, patch:
        http.mount("http://", GatewayAdapter(gateway, adapter=Failover()))
        http.get(gateway.url, headers=CALLERS, timeout=10)
    (arrived,) = stranger.arrived
    assert (arrived.get("X-Other"), _of_ours(arrived)) == ("job", {})


@pytest.mark.parametrize("kind", [dict, CaseInsensitiveDict, HTTPHeaderDict])
@pytest.mark.parametrize("changed", [{"method": "POST"}, {"path": "/other"}, {}])
def test_takes_no_stamp_along_after_a_first_attempt(
    server: Server, stranger: Server, kind: Any, changed: dict[str, str]
):
    """Which it may have made with another method, or at another path."""

    class Failover(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            request = request.copy()
            request.method = changed.get("method", "GET")
            request.url = server.origin + changed.get("path", "/x")
            super().send(request, *args, **options)
            again = request.copy()
            again.url, again.headers = stranger.at("localhost"), kind(request.headers)
            return super().send(again, *args, **options)

    gateway = Gateway(server.origin, forward="https://api.example", headers=KEYS)
    with requests.Session() as http, instrument(gateway), session_scope("s1"):
        http.mount("http://", GatewayAdapter(gateway, adapter=Failover()))
        http.get(f"{server.origin}/x", headers=CALLERS, timeout=10)
    (first,), (arrived,) = server.arrived, stranger.arrived
    assert (first.session_id, first.get("X-Api-Key")) == ("s1", "KEY")
    assert _of_ours(arrived) == {}


@pytest.mark.parametrize("has_instrument", [True, False])
@pytest.mark.parametrize("inner_has_a_gateway", [True, False])
@pytest.mark.parametrize("kind", [dict, CaseInsensitiveDict, HTTPHeaderDict])
def test_takes_no_stamp_along_through_an_inner_adapter_of_ours(
    server: Server, stranger: Server, kind: Any, inner_has_a_gateway: bool, has_instrument: bool
):
    gateway = Gateway(server.origin, forward="https://api.example", headers={"X-Api-Key": "KEY"})
    with Server() as second:
        other = Gateway(second.origin, session_header="X-Other", headers={"X-Api-Key": "OTHER"})

        class Failover(HTTPAdapter):
            def send(self, request: Any, *args: Any, **options: Any) -> Any:
                inner.send(request, *args, **options)
                for url in (other.url, stranger.origin):
                    copied = request.copy()
                    copied.url, copied.headers = url, kind(request.headers)
                    response = inner.send(copied, *args, **options)
                return response

        inner = GatewayAdapter(other if inner_has_a_gateway else None)
        with requests.Session() as http, session_scope("s1"), contextlib.ExitStack() as stack:
            if has_instrument:
                stack.enter_context(instrument(gateway, other))
            http.mount("http://", GatewayAdapter(gateway, adapter=Failover()))
            http.get(gateway.url, timeout=10)
    (first,), (arrived,) = server.arrived, stranger.arrived
    assert (first.session_id, first.get("X-Api-Key")) == ("s1", "KEY")
    assert _of_ours(arrived) == {}
    assert second.arrived[0].identifiers == {}
    assert second.arrived[0].get("X-Api-Key") != "KEY"


@pytest.mark.parametrize("has_instrument", [True, False])
@pytest.mark.parametrize("inner_has_a_gateway", [True, False])
@pytest.mark.parametrize(("library", "ours"), [(httpx, for_httpx), (httpx2, for_httpx2)])
def test_takes_no_stamp_along_through_an_inner_transport_of_ours(
    server: Server,
    stranger: Server,
    library: Any,
    ours: Any,
    inner_has_a_gateway: bool,
    has_instrument: bool,
):
    """It knows a stamp by the values. The library's own headers come back."""
    gateway = Gateway(server.origin, forward="https://api.example", headers={"X-Api-Key": "KEY"})
    with Server() as second:
        other = Gateway(second.origin, session_header="X-Other", headers={"X-Api-Key": "OTHER"})

        class Failover(library.BaseTransport):  # type: ignore[misc]
            def handle_request(self, request: Any) -> Any:
                inner.handle_request(request)
                for url in (other.url, stranger.origin):
                    request = library.Request("GET", url, headers=request.headers)
                    response = inner.handle_request(request)
                return response

        inner = ours.GatewayTransport(other if inner_has_a_gateway else None)
        with inner, session_scope("s1"), contextlib.ExitStack() as stack:
            if has_instrument:
                stack.enter_context(instrument(gateway, other))
            http = library.Client(transport=ours.GatewayTransport(gateway, Failover()))
            stack.enter_context(http).get(gateway.url)
    (first,), (arrived,) = server.arrived, stranger.arrived
    assert (first.session_id, first.get("X-Api-Key")) == ("s1", "KEY")
    assert _of_ours(arrived) == {}
    assert (arrived.get("User-Agent") or "").startswith(f"python-{library.__name__}/")
    is_stamped = has_instrument or inner_has_a_gateway
    seen = second.arrived[0]
    assert seen.identifiers == {}
    assert (seen.get("X-Other"), seen.get("X-Api-Key")) == (
        ("s1", "OTHER") if is_stamped else (None, None)
    )


@pytest.mark.parametrize("scope", [no_session(), session_scope("s1")], ids=["outside", "inside"])
@pytest.mark.parametrize("at_first", ["/x", "/v1/x"], ids=["not-owned", "owned"])
@pytest.mark.parametrize("over", ["its-own", "subclass", "wrapper", "aiohttp"])
@pytest.mark.parametrize(("library", "ours"), [(httpx, for_httpx), (httpx2, for_httpx2)])
def test_takes_no_stamp_along_a_redirect_of_a_client_of_its_own(
    server: Server,
    stranger: Server,
    library: Any,
    ours: Any,
    over: str,
    at_first: str,
    scope: contextlib.AbstractContextManager[object],
):
    class Subclass(library.AsyncHTTPTransport):  # type: ignore[misc]
        pass

    class Wrapper(library.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            async with library.AsyncHTTPTransport() as transport:
                answer = await transport.handle_async_request(request)
                await answer.aread()
                return answer

    class OverAiohttp(library.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            async with (
                aiohttp.ClientSession() as http,
                http.request(
                    request.method, str(request.url), headers=request.headers, allow_redirects=False
                ) as answer,
            ):
                return library.Response(answer.status, headers=list(answer.headers.items()))

    kinds = {
        "its-own": library.AsyncHTTPTransport,
        "subclass": Subclass,
        "wrapper": Wrapper,
        "aiohttp": OverAiohttp,
    }

    class Relay(library.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            async with library.AsyncClient(transport=kinds[over](), follow_redirects=True) as http:
                return await http.get(server.origin + at_first, headers=request.headers)

    async def main() -> None:
        transport = ours.GatewayTransport(gateway, Relay())
        async with library.AsyncClient(transport=transport) as http:
            await http.get(gateway.url, headers=CALLERS)

    server.respond = lambda request: redirect(307, stranger.at("localhost"))
    gateway = Gateway(
        f"{server.origin}/v1", forward="https://api.example", headers={"X-Api-Key": "KEY"}
    )
    with instrument(gateway), scope:
        asyncio.run(main())
    (arrived,) = stranger.arrived
    assert _of_ours(arrived) == {}


@pytest.mark.parametrize("instrumented", [None, "nothing", "gateway"])
@pytest.mark.parametrize("forward", [None, "https://api.example"], ids=["own-header", "forward"])
@pytest.mark.parametrize(("library", "ours"), [(httpx, for_httpx), (httpx2, for_httpx2)])
def test_keeps_the_stamp_for_a_second_attempt_after_a_redirect(
    server: Server,
    stranger: Server,
    library: Any,
    ours: Any,
    forward: str | None,
    instrumented: str | None,
):
    """It sends the very request that it got, by a client of its own."""

    class Subclass(library.AsyncHTTPTransport):  # type: ignore[misc]
        pass

    class Retrying(library.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            async with library.AsyncClient(transport=Subclass(), follow_redirects=True) as http:
                await http.send(request)
                return await http.send(request)

    async def main() -> None:
        transport = ours.GatewayTransport(gateway, Retrying())
        async with library.AsyncClient(transport=transport) as http:
            await http.get(gateway.url)

    server.respond = lambda request: redirect(307, stranger.at("localhost"))
    gateway = Gateway(server.origin, forward=forward, session_header="X-Session-ID", headers=KEYS)
    with contextlib.ExitStack() as stack, session_scope("s1"):
        if instrumented:
            stack.enter_context(instrument(*[gateway] if instrumented == "gateway" else []))
        asyncio.run(main())
    marks = [(each.get("X-Session-ID"), each.get("X-Api-Key")) for each in server.arrived]
    assert marks == [("s1", "KEY")] * 2
    if instrumented:
        assert list(map(_of_ours, stranger.arrived)) == [{}, {}]


def test_keeps_all_values_of_a_name(server: Server, stranger: Server):
    def twice(items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        return [*items, ("X-Twice", "1"), ("X-Twice", "2")]

    gateway = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    with instrument(gateway), session_scope("s1"):
        get = _over_requests(HTTPHeaderDict)
        get(gateway, server.origin, stranger.at("localhost"), twice)
    (arrived,) = stranger.arrived
    assert [value for name, value in arrived.headers if name == "X-Twice"] == ["1", "2"]


def test_keeps_a_credential_of_its_own(server: Server, stranger: Server):
    def with_another_key(items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        return [*items, ("authorization", "OTHER")]  # beside the gateway's, in a dict

    gateway = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    with instrument(gateway), session_scope("s1"):
        get = _over_requests(dict)
        get(gateway, server.origin, stranger.at("localhost"), with_another_key)
    (arrived,) = stranger.arrived
    assert [value for name, value in arrived.headers if name.lower() == "authorization"] == [
        "OTHER"
    ]


@pytest.mark.parametrize("scope", [no_session(), session_scope("s1")], ids=["outside", "inside"])
@pytest.mark.parametrize("rebuild", [_whole, _without_authorization, _deep])
@pytest.mark.parametrize("path", ["/x", "/x?a=1"])
@pytest.mark.parametrize("instrumented", [[], ["/other"], ["/"]], ids=["none", "other", "same"])
@pytest.mark.parametrize("get", ALL)
def test_keeps_the_stamp_at_the_same_gateway(
    server: Server,
    get: Any,
    rebuild: Rebuild,
    path: str,
    scope: contextlib.AbstractContextManager[object],
    instrumented: list[str],
):
    """Whether or not ``instrument`` knows it, and what else the code below changes."""
    gateway = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    others = [
        Gateway(f"{server.origin}{each}", session_header="X-Other", headers={"X-Api-Key": "OTHER"})
        if each != "/"
        else gateway
        for each in instrumented
    ]
    with instrument(*others), scope:
        session_id = current_session_id()
        get(gateway, f"{server.origin}/x", f"{server.origin}{path}", rebuild)
    (arrived,) = server.arrived
    assert arrived.target == path
    assert (arrived.get("X-Api-Key"), arrived.get("X-Cagent-Model")) == ("KEY", "model")
    assert arrived.get("X-Session-ID") == session_id


@pytest.mark.parametrize("copy", [lambda headers: headers, dict], ids=["same", "copied"])
@pytest.mark.parametrize("instrumented", [[], ["/other"], ["/v1"]], ids=["none", "other", "same"])
def test_keeps_the_stamp_where_a_manager_below_follows_a_redirect_of_the_gateway(
    server: Server, copy: Any, instrumented: list[str]
):
    class ByAManager(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            answer = self.poolmanager.urlopen(
                request.method, request.url, headers=copy(request.headers), preload_content=False
            )
            return self.build_response(request, answer)

    gateway = Gateway(f"{server.origin}/v1", session_header="X-Session-ID", headers=KEYS)
    others = [
        gateway if each == "/v1" else Gateway(f"{server.origin}{each}", session_header="X-Other")
        for each in instrumented
    ]
    server.respond = lambda request: (
        redirect(307, "/v1/x/") if request.path == "/v1/x" else response()
    )
    with requests.Session() as http, instrument(*others), session_scope("s1"):
        http.mount("http://", GatewayAdapter(gateway, adapter=ByAManager()))
        http.get(f"{server.origin}/v1/x", timeout=10)
    assert [
        (each.path, each.get("X-Session-ID"), each.get("X-Api-Key")) for each in server.arrived
    ] == [("/v1/x", "s1", "KEY"), ("/v1/x/", "s1", "KEY")]


def test_gets_back_a_key_that_a_manager_below_has_dropped(server: Server):
    """urllib3 drops ``Authorization`` at each redirect that a proxy has forwarded."""

    class ByAManager(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            with urllib3.ProxyManager(server.origin) as manager:
                answer = manager.urlopen(
                    request.method, request.url, headers=request.headers, preload_content=False
                )
                return self.build_response(request, answer)

    gateway = Gateway("http://gateway.test/v1", session_header="X-Session-ID", headers=KEYS)
    server.respond = lambda request: (
        redirect(307, f"{gateway.url}/x/") if request.path.endswith("/x") else response()
    )
    with requests.Session() as http, instrument(gateway), session_scope("s1"):
        http.mount("http://", GatewayAdapter(gateway, adapter=ByAManager()))
        http.get(f"{gateway.url}/x", timeout=10)
    assert [(each.get("X-Session-ID"), each.get("Authorization")) for each in server.arrived] == [
        ("s1", "KEY"),
        ("s1", "KEY"),
    ]


@pytest.mark.parametrize("is_equal", [True, False], ids=["equal", "same"])
@pytest.mark.parametrize("kind", [dict, CaseInsensitiveDict])
def test_keeps_the_session_in_a_thread_of_its_own(server: Server, kind: Any, is_equal: bool):
    class HardTimeout(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            request = request.copy()
            request.url += "?version=1"
            request.headers = kind(request.headers)
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(super().send, request, *args, **options).result(10)

    gateway = Gateway(server.origin, session_header="X-Session-ID", require_session=True)
    known = dataclasses.replace(gateway) if is_equal else gateway
    with requests.Session() as http, instrument(known), session_scope("s1"):
        http.mount("http://", GatewayAdapter(gateway, adapter=HardTimeout()))
        http.get(f"{server.origin}/x", timeout=10)
    (arrived,) = server.arrived
    assert (arrived.target, arrived.get("X-Session-ID")) == ("/x?version=1", "s1")


def test_leaves_the_stamp_behind_for_another_gateway_of_the_host(server: Server):
    gateway = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    inner = Gateway(f"{server.origin}/inner", session_header="X-Inner")
    with instrument(gateway, inner), session_scope("s1"):
        get = _over_requests(dict)
        get(gateway, f"{server.origin}/x", f"{server.origin}/inner", _whole)
    (arrived,) = server.arrived
    assert _of_ours(arrived) == {"X-Cagent-Model": "model", "X-Inner": "s1"}


@pytest.mark.parametrize("path", ["//inner/x", "/inner%2fx"])
@pytest.mark.parametrize("knows_both", [True, False], ids=["both", "inner"])
@pytest.mark.parametrize("get", LIBRARIES)
def test_leaves_the_stamp_behind_where_another_gateway_could_be_meant(
    server: Server, get: Any, path: str, knows_both: bool
):
    gateway = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    inner = Gateway(f"{server.origin}/inner", session_header="X-Inner")
    with instrument(*[gateway, inner] if knows_both else [inner]), session_scope("s1"):
        get(gateway, f"{server.origin}/x", f"{server.origin}{path}", _whole)
    (arrived,) = server.arrived
    assert _of_ours(arrived) == {"X-Cagent-Model": "model"}


@pytest.mark.parametrize("get", ALL)
def test_keeps_the_stamp_of_a_gateway_inside_one_that_instrument_has(server: Server, get: Any):
    outer = Gateway(server.origin, session_header="X-Outer", headers={"X-Api-Key": "OUTER"})
    gateway = Gateway(f"{server.origin}/inner", session_header="X-Session-ID", headers=KEYS)
    with instrument(outer), session_scope("s1"):
        get(gateway, gateway.url, f"{gateway.url}/x", _whole)
    (arrived,) = server.arrived
    seen = [arrived.get(name) for name in ("X-Session-ID", "X-Outer", "X-Api-Key")]
    assert (arrived.path, seen) == ("/inner/x", ["s1", None, "KEY"])


def test_gets_the_stamp_of_the_gateway_that_it_comes_back_to(server: Server, stranger: Server):
    one = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    other = Gateway(stranger.origin, session_header="X-Session-ID", headers={"X-Api-Key": "OTHER"})

    class Failover(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            for gateway in (one, other, one):
                request = request.copy()
                request.url = gateway.url
                response = super().send(request, *args, **options)
            return response

    with requests.Session() as http, instrument(one, other), session_scope("s1"):
        http.mount("http://", Failover())
        one.mount(http)
        http.get(one.url, timeout=10)
    arrived = [*server.arrived, *stranger.arrived]
    assert [each.get("X-Session-ID") for each in arrived] == ["s1"] * 3
    assert [each.get("X-Api-Key") for each in arrived] == ["KEY", "KEY", "OTHER"]


def test_leaves_the_stamp_behind_for_a_gateway_that_only_the_session_has(server: Server):
    outer = Gateway(server.origin, session_header="X-Session-ID", headers=KEYS)
    inner = Gateway(f"{server.origin}/inner", session_header="X-Inner")

    class Moving(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            request = request.copy()
            request.url, request.headers = f"{server.origin}/inner", dict(request.headers)
            return super().send(request, *args, **options)

    with requests.Session() as http, instrument(), session_scope("s1"):
        http.mount("http://", Moving())
        outer.mount(http)
        inner.mount(http)
        http.get(f"{server.origin}/x", timeout=10)
    (arrived,) = server.arrived
    assert _of_ours(arrived) == {}


def test_gets_the_query_of_the_gateway_at_another_path(server: Server):
    gateway = Gateway(f"{server.origin}?tenant=t", session_header="X-Session-ID", headers=KEYS)
    with instrument(gateway), session_scope("s1"):
        get = _over_requests(dict)
        get(gateway, f"{server.origin}/x", f"{server.origin}/y", _whole)
    (arrived,) = server.arrived
    assert (arrived.target, arrived.get("X-Session-ID")) == ("/y?tenant=t", "s1")


def test_that_asks_the_gateway_itself_does_so_in_its_own_session(server: Server):
    """Although it sends the headers of the request in flight."""
    gateway = Gateway(
        server.origin, session_header="X-Session-ID", parent_header="X-Parent", headers=KEYS
    )

    class Asking(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            with session_scope("aux"):
                requests.get(f"{server.origin}/quota", headers=dict(request.headers), timeout=10)
            return super().send(request, *args, **options)

    with requests.Session() as http, instrument(gateway), session_scope("s1"):
        http.mount("http://", GatewayAdapter(gateway, adapter=Asking()))
        http.get(f"{server.origin}/x", timeout=10)
    seen = [(each.path, each.get("X-Session-ID"), each.get("X-Parent")) for each in server.arrived]
    assert seen == [("/quota", "aux", "s1"), ("/x", "s1", None)]


def _of_ours(arrived: Arrived) -> dict[str, str]:
    values = {"KEY", "s1", "own", "model"}
    return {
        name: value
        for name, value in arrived.headers
        if value in values or name.lower().startswith("x-cagent-")
    }
