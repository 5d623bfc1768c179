"""What type checkers see: mypy reads this file, nobody runs it."""

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import httpx2
import requests
from requests.adapters import HTTPAdapter
from typing_extensions import assert_type

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayMixin,
    GatewayPoolManager,
    SessionRequired,
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    instrument,
    no_session,
    parent_session_id,
    received_session,
    session_from,
    session_scope,
    uninstrument,
)
from cagent_session.headers import SESSION_ID
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2


@session_scope("s1")
def function(a: int, *, b: str = "") -> list[str]:
    return [b] * a


@session_from("name")
def generator(name: str) -> Iterator[int]:
    yield 1


@session_scope()
async def coroutine(a: int) -> str:
    return ""


@no_session()
async def async_generator() -> AsyncIterator[int]:
    yield 1


class Agent:
    session_id = "s1"

    @session_from("self.session_id")
    def method(self, a: int) -> str:
        return ""

    @classmethod
    @session_scope("s1")
    def class_method(cls, a: int) -> str:
        return ""

    @session_scope("s1")
    @staticmethod
    def static_method(a: int) -> str:
        return ""


class Mixed(GatewayMixin, HTTPAdapter):
    pass


def check(agent: Agent, gateway: Gateway) -> None:
    assert_type(function(1, b="x"), list[str])
    function("1")  # type: ignore[arg-type]
    assert_type(generator("s1"), Iterator[int])
    assert_type(async_generator(), AsyncIterator[int])
    assert_type(agent.method(1), str)
    agent.method("1")  # type: ignore[arg-type]
    assert_type(Agent.class_method(1), str)
    assert_type(agent.static_method(1), str)
    assert_type(current_session_id(), str | None)
    with session_scope("s1") as session_id, no_session() as nothing:
        assert_type(session_id, str)
        assert_type(nothing, None)
    session_scope(None)  # type: ignore[arg-type]
    bound = bind_session(agent.method)
    assert_type(bound(1), str)
    bound("1")  # type: ignore[arg-type]
    with SessionThreadPoolExecutor() as pool:
        assert_type(pool.submit(agent.method, 1).result(), str)
    assert_type(gateway.mount(requests.Session()), GatewayAdapter)
    adapter: HTTPAdapter = Mixed(gateway, max_retries=3)
    send: Callable[[requests.PreparedRequest], requests.Response] = adapter.send
    del send


def check_families() -> None:
    with session_scope("s1", parent="s0"):
        assert_type(parent_session_id(), str | None)
    session_scope("s1", parent=None)  # type: ignore[arg-type]
    session_scope("s1", "s0")  # type: ignore[call-arg]
    with received_session(None, parent="s0") as session_id:
        assert_type(session_id, str | None)
    received_session(b"s1")  # type: ignore[arg-type]


def check_gateways() -> None:
    router = Gateway(
        "http://router.example",
        session_header="X-Session-ID",
        parent_header="X-Parent-Session-ID",
        headers={"X-Team": "a"},
        require_session=True,
    )
    assert_type(dataclasses.replace(router, forward="https://provider.example", model="m"), Gateway)
    assert_type(Gateway.from_env(forward="https://provider.example"), Gateway | None)
    assert_type(router.endpoint("v1"), str)
    assert_type(router.owns("http://router.example/v1"), bool)
    assert_type(router.headers_for("http://router.example/v1"), dict[str, str])
    router.url = ""  # type: ignore[misc]
    Gateway("http://router.example", "https://provider.example")  # type: ignore[call-arg]
    with instrument(router, router):
        pass
    instrument("http://router.example")  # type: ignore[arg-type]
    uninstrument()
    error: RuntimeError = SessionRequired(SESSION_ID)
    del error


def check_clients(gateway: Gateway) -> None:
    transport = for_httpx.GatewayTransport(gateway)
    httpx.Client(transport=transport)
    httpx.AsyncClient(transport=transport)
    httpx.AsyncClient(transport=for_httpx.AsyncGatewayTransport(None, httpx.AsyncHTTPTransport()))
    httpx2.Client(transport=for_httpx2.GatewayTransport(gateway, httpx2.HTTPTransport()))
    httpx2.AsyncClient(transport=for_httpx2.GatewayTransport(gateway))
    httpx.Client(transport=for_httpx2.GatewayTransport(gateway))  # type: ignore[arg-type]
    assert_type(GatewayPoolManager(gateway, maxsize=8).request("GET", "/").status, int)


async def check_async() -> None:
    assert_type(await coroutine(1), str)
