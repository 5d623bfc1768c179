"""Random calls inside calls, and coroutines whose steps run in several contexts."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import types
from typing import Any, NamedTuple

import aiohttp
import httpx
import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.transports import TRANSPORTS
from support.wire import Server, redirect, response

from cagent_session import Gateway, instrument, no_session, session_scope
from cagent_session.integrations import aiohttp as for_aiohttp
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

BLOCKING = ("requests", "urllib3", "httpx", "httpx2")
SYNC = {each.name: each for each in TRANSPORTS if each.name in BLOCKING}
HTTPX = {"httpx": (httpx, for_httpx), "httpx2": (httpx2, for_httpx2)}
ASYNC = [*HTTPX, "aiohttp"]
SESSIONS = [None, "s1", "s2", "s3"]
bounded = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
by_each = pytest.mark.parametrize("by", ["transport", "instrument", "both"])


def scope(session: str | None) -> Any:
    return no_session() if session is None else session_scope(session)


@contextlib.contextmanager
def loopback(by: str):
    """Give a server that counts down by redirects, and the gateway there for our transports."""
    with Server() as server:
        gateway = Gateway(server.origin, forward="https://a.example", session_header="X-Session-ID")
        server.respond = lambda request: (
            response() if request.path == "/0" else redirect(307, f"/{int(request.path[1:]) - 1}")
        )
        patched = instrument(gateway) if by in ("instrument", "both") else contextlib.nullcontext()
        with patched:
            yield server, gateway if by in ("transport", "both") else None


@contextlib.asynccontextmanager
async def posting(gateway: Gateway | None, on: Any, *, by_trace: bool = False):
    """Give ``post(library, url, number, body)``, which awaits ``on(number, path)`` at each hop.

    :param by_trace: let aiohttp do so once the headers are sent, and not before.
    """

    async def event(request: Any) -> None:
        await on(int(request.headers["X-Call"]), request.url.path)

    async def middleware(request: Any, handler: Any) -> Any:
        await event(request)
        return await handler(request)

    async def trace(_session: Any, _context: Any, sent: Any) -> None:
        await event(sent)

    async with contextlib.AsyncExitStack() as stack:
        clients: dict[str, Any] = {}
        for name, (library, integration) in HTTPX.items():
            inner = library.AsyncHTTPTransport(verify=False, trust_env=False)
            clients[name] = library.AsyncClient(
                transport=integration.GatewayTransport(gateway, inner) if gateway else inner,
                event_hooks={"request": [event]},
                follow_redirects=True,
                trust_env=False,
            )
        tracing = aiohttp.TraceConfig()
        if by_trace:
            tracing.on_request_headers_sent.append(trace)
        above = [] if by_trace else [middleware]
        ours = [for_aiohttp.GatewayMiddleware(gateway)] if gateway else []
        session = aiohttp.ClientSession(middlewares=[*above, *ours], trace_configs=[tracing])
        for client in (*clients.values(), session):
            await stack.enter_async_context(client)

        async def post(library: str, url: str, number: int, body: Any = None) -> int:
            headers = {"X-Call": str(number)}
            if library != "aiohttp":
                return (await clients[library].post(url, content=body, headers=headers)).status_code
            async with session.post(url, data=body, headers=headers) as answer:
                return answer.status

        yield post


class Call(NamedTuple):
    library: str
    session: str | None
    nested: list[tuple[str, Call]]  #: where each is made while this one is being sent

    @property
    def size(self) -> int:
        return 1 + sum(inner.size for _, inner in self.nested)


@st.composite
def programs(draw, libraries: list[str], places: list[str], depth: int = 3) -> Call:
    call = Call(draw(st.sampled_from(libraries)), draw(st.sampled_from(SESSIONS)), [])
    if depth > 1:
        inner = st.tuples(st.sampled_from(places), programs(libraries, places, depth - 1))
        call.nested.extend(draw(st.lists(inner, max_size=2)))
    return call


def check_each(server: Server, made: list[Call], program: Call) -> None:
    """Compare what arrived with the calls, which are numbered in the order they were made in."""
    assert len(made) == program.size
    assert sorted(int(each.get("X-Call")) for each in server.arrived) == [*range(len(made))]
    for each in server.arrived:
        assert each.forward == "https://a.example"
        assert each.get("X-Session-ID") == made[int(each.get("X-Call"))].session


@by_each
@bounded
@given(program=programs([*SYNC], ["body"]))
def test_calls_from_bodies_have_sessions_of_their_own(by, program):
    made: list[Call] = []
    with loopback(by) as (server, gateway), contextlib.ExitStack() as stack:
        send = {
            name: stack.enter_context(each.open(gateway, plain=gateway is None))
            for name, each in SYNC.items()
        }

        def make(call: Call) -> None:
            made.append(call)
            headers = {"X-Call": str(len(made) - 1)}

            def body():
                for _, inner in call.nested:
                    make(inner)
                yield b"x"

            with scope(call.session):
                send[call.library]("POST", f"{server.origin}/0", headers, body())

        make(program)
    check_each(server, made, program)


@by_each
@bounded
@given(program=programs(ASYNC, ["body", "task", "hook"]))
def test_calls_from_hooks_and_tasks_have_sessions_of_their_own(by, program):
    made: list[Call] = []
    tasks: list[asyncio.Task[None]] = []

    async def main(url: str, gateway: Gateway | None) -> None:
        def start(call: Call, place: str) -> None:
            inner = [each for where, each in call.nested if where == place]
            tasks.extend(asyncio.create_task(make(each)) for each in inner)

        async def on(number: int, path: str) -> None:
            start(made[number], "hook")

        async def make(call: Call) -> None:
            made.append(call)
            number = len(made) - 1

            async def body():
                start(call, "task")
                for where, inner in call.nested:
                    if where == "body":
                        await make(inner)
                yield b"x"

            with scope(call.session):
                await post(call.library, url, number, body())

        async with posting(gateway, on, by_trace=True) as post:
            await make(program)
            while tasks:
                await tasks.pop()

    with loopback(by) as (server, gateway):
        asyncio.run(main(f"{server.origin}/0", gateway))
    check_each(server, made, program)


MEANT: contextvars.ContextVar[str | None] = contextvars.ContextVar("MEANT")


class Driven(NamedTuple):
    """A coroutine that posts, and how its steps are run."""

    library: str
    redirects: int
    pauses: int  #: of its own before each hop
    sessions: list[str | None]  #: of the contexts that take turns in running its steps
    last: int | None  #: the step at which it is given up
    delay: float  #: for which it is left alone before that

    @property
    def end(self) -> type[BaseException]:
        """What is thrown into it. httpx cannot be closed while it sends, with or without us."""
        return GeneratorExit if self.library == "aiohttp" else asyncio.CancelledError


driven = st.builds(
    Driven,
    st.sampled_from(ASYNC),
    st.integers(0, 2),
    st.integers(0, 3),
    st.lists(st.sampled_from(SESSIONS), min_size=1, max_size=5),
    st.none() | st.integers(1, 12),
    st.sampled_from([0, 0.01]),
)


@types.coroutine
def run_steps(steps: Any, how: Driven, contexts: dict[Any, Any]):
    """Drive a coroutine as a task does, but each step in another context."""
    resume, argument = steps.send, None
    for number, session in enumerate(itertools.cycle(how.sessions)):
        if number == how.last:
            yield from asyncio.sleep(how.delay).__await__()
            resume, argument = steps.throw, how.end()
        try:
            waits_for = contexts[session].run(resume, argument)
        except StopIteration as done:
            return done.value
        resume, argument = steps.send, None
        try:
            yield waits_for
        except BaseException as error:
            resume, argument = steps.throw, error


@pytest.mark.parametrize("by", ["plain", "transport", "instrument", "both"])
@bounded
@given(program=st.lists(driven, min_size=1, max_size=4))
def test_each_step_of_a_coroutine_sends_in_the_session_of_its_context(by, program):
    meant: dict[tuple[int, str], str | None] = {}

    async def main(origin: str, gateway: Gateway | None) -> list[Any]:
        async def on(number: int, path: str) -> None:
            for _ in range(program[number].pauses):
                await asyncio.sleep(0)
            meant[number, path] = MEANT.get()

        contexts = {}
        for session in SESSIONS:
            with scope(session):
                contexts[session] = contextvars.copy_context()
            contexts[session].run(MEANT.set, session)
        async with posting(gateway, on) as post:

            async def drive(number: int, how: Driven) -> int:
                steps = post(how.library, f"{origin}/{how.redirects}", number)
                return await run_steps(steps, how, contexts)

            driving = [drive(*each) for each in enumerate(program)]
            return await asyncio.gather(*driving, return_exceptions=True)

    with loopback(by) as (server, gateway):
        results = asyncio.run(main(server.origin, gateway))
    for how, result in zip(program, results, strict=True):
        assert result == 200 or (how.last and type(result) is how.end)
    came = [(int(each.get("X-Call")), each.path) for each in server.arrived]
    for number, how in enumerate(program):
        paths = [path for call, path in came if call == number]
        whole = [f"/{left}" for left in reversed(range(how.redirects + 1))]
        assert paths == whole[: len(paths)]
        assert paths == whole or results[number] != 200
    for each, key in zip(server.arrived, came, strict=True):
        assert each.get("X-Session-ID") == (None if by == "plain" else meant[key])
        assert each.forward == (None if by == "plain" else "https://a.example")
