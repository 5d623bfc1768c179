"""What type checkers see: mypy reads this file, nobody runs it."""

from collections.abc import AsyncIterator, Callable, Iterator

import requests
from requests.adapters import HTTPAdapter
from typing_extensions import assert_type

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayMixin,
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    no_session,
    session_from,
    session_scope,
)


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


async def check_async() -> None:
    assert_type(await coroutine(1), str)
