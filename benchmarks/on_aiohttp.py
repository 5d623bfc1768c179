"""What a middleware adds to a request of aiohttp, without a network."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeAlias

import aiohttp
from aiohttp.tracing import Trace
from comparison import Comparison, tables_of
from harness import Table, Within, show
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from stubs import (
    AT_GATEWAY,
    ELSEWHERE,
    GATEWAY,
    GATEWAY_HEADERS,
    PROMPT,
    SESSION_ID,
    in_baggage,
    tracer_provider,
)

from cagent_session import current_session_id, session_scope
from cagent_session._gate.protocol import USER_AGENT
from cagent_session.integrations.aiohttp import GatewayMiddleware

Handler: TypeAlias = Callable[[aiohttp.ClientRequest], Awaitable[Any]]
UNIT = "setting all headers in place"


def tables() -> Iterator[Table]:
    return tables_of("on_aiohttp", comparisons())


def comparisons() -> Iterator[Comparison]:
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), session_scope("session-1"):
        client = loop.run_until_complete(a_client())
        yield comparison(client, loop)
        loop.run_until_complete(client.close())


async def a_client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


def comparison(client: aiohttp.ClientSession, loop: asyncio.AbstractEventLoop) -> Comparison:
    async def make(url: str, headers: dict[str, str] | None) -> aiohttp.ClientRequest:
        """Return the request that the client makes."""
        made: list[aiohttp.ClientRequest] = []

        async def keep(request: aiohttp.ClientRequest, handler: Handler) -> Any:
            made.append(request)
            raise aiohttp.ClientError("not to be sent")

        with contextlib.suppress(aiohttp.ClientError):
            await client.post(url, json=PROMPT, headers=headers, middlewares=[keep])
        return made[0]

    answer = types.SimpleNamespace(status=200, headers={})

    async def handler(request: aiohttp.ClientRequest) -> Any:
        return answer

    told = {**GATEWAY_HEADERS, "User-Agent": USER_AGENT}

    async def session_in_place(request: aiohttp.ClientRequest, handler: Handler) -> Any:
        request.headers[SESSION_ID] = current_session_id()
        return await handler(request)

    async def all_in_place(request: aiohttp.ClientRequest, handler: Handler) -> Any:
        for name, value in told.items():
            request.headers[name] = value
        request.headers[SESSION_ID] = current_session_id()
        return await handler(request)

    config = create_trace_config(tracer_provider=tracer_provider())
    config.freeze()

    async def traced(request: aiohttp.ClientRequest) -> Any:
        """Do what the client does with the instrumentation's trace configuration."""
        trace = Trace(client, config, config.trace_config_ctx())
        await trace.send_request_start(request.method, request.url, request.headers)
        response = await handler(request)
        await trace.send_request_end(request.method, request.url, request.headers, response)
        return response

    def case(
        send: Callable[[aiohttp.ClientRequest], Coroutine[Any, Any, object]],
        url: str = AT_GATEWAY,
        own: dict[str, str] | None = None,
    ) -> Callable[[], object]:
        request = loop.run_until_complete(make(url, own))
        headers = request.headers

        def run() -> object:
            # Each time those of a request that nobody has changed yet.
            request.headers = headers.copy()
            try:
                send(request).send(None)  # nothing in it waits
            except StopIteration as done:
                return done.value
            raise AssertionError("it has waited")

        return run

    def through(middleware: Any) -> Callable[[aiohttp.ClientRequest], Any]:
        return lambda request: middleware(request, handler)

    cases = {
        "plain": case(handler, AT_GATEWAY, GATEWAY_HEADERS),
        UNIT: case(through(all_in_place)),
        "setting the session header in place": case(
            through(session_in_place), AT_GATEWAY, GATEWAY_HEADERS
        ),
        "`GatewayMiddleware()`, gateway-bound by header": case(
            through(GatewayMiddleware()), AT_GATEWAY, GATEWAY_HEADERS
        ),
        "`GatewayMiddleware(gateway)`, gateway-bound by URL": case(
            through(GatewayMiddleware(GATEWAY))
        ),
        "`GatewayMiddleware()`, not gateway-bound": case(through(GatewayMiddleware())),
        "`GatewayMiddleware(gateway)`, not gateway-bound": case(
            through(GatewayMiddleware(GATEWAY)), ELSEWHERE
        ),
        "OpenTelemetry's instrumentation, baggage": Within(in_baggage, case(traced)),
    }
    return Comparison("aiohttp", UNIT, cases, plain="plain")


if __name__ == "__main__":
    show(tables())
