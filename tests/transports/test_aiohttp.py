"""aiohttp: what only it has. tests/gate has the rules that all transports share."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import pickle
import socket
import ssl
import sys
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from httpx_aiohttp import AiohttpTransport
from multidict import CIMultiDict
from support.transports import connections_closed
from support.wire import Proxy, Server, redirect, response
from yarl import URL

from cagent_session import (
    Gateway,
    SessionRequired,
    current_session_id,
    gateway_headers,
    instrument,
    no_session,
    session_scope,
    uninstrument,
)
from cagent_session._gate import urls
from cagent_session._transports import aiohttp as for_aiohttp
from cagent_session._transports import watched_calls
from cagent_session.integrations.aiohttp import GatewayMiddleware
from cagent_session.integrations.httpx import GatewayTransport

FORWARD = "https://api.openai.com/v1"
MODEL = {"X-Cagent-Model": "m"}
CALLERS = gateway_headers(FORWARD) | {"X-Cagent-Session-Id": "mine"}


class NamedMiddleware(GatewayMiddleware):
    def __init__(self, name: str, gateway: Gateway) -> None:
        super().__init__(gateway)
        self.name = name


@pytest.fixture(autouse=True)
def _switched_off() -> Iterator[None]:
    yield
    uninstrument()


@pytest.fixture
def gateway(server: Server) -> Gateway:
    return Gateway(f"{server.origin}/p?tenant=a", forward=FORWARD)


async def one_of(first: Awaitable[Any], second: Awaitable[Any], index: int) -> Any:
    """Make two attempts at once, return the answer to one, and let go of the other."""
    answers = list(await asyncio.gather(first, second))
    chosen = answers.pop(index)
    await answers.pop().read()
    for _ in range(10):
        await asyncio.sleep(0)  # until then, asyncio holds the other one
    return chosen


def get(url: str | URL, *middlewares: object, **options: object) -> None:
    async def main() -> None:
        client = aiohttp.ClientSession(middlewares=middlewares)  # type: ignore[arg-type]
        async with client as http, http.get(url, **options) as answer:  # type: ignore[arg-type]
            await answer.read()

    asyncio.run(main())


def test_a_class_of_request_with_slots(server: Server, gateway: Gateway):
    class Mine(aiohttp.ClientRequest):
        __slots__ = ("tenant",)

        def __init__(self, *args: Any, **options: Any) -> None:
            self.tenant = "a"
            super().__init__(*args, **options)

        async def send(self, connection: Any) -> Any:
            self.headers["X-Tenant"] = self.tenant
            return await super().send(connection)

    async def main() -> None:
        client = aiohttp.ClientSession(middlewares=[GatewayMiddleware(gateway)], request_class=Mine)
        async with client as http, http.get(gateway.endpoint("x")):
            pass

    with session_scope("s1"):
        asyncio.run(main())
    (arrived,) = server.arrived
    assert (arrived.get("X-Tenant"), arrived.session_id) == ("a", "s1")


class HangsUp(Server):
    """Closes a connection as soon as the headers of a request are there."""

    def handle(self, connection: Any) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        connection.shutdown(socket.SHUT_WR)


@pytest.fixture(params=["middleware", "instrument"])
def middlewares(request: pytest.FixtureRequest, gateway: Gateway) -> list[object]:
    if request.param == "middleware":
        return [GatewayMiddleware(gateway)]
    instrument(gateway)
    return []


def test_a_host_in_capitals_that_yarl_keeps(server: Server, middlewares: list[object]):
    gateway = Gateway(server.at("localhost"), forward=FORWARD)
    if middlewares:
        middlewares = [GatewayMiddleware(gateway)]
    else:
        instrument(gateway)
    with session_scope("s1"):
        get(URL(server.at("LOCALHOST") + "/x", encoded=True), *middlewares)
    assert server.arrived[0].session_id == "s1"


class TestProxies:
    """aiohttp asks a proxy for a tunnel with the headers of the ``ClientSession``."""

    @staticmethod
    def get(url: str, proxy: str, ca: str, *middlewares: Any, own: Any, **options: Any) -> None:
        async def main() -> None:
            trust = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca))
            session: Any = {"middlewares": middlewares, "connector": trust, "headers": own}
            client = aiohttp.ClientSession(**session)
            async with client as http, http.get(url, proxy=proxy, **options) as answer:
                await answer.read()
            await connections_closed()

        asyncio.run(main())

    @pytest.mark.parametrize("switched_on", ["middleware", "instrument", "instrument, no gateway"])
    def test_get_no_identifiers_of_the_callers(self, tls, switched_on: str):
        with Server(tls=tls.context) as stranger, Proxy() as proxy, session_scope("s1"):
            elsewhere = redirect(307, f"{stranger.origin}/x")
            with Server(lambda request: elsewhere, tls=tls.context) as server:
                gateway = Gateway(server.origin, forward=FORWARD)
                middlewares = [GatewayMiddleware(gateway)] if switched_on == "middleware" else []
                if switched_on != "middleware":
                    instrument(*([gateway] if switched_on == "instrument" else []))
                own = {**CALLERS, "X-Mine": "x"}
                self.get(f"{server.origin}/p/x", proxy.origin, tls.ca, *middlewares, own=own)
                assert [arrived.session_id for arrived in server.arrived] == ["s1"]
            assert [arrived.identifiers for arrived in stranger.arrived] == [{}]
            assert [connect.method for connect in proxy.arrived] == ["CONNECT"] * 2
            assert [connect.identifiers for connect in proxy.arrived] == [{}] * 2
            assert [connect.get("X-Mine") for connect in proxy.arrived] == ["x"] * 2

    @pytest.mark.parametrize("given", ["taken off by a middleware above", "as proxy_headers"])
    def test_get_none_that_the_request_itself_lacks(self, tls, given: str):
        async def without(request, handler):
            request.headers.popall("X-Cagent-Session-Id")
            return await handler(request)

        with Server(tls=tls.context) as server, Proxy() as proxy, session_scope("s1"):
            middlewares: list[Any] = [GatewayMiddleware(Gateway(server.origin, forward=FORWARD))]
            own: dict[str, str] = {"X-Cagent-Session-Id": "mine", "X-Mine": "x"}
            options: dict[str, Any] = {"own": own}
            if given == "as proxy_headers":
                options = {"own": {}, "proxy_headers": own}
            else:
                middlewares.insert(0, without)
            self.get(server.origin, proxy.origin, tls.ca, *middlewares, **options)
            assert [connect.identifiers for connect in proxy.arrived] == [{}]
            assert proxy.arrived[0].get("X-Mine") == "x"
            assert [arrived.session_id for arrived in server.arrived] == ["s1"]


class TestMultidictBefore64:
    """It makes no proxy of a subclass of ``CIMultiDict``. ``tox -e oldest`` has such a version."""

    @pytest.fixture(autouse=True)
    def plain_headers(self, monkeypatch):
        monkeypatch.setattr(for_aiohttp, "_TAKES_SUBCLASSES", False)

    @pytest.mark.parametrize("scope", [session_scope("s1"), no_session()])
    def test_a_request_is_stamped_once(self, server: Server, scope):
        seen: list[type] = []

        async def between(request, handler):
            seen.append(type(request.headers))
            return await handler(request)

        gateway = Gateway(server.origin, session_header="X-Session-ID", headers={"X-Key": "KEY"})
        with instrument(gateway), scope:
            session_id = current_session_id()
            get(f"{server.origin}/x", GatewayMiddleware(gateway), between)
        (arrived,) = server.arrived
        assert seen == [CIMultiDict]
        assert arrived.all("X-Key") == ["KEY"]
        assert arrived.get("X-Session-ID") == session_id

    @pytest.mark.parametrize("outer_by", ["middleware", "instrument"])
    def test_a_stamp_of_nothing_is_known_again(self, server: Server, outer_by: str):
        """Here the URL is the inner gateway's, which sets nothing outside every session."""
        inner = Gateway(f"{server.origin}/inner", session_header="X-Session-ID")
        outer = Gateway(f"{server.origin}?tenant=a", forward=FORWARD, headers={"X-Key": "KEY"})
        gates = [GatewayMiddleware(inner)]
        if outer_by == "middleware":
            gates.append(GatewayMiddleware(outer))
        else:
            instrument(outer)
        with no_session():
            get(f"{server.origin}/inner/x", *gates, headers={"User-Agent": "sdk/1"})
        (arrived,) = server.arrived
        assert (arrived.target, arrived.get("X-Key"), arrived.forward) == ("/inner/x", None, None)
        assert arrived.all("Host") == [server.origin.removeprefix("http://")]

    def test_a_stamp_of_nothing_stays_behind(self, server: Server):
        with Server() as stranger:

            async def failover(request, handler):
                request.url = aiohttp.client.URL(stranger.at("localhost"))
                return await handler(request)

            gates = [GatewayMiddleware(Gateway(server.origin, session_header="X-Session-ID"))]
            with instrument(), no_session():
                get(server.origin, *gates, failover, headers={"User-Agent": "sdk/1"})
            assert stranger.arrived[0].all("Host") == [server.origin.removeprefix("http://")]

    def test_a_stamp_stays_behind(self, server: Server):
        with Server() as stranger:

            async def failover(request, handler):
                del request.headers["X-Session-ID"]
                request.url = aiohttp.client.URL(stranger.at("localhost"))
                request.update_host(request.url)
                return await handler(request)

            gateway = Gateway(
                server.origin, session_header="X-Session-ID", headers={"X-Key": "KEY"}
            )
            with instrument(gateway), session_scope("s1"):
                get(f"{server.origin}/x", GatewayMiddleware(gateway), failover)
            (arrived,) = stranger.arrived
        assert (arrived.get("X-Session-ID"), arrived.get("X-Key")) == (None, None)
        assert arrived.get("User-Agent") == aiohttp.http.SERVER_SOFTWARE


class TestMiddlewares:
    def test_of_a_single_call_replace_those_of_the_client(self, server: Server, gateway: Gateway):
        ours = GatewayMiddleware(gateway)
        with session_scope("s1"):
            get(f"{server.origin}/p/x", ours, middlewares=())
            instrument(gateway)
            get(f"{server.origin}/p/x", ours, middlewares=())
        assert [request.session_id for request in server.arrived] == [None, "s1"]

    @staticmethod
    async def without_any(url: str) -> None:
        client = aiohttp.ClientSession(middlewares=None)  # type: ignore[arg-type]
        async with client as http, http.get(url) as answer:
            await answer.read()

    def test_may_be_none_at_all(self, server: Server, gateway: Gateway):
        with instrument(gateway), session_scope("s1"):
            asyncio.run(self.without_any(f"{server.origin}/p/x"))
        assert server.arrived[0].session_id == "s1"

    def test_above_may_send_again_in_another_session(self, server: Server, middlewares):
        async def twice(request, handler):
            with session_scope("first"):
                (await handler(request)).close()
            with no_session():
                (await handler(request)).close()
            return await handler(request)

        with session_scope("last"):
            get(f"{server.origin}/p/x", twice, *middlewares)
        assert [request.session_id for request in server.arrived] == ["first", None, "last"]
        assert {request.target for request in server.arrived} == {"/p/x?tenant=a"}

    @pytest.mark.parametrize("of", [lambda request: request, copy.copy])
    def test_above_may_send_to_another_host(self, server: Server, middlewares, of):
        with Server() as stranger:

            async def failover(request, handler):
                (await handler(request)).close()
                request = of(request)
                request.url = aiohttp.client.URL(stranger.at("localhost"))
                request.update_host(request.url)
                return await handler(request)

            with session_scope("s1"):
                get(f"{server.origin}/p/x", failover, *middlewares, headers=CALLERS)
            assert server.arrived[0].session_id == "s1"
            assert stranger.arrived[0].identifiers == {}

    def test_above_may_mark_a_request_anew_for_another_host(self, server: Server, middlewares):
        with Server() as second:

            async def failover(request, handler):
                (await handler(request)).close()
                request.url = aiohttp.client.URL(second.at("localhost"))
                request.update_host(request.url)
                request.headers.update(gateway_headers("https://api.anthropic.com", provider="p"))
                (await handler(request)).close()
                return await handler(request)

            own = CALLERS | {"X-Cagent-Provider": "p", "X-Cagent-Compacting": "1"}
            with session_scope("s1"):
                get(f"{server.origin}/p/x", failover, *middlewares, headers=own)
            assert len(second.arrived) == 2
            for arrived in second.arrived:
                assert (arrived.forward, arrived.session_id) == ("https://api.anthropic.com", "s1")
                assert arrived.get("X-Cagent-Provider") == "p"
                assert arrived.get("X-Cagent-Compacting") is None

    def test_above_may_mark_a_request_that_a_bare_gate_between_stamps(self, server, middlewares):
        with Server() as second:

            async def mark(request, handler):
                if str(request.url).startswith(second.at("localhost")):
                    request.headers.update(gateway_headers("https://api.anthropic.com"))
                return await handler(request)

            server.respond = lambda request: redirect(307, second.at("localhost"))
            with session_scope("s1"):
                own = {"X-Cagent-Compacting": "1"}
                get(f"{server.origin}/p/x", mark, GatewayMiddleware(), *middlewares, headers=own)
            (arrived,) = second.arrived
            assert (arrived.forward, arrived.session_id) == ("https://api.anthropic.com", "s1")
            assert arrived.get("X-Cagent-Compacting") is None

    def test_of_two_gateways_one_may_stamp_what_the_caller_had_set_for_the_other(self, server):
        with Server() as second:
            one = Gateway(server.origin, forward="https://api.example/1")
            two = Gateway(second.at("localhost"), forward="https://api.example/2")
            server.respond = lambda request: redirect(307, two.url)
            with session_scope("s1"):
                gates = [GatewayMiddleware(two), GatewayMiddleware(one)]
                get(one.url, *gates, headers={"X-Cagent-Session-Id": "s1"})
            (arrived,) = second.arrived
            assert (arrived.forward, arrived.session_id) == ("https://api.example/2", "s1")

    @pytest.mark.parametrize("gates", ["one two", "two one", "two", ""])  # less: instrument()
    @pytest.mark.parametrize("own", [{"X-Cagent-Session-Id": "mine"}, MODEL])
    def test_of_two_gateways_know_what_the_caller_had_set_for_the_other(self, server, gates, own):
        with Server() as second:
            one = Gateway(server.origin, forward=FORWARD, model="1")
            two = Gateway(second.origin, forward=FORWARD, model="2", require_session=True)
            server.respond = lambda request: redirect(307, two.url)
            named = {"one": one, "two": two}
            listed = [GatewayMiddleware(named[each]) for each in gates.split()]
            if len(listed) < len(named):
                instrument(one, two)
            if own is MODEL:
                with session_scope("s1"):
                    get(one.url, *listed, headers=own)
                (arrived,) = second.arrived
                assert (arrived.get("X-Cagent-Model"), arrived.session_id) == ("2", "s1")
            else:
                with pytest.raises(SessionRequired):
                    get(one.url, *listed, headers=own)
                assert second.arrived == []

    @pytest.mark.parametrize("order", [1, -1])
    def test_of_two_gateways_keep_what_was_set_for_one_from_the_other(self, server, order: int):
        with Server() as second:
            one = Gateway(server.origin, session_header="X-One")
            two = Gateway(second.at("localhost"), session_header="X-Two")

            async def failover(request, handler):
                (await handler(request)).close()
                request.url = aiohttp.client.URL(two.url)
                request.update_host(request.url)
                return await handler(request)

            gates = [GatewayMiddleware(one), GatewayMiddleware(two)][::order]
            with no_session():
                get(one.url, failover, *gates, headers={"X-One": "mine"})
            assert server.arrived[0].get("X-One") == "mine"
            assert second.arrived[0].get("X-One") is None

    def test_above_may_send_a_request_twice_at_once(self, server: Server, middlewares):
        async def hedge(request, handler):
            async def attempt(session_id: str) -> aiohttp.ClientResponse:
                with session_scope(session_id):
                    return await handler(request)

            answers = await asyncio.gather(attempt("s1"), attempt("s2"))
            for answer in answers:
                answer.close()
            request.url = aiohttp.client.URL(stranger.at("localhost"))
            request.update_host(request.url)
            return await handler(request)

        with Server() as stranger:
            get(f"{server.origin}/p/x", hedge, *middlewares)
            assert sorted(each.session_id or "" for each in server.arrived) == ["s1", "s2"]
            assert stranger.arrived[0].identifiers == {}

    def test_headers_of_a_request_that_is_over_are_stamped_anew(self, server: Server, middlewares):
        async def main() -> None:
            seen: list[Any] = []
            trace = aiohttp.TraceConfig()

            @trace.on_request_headers_sent.append
            async def note(session: object, context: object, params: Any) -> None:
                seen.append(params.headers)

            client = aiohttp.ClientSession(middlewares=middlewares, trace_configs=[trace])
            async with client as http:
                with session_scope("s1"):
                    await http.get(f"{server.origin}/p/x?tenant=a")
                with session_scope("s2"):
                    await http.get(f"{server.origin}/p/x?tenant=a", headers=seen[0])

        asyncio.run(main())
        assert [request.session_id for request in server.arrived] == ["s1", "s2"]

    @pytest.mark.parametrize("fails", [False, True])
    def test_above_may_send_copies_to_several_hosts(self, server: Server, middlewares, fails: bool):
        """GatewayMiddleware sees copies alone, and each is let go after its attempt."""

        async def failover(request, handler):
            for host in (server.origin, stranger.at("localhost")):
                attempt = copy.copy(request)
                attempt.headers = request.headers.copy()
                attempt.url = URL(f"{host}/p/x")
                try:
                    answer = await handler(attempt)
                except aiohttp.ServerDisconnectedError:
                    continue
                if answer.status == 200:
                    break
            return answer

        with Server() as stranger:
            server.respond = lambda request: None if fails else response(503)
            get(f"{server.origin}/p/x", failover, *middlewares, headers=CALLERS)
        assert {request.session_id for request in server.arrived} == {"mine"}
        assert [request.identifiers for request in stranger.arrived] == [{}]

    def test_above_may_send_the_clients_second_attempt_to_another_host(self, server, middlewares):
        async def failover(request, handler):
            if len(server.arrived) > 1:
                request.url = URL(stranger.at("localhost"))
                request.update_host(request.url)
            return await handler(request)

        async def main() -> None:
            async with aiohttp.ClientSession(middlewares=[failover, *middlewares]) as http:
                for _ in range(2):
                    (await http.get(f"{server.origin}/p/x", headers=CALLERS)).close()

        with Server() as stranger:
            server.respond = lambda request: response() if len(server.arrived) < 2 else None
            asyncio.run(main())
            assert [request.identifiers for request in stranger.arrived] == [{}]

    @pytest.mark.parametrize("index", [0, 1])
    def test_above_may_go_on_with_either_answer_to_copies(self, server, middlewares, index: int):
        async def hedge(request, handler):
            if request.url.path != "/p/x":
                return await handler(request)
            return await one_of(handler(copy.copy(request)), handler(copy.copy(request)), index)

        with Server() as stranger:
            server.respond = lambda request: redirect(307, stranger.at("localhost"))
            get(f"{server.origin}/p/x", hedge, *middlewares, headers=CALLERS)
        assert [request.identifiers for request in stranger.arrived] == [{}]

    @pytest.mark.parametrize("index", [0, 1])
    def test_above_may_go_on_with_either_of_two_answers(self, server, middlewares, index: int):
        """The client follows the redirect of the one, while the other is let go."""

        async def hedge(request, handler):
            return await one_of(handler(request), handler(request), index)

        with Server() as stranger:
            server.respond = lambda request: redirect(307, stranger.at("localhost"))
            get(f"{server.origin}/p/x", hedge, *middlewares, headers=CALLERS)
        assert [request.identifiers for request in stranger.arrived] == [{}, {}]

    def test_a_body_is_sent_again_after_the_server_has_hung_up(self, server: Server, middlewares):
        server.respond = lambda request: response() if len(server.arrived) != 2 else None

        async def main(middlewares: list[object]) -> None:
            async with aiohttp.ClientSession(middlewares=middlewares) as http:
                for _ in range(2):
                    async with http.put(f"{server.origin}/p/x", data=io.BytesIO(b"body")) as answer:
                        await answer.read()

        def outcome(middlewares: list[object]) -> list[object]:
            server.arrived.clear()
            try:
                asyncio.run(main(middlewares))
            except ValueError as error:  # older versions of aiohttp have closed the file
                return [repr(error)]
            return [each.body for each in server.arrived]

        with session_scope("s1"):
            ours = outcome(middlewares)
            assert {each.session_id for each in server.arrived} == {"s1"}
            uninstrument()
            assert ours == outcome([])

    def test_an_error_does_not_wait_for_the_cleanup_of_a_body(self, middlewares, gateway: Gateway):
        """Where the client will not send the body again."""

        async def main() -> bool:
            is_told = asyncio.Event()

            async def body():
                try:
                    yield b"chunk"
                    await asyncio.sleep(60)
                finally:
                    await is_told.wait()

            client = aiohttp.ClientSession(
                middlewares=middlewares, timeout=aiohttp.ClientTimeout(20)
            )
            async with client as http:
                try:
                    await http.post(gateway.endpoint("x"), data=body())
                except aiohttp.ServerDisconnectedError:
                    return True
                finally:
                    is_told.set()
            return False

        with HangsUp() as server:
            gateway = replace(gateway, url=server.origin)
            if middlewares:
                middlewares = [GatewayMiddleware(gateway)]
            else:
                instrument(gateway)
            assert asyncio.run(main())

    def test_below_that_send_elsewhere_are_caught_by_instrument(
        self, server: Server, gateway: Gateway
    ):
        instrument(gateway)
        with Server() as stranger:

            async def failover(request, handler):
                request.url = aiohttp.client.URL(stranger.at("localhost"))
                request.update_host(request.url)
                return await handler(request)

            with session_scope("s1"):
                get(f"{server.origin}/p/x", GatewayMiddleware(gateway), failover, headers=CALLERS)
            assert stranger.arrived[0].identifiers == {}

    def test_twice_in_the_list_changes_nothing(self, server: Server, gateway: Gateway):
        other = Gateway(server.origin, forward="https://other.example", provider="other")
        instrument(other)
        with session_scope("s1"):
            get(f"{server.origin}/p/x", GatewayMiddleware(gateway), GatewayMiddleware(other))
        (arrived,) = server.arrived
        assert (arrived.forward, arrived.session_id) == (FORWARD, "s1")
        assert "x-cagent-provider" not in arrived.identifiers

    @pytest.mark.parametrize("how", [lambda each: pickle.loads(pickle.dumps(each)), copy.copy])
    def test_survives_pickling_and_copying(self, server: Server, gateway: Gateway, how):
        ours = NamedMiddleware("ours", gateway)
        with session_scope("s1"):
            for each in (ours, how(ours)):
                get(f"{server.origin}/p/x", each)
                assert each.name == "ours"
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    def test_only_takes_a_gateway(self):
        with pytest.raises(TypeError, match=r"write Gateway\(url, forward=...\)"):
            GatewayMiddleware("https://gateway.example")  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [["", FORWARD], [FORWARD, ""]])
def test_of_several_values_the_first_counts_that_is_not_empty(server, middlewares, values):
    headers = CIMultiDict([("X-Cagent-Model", "m")])
    for value in values:
        headers.add("X-Cagent-Forward", value)
    with Server() as stranger, session_scope("s1"):
        server.respond = lambda request: redirect(307, stranger.at("localhost"))
        get(f"{server.origin}/p/x", *middlewares, headers=headers)
        assert server.arrived[0].session_id == "s1"
        assert stranger.arrived[0].identifiers == {}


class TestRedirects:
    def test_identifiers_of_the_caller_stay_at_their_origin(self, server: Server, middlewares):
        with Server() as stranger:
            targets = {"/p/1": "/p/2", "/p/2": f"{stranger.at('localhost')}/3"}
            server.respond = lambda request: (
                redirect(307, targets[request.path]) if request.path in targets else response()
            )
            stranger.respond = lambda request: redirect(307, f"{server.origin}/p/4")
            get(f"{server.origin}/p/1", *middlewares, headers=CALLERS)
            assert [request.session_id for request in server.arrived[:2]] == ["mine", "mine"]
            assert server.arrived[2].forward == FORWARD
            assert stranger.arrived[0].identifiers == {}

    def test_a_middleware_above_may_send_a_redirected_hop_twice(self, server: Server, middlewares):
        async def twice(request, handler):
            await handler(request)
            return await handler(request)

        with Server() as stranger:
            server.respond = lambda request: redirect(307, stranger.at("localhost"))
            get(f"{server.origin}/p/x", twice, *middlewares, headers=CALLERS)
            assert [request.identifiers for request in stranger.arrived] == [{}, {}]

    @pytest.mark.parametrize("order", [1, -1])
    def test_from_one_gateway_to_another_with_a_middleware_for_each(self, server: Server, order):
        with Server() as other:
            server.respond = lambda request: redirect(307, other.at("localhost"))
            first = Gateway(server.origin, session_header="X-First")
            second = Gateway(other.at("localhost"), session_header="X-Second")
            ours = [GatewayMiddleware(first), GatewayMiddleware(second)][::order]
            with session_scope("s1"):
                get(server.origin, *ours, headers={"X-First": "mine"})
            with no_session():
                get(server.origin, *ours, headers={"X-First": "mine"})
            assert [request.get("X-First") for request in server.arrived] == ["s1", "mine"]
            assert [request.get("X-First") for request in other.arrived] == [None, None]
            assert other.arrived[0].get("X-Second") == "s1"

    @pytest.mark.parametrize("seconds", [300, None])  # each has a timer of another kind
    def test_a_call_after_a_redirected_one_is_a_call_of_its_own(
        self, server: Server, middlewares, seconds: float | None
    ):
        """Also if the timer of the first call has been collected, and its address is used again."""

        async def main() -> None:
            timeout = aiohttp.ClientTimeout(seconds)
            async with aiohttp.ClientSession(middlewares=middlewares, timeout=timeout) as http:
                for number in range(20):
                    (await http.get(f"{server.origin}/p/{number}", headers=CALLERS)).close()
                    gc.collect()
                    (await http.get(f"{server.at('localhost')}/x", headers=CALLERS)).close()

        server.respond = lambda request: (
            redirect(307, "/p/x") if request.path[3:].isdigit() else (response())
        )
        asyncio.run(main())
        at_localhost = [request for request in server.arrived if request.path == "/x"]
        assert [request.session_id for request in at_localhost] == ["mine"] * 20

    def test_a_hop_costs_the_same_however_many_were_before(self, server, middlewares, monkeypatch):
        parsed: list[str] = []
        split = urls.split
        monkeypatch.setattr(urls, "split", lambda url: (parsed.append(url), split(url))[1])

        def count(hops: int) -> int:
            parsed.clear()
            get(f"{server.origin}/p/{hops}", *middlewares, headers=CALLERS, max_redirects=100)
            return len(parsed)

        with Server() as stranger:
            server.respond = lambda request: redirect(
                307, stranger.at("localhost") + request.path.removeprefix("/p")
            )
            stranger.respond = lambda request: (
                response()
                if request.path == "/0"
                else redirect(307, f"{server.origin}/p/{int(request.path[1:]) - 1}")
            )
            assert count(32) < 3 * count(16)
            assert len(server.arrived) == 33 + 17

    @pytest.mark.parametrize("headers", [{}, CALLERS])
    def test_calls_that_are_over_are_forgotten(self, server: Server, middlewares, headers):
        async def get() -> None:
            (await http.get(f"{server.origin}/p/x", headers=headers)).close()

        async def main() -> int:
            nonlocal http
            # A connection in the pool keeps the timer of its last call.
            connector = aiohttp.TCPConnector(force_close=True)
            client = aiohttp.ClientSession(middlewares=middlewares, connector=connector)
            async with client as http:
                await asyncio.gather(*[get() for _ in range(20)])
                for _ in range(50):
                    await get()
            return len(watched_calls.calls_of(client) or ())

        http = None
        assert asyncio.run(main()) <= 2

    def test_a_call_that_is_pending_as_its_loop_is_closed_is_forgotten(self):
        async def never(request, handler):
            await asyncio.get_running_loop().create_future()

        async def main() -> weakref.ref[Any]:
            http = aiohttp.ClientSession(middlewares=[ours, never])
            task = asyncio.ensure_future(http.get("http://localhost/x", headers=CALLERS))
            for _ in range(10):
                await asyncio.sleep(0)
            http.detach()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            return weakref.ref(task)

        def let_go() -> weakref.ref[Any]:
            loop = asyncio.new_event_loop()
            try:
                return loop.run_until_complete(main())
            finally:
                loop.close()

        ours = GatewayMiddleware()
        tasks = [let_go() for _ in range(4)]
        gc.collect()
        assert [task() for task in tasks] == [None] * 4

    def test_loops_are_let_go_after_many_calls_at_once(self, server: Server, middlewares):
        async def main(calls: int) -> weakref.ref[Any]:
            async with aiohttp.ClientSession(middlewares=middlewares) as http:

                async def get() -> None:
                    (await http.get(f"{server.origin}/p/x", headers=CALLERS)).close()

                await asyncio.gather(*[get() for _ in range(calls)])
            return weakref.ref(asyncio.get_running_loop())

        loops = [asyncio.run(main(calls)) for calls in (20, *[1] * 10)]
        gc.collect()
        assert [loop() for loop in loops] == [None] * 11

    @pytest.mark.parametrize("is_closed", [False, True])
    def test_a_loop_is_let_go_as_without_a_gate(self, server: Server, middlewares, is_closed: bool):
        """Closed, without the collector. Else by the collector, and Python closes it then."""

        async def main() -> None:
            async with aiohttp.ClientSession(middlewares=middlewares) as http:
                (await http.get(f"{server.origin}/p/x", headers=CALLERS)).close()

        def let_go() -> weakref.ref[Any]:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            if is_closed:
                loop.close()
            return weakref.ref(loop)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            let_go()  # the first one imports what is needed
            gc.disable()
            try:
                loops = [let_go() for _ in range(4)]
                if not is_closed:
                    gc.collect()
                assert [loop() for loop in loops] == [None] * 4
            finally:
                gc.enable()

    def test_a_call_is_its_own_whoever_keeps_an_answer_to_another(self, server: Server, gateway):
        """An answer that a middleware below makes does not keep the timer of the call."""
        answers: list[Any] = []

        async def cache(request, handler):
            if not answers:
                answers.append(await handler(request))
                answers[0]._timer = None
            return answers[0] if request.url.path == "/p/x" else await handler(request)

        async def main() -> None:
            ours = [GatewayMiddleware(gateway), cache]
            async with aiohttp.ClientSession(middlewares=ours) as http:
                for _ in range(20):
                    await http.get(f"{server.origin}/p/x", headers=CALLERS)
                    gc.collect()
                    (await http.get(f"{server.at('localhost')}/y", headers=CALLERS)).close()

        asyncio.run(main())
        at_localhost = [request for request in server.arrived if request.path == "/y"]
        assert [request.session_id for request in at_localhost] == ["mine"] * 20


def test_websockets_carry_the_session(middlewares):
    seen: list[str | None] = []

    async def serve(request: web.Request) -> web.WebSocketResponse:
        seen.append(request.headers.get("X-Cagent-Session-Id"))
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/p/x", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        gateway = Gateway(f"http://{host}:{port}/p", forward=FORWARD)
        ours = [GatewayMiddleware(gateway)] if middlewares else []
        if not ours:
            instrument(gateway)
        async with aiohttp.ClientSession(middlewares=ours) as http:
            for scheme in ("ws", "http"):
                async with http.ws_connect(f"{scheme}://{host}:{port}/p/x"):
                    pass
        await runner.cleanup()

    with session_scope("s1"):
        asyncio.run(main())
    assert seen == ["s1", "s1"]


def test_a_refused_request_is_not_sent(server: Server):
    gateway = Gateway(server.origin, forward=FORWARD, require_session=True)
    with pytest.raises(SessionRequired):
        get(server.origin, GatewayMiddleware(gateway))
    assert server.arrived == []


class _PipeConnector(aiohttp.NamedPipeConnector):
    """Sends to a unix socket, as only Windows has named pipes."""

    def __init__(self, path: str) -> None:
        aiohttp.BaseConnector.__init__(self)
        self._path = path

    _create_connection = aiohttp.UnixConnector._create_connection


class TestUnixSockets:
    """They are nobody's, whatever host the URL names. A transport of ours is the user's word."""

    def arrived(self, tmp_path: Path, get: Callable[[str], Awaitable[object]]) -> str | None:
        """Return the session that has arrived on a socket to which ``get(path)`` sends."""
        seen: list[str | None] = []

        async def serve(request: web.Request) -> web.Response:
            seen.append(request.headers.get("X-Cagent-Session-Id"))
            if self.location:
                raise web.HTTPTemporaryRedirect(self.location)
            return web.Response()

        async def main() -> None:
            app = web.Application()
            app.router.add_get("/", serve)
            runner = web.AppRunner(app)
            await runner.setup()
            path = str(tmp_path / "daemon.sock")
            await web.UnixSite(runner, path).start()
            await get(path)
            await runner.cleanup()

        with instrument(self.gateway), session_scope("s1"):
            asyncio.run(main())
        (session_id,) = seen
        return session_id

    gateway = Gateway("http://localhost", forward=FORWARD)
    location = ""  #: where requests are redirected to

    @pytest.mark.parametrize("connector", [aiohttp.UnixConnector, _PipeConnector])
    def test_of_aiohttp(self, tmp_path: Path, connector):
        async def get(path: str) -> None:
            async with aiohttp.ClientSession(connector=connector(path)) as http:
                (await http.get("http://localhost/")).close()

        assert self.arrived(tmp_path, get) is None

    @pytest.mark.parametrize("connector", [aiohttp.UnixConnector, _PipeConnector])
    @pytest.mark.parametrize("made", ["before", "later"])
    def test_of_httpx_over_aiohttp(self, tmp_path: Path, connector, made: str):
        async def get(path: str) -> None:
            def client() -> aiohttp.ClientSession:
                return aiohttp.ClientSession(connector=connector(path))

            transport = AiohttpTransport(client=client() if made == "before" else client)
            async with httpx.AsyncClient(transport=transport) as http:
                await http.get("http://localhost/")

        assert self.arrived(tmp_path, get) is None

    def test_of_httpx(self, tmp_path: Path):
        async def get(path: str) -> None:
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path)) as http:
                await http.get("http://localhost/")

        assert self.arrived(tmp_path, get) is None

    def test_of_httpx_that_redirects(self, tmp_path: Path):
        async def get(path: str) -> None:
            with Server() as other:
                self.location = other.origin
                transport = httpx.AsyncHTTPTransport(uds=path)
                mounts = {"all://localhost": transport}
                async with httpx.AsyncClient(mounts=mounts, follow_redirects=True) as http:
                    await http.get("http://localhost/", headers=CALLERS)
                assert other.arrived[0].get("X-Cagent-Forward") == FORWARD

        assert self.arrived(tmp_path, get) == "mine"

    def test_of_a_transport_of_ours(self, tmp_path: Path):
        async def get(path: str) -> None:
            ours = GatewayTransport(self.gateway, httpx.AsyncHTTPTransport(uds=path))
            async with httpx.AsyncClient(transport=ours) as http:
                await http.get("http://localhost/")

        assert self.arrived(tmp_path, get) == "s1"


class _HeadersOfAServer(Mapping[str, str]):
    """The headers of a request that a server got, as Starlette has them."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw

    def __getitem__(self, name: str) -> str:
        return {name.decode(): value.decode() for name, value in self.raw}[name]

    def __iter__(self) -> Iterator[str]:
        return iter([name.decode() for name, _ in self.raw])

    def __len__(self) -> int:
        return len(self.raw)


class _HeadersOfAnApplication(httpx.Headers):
    pass


@pytest.mark.parametrize(
    "headers",
    [_HeadersOfAServer([(b"x-a", b"b")]), _HeadersOfAnApplication({"X-A": "b"})],
    ids=["of a server", "of httpx"],
)
def test_headers_of_another_library_are_sent(server: Server, gateway: Gateway, headers):
    instrument(gateway)
    with session_scope("s1"):
        get(f"{server.origin}/p/x", headers=headers)
        get(f"{server.origin}/elsewhere", headers=headers)
    assert [arrived.get("X-A") for arrived in server.arrived] == ["b", "b"]
    assert [arrived.session_id for arrived in server.arrived] == ["s1", None]


class TestMiddlewaresInBetween:
    @pytest.mark.parametrize("elsewhere", [True, False], ids=["elsewhere", "same-gateway"])
    def test_what_they_change_on_a_request_that_they_move_stays_changed(
        self, server: Server, elsewhere: bool
    ):
        gateway = Gateway(server.origin, session_header="X-Session-ID", headers={"X-Key": "KEY"})

        async def move(request: Any, handler: Any) -> Any:
            url = stranger.at("localhost") if elsewhere else f"{server.origin}/y"
            request.url = aiohttp.client.URL(url)
            request.update_host(request.url)
            request.headers["Authorization"] = "changed"
            request.headers["X-New"] = "new"
            del request.headers["X-Gone"]
            return await handler(request)

        async def main() -> None:
            middlewares = (GatewayMiddleware(gateway), move)
            headers = {"Authorization": "callers", "X-Gone": "gone", "X-Trace": "trace"}
            async with aiohttp.ClientSession(middlewares=middlewares) as http:
                await http.get(f"{server.origin}/x", headers=headers)

        instrument(gateway)
        with Server() as stranger, session_scope("s1"):
            asyncio.run(main())
            (arrived,) = stranger.arrived if elsewhere else server.arrived
        names = ("Authorization", "X-New", "X-Gone", "X-Trace", "X-Session-ID", "X-Key")
        ours = [None, None] if elsewhere else ["s1", "KEY"]
        assert [arrived.get(name) for name in names] == ["changed", "new", None, "trace", *ours]


class TestHttpxOverAiohttp:
    def get(self, url: str, **options: object) -> None:
        async def main() -> None:
            transport = AiohttpTransport(client=aiohttp.ClientSession())
            async with httpx.AsyncClient(transport=transport, follow_redirects=True) as http:
                await http.get(url, **options)  # type: ignore[arg-type]

        asyncio.run(main())

    def test_is_stamped_once(self, server: Server, gateway: Gateway, caplog):
        instrument(gateway)
        with session_scope("s1"), caplog.at_level("DEBUG", "cagent_session"):
            self.get(f"{server.origin}/p/x")
        (arrived,) = server.arrived
        assert (arrived.session_id, arrived.target) == ("s1", "/p/x?tenant=a")
        bound = [r for r in caplog.records if r.getMessage().startswith("gateway-bound")]
        assert len(bound) == 1

    @pytest.mark.parametrize("path", ["/p/x", "/p/y"])
    def test_passes_once_where_a_transport_in_between_makes_another_request(
        self, server: Server, gateway: Gateway, path: str
    ):
        class Rebuilding(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                url = f"{server.origin}{path}"
                rebuilt = httpx.Request(request.method, url, headers=request.headers)
                return await inner.handle_async_request(rebuilt)

        gateway = replace(gateway, session_header="X-Session-ID")
        outer = Gateway(server.origin, session_header="X-Outer", headers={"X-Api-Key": "OUTER"})

        async def main() -> None:
            nonlocal inner
            inner = AiohttpTransport()
            transport = GatewayTransport(gateway, Rebuilding())
            async with inner, httpx.AsyncClient(transport=transport) as http:
                await http.get(f"{server.origin}/p/x")

        inner: Any = None
        instrument(outer)
        with session_scope("s1"):
            asyncio.run(main())
        (arrived,) = server.arrived
        names = ("X-Session-ID", "X-Outer", "X-Api-Key", "X-Cagent-Session-Id")
        assert [arrived.get(name) for name in names] == ["s1", None, None, None]

    def test_the_callers_identifiers_stay_at_their_origin(self, server: Server, gateway: Gateway):
        instrument(gateway)
        with Server() as stranger, session_scope("s1"):
            server.respond = lambda request: redirect(307, stranger.at("localhost"))
            self.get(f"{server.origin}/p/x", headers=CALLERS)
            assert server.arrived[0].session_id == "s1"
            assert stranger.arrived[0].identifiers == {}

    @pytest.mark.parametrize("host", ["user:pw@[::1]", "[0:0:0:0:0:0:0:1]"])
    def test_the_callers_identifiers_stay_where_aiohttp_reads_the_url_otherwise(self, host: str):
        async def main() -> None:
            transport = AiohttpTransport()
            async with httpx.AsyncClient(transport=transport, follow_redirects=True) as http:
                no_auth = httpx.Auth()  # httpx would make a header of the user info
                url = f"http://{host}:{server.port}/x"
                await http.get(url, headers=MODEL, auth=no_auth)

        with Server() as stranger, Server(host="::1") as server, session_scope("s1"):
            server.respond = lambda request: redirect(307, stranger.origin)
            with instrument(Gateway(server.origin, forward=FORWARD)):
                asyncio.run(main())
        assert server.arrived[0].session_id == "s1"
        assert stranger.arrived[0].identifiers == {}

    def test_what_httpx_itself_sends_is_judged_as_httpx_reads_it(self, server: Server):
        """A URL with user info is no gateway's, and such a request is sent on as it is."""

        async def main() -> None:
            async with httpx.AsyncClient(follow_redirects=True) as http:
                await http.get(f"http://user:pw@127.0.0.1:{server.port}/x", headers=MODEL)

        with Server() as stranger, instrument(Gateway(server.origin, forward=FORWARD)):
            server.respond = lambda request: redirect(307, stranger.origin)
            asyncio.run(main())
        assert stranger.arrived[0].identifiers == {"x-cagent-model": "m"}

    def test_the_callers_identifiers_stay_also_below_a_wrapper(self, server: Server, gateway):
        class Wrapper(httpx.AsyncBaseTransport):
            def __init__(self) -> None:
                self.inner = AiohttpTransport()

            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                return await self.inner.handle_async_request(request)

            async def aclose(self) -> None:
                await self.inner.aclose()

        other = Gateway("http://other.example", session_header="X-Other")
        instrument(gateway)
        for transport in (Wrapper(), GatewayTransport(other, AiohttpTransport())):

            async def main(transport=transport) -> None:
                async with httpx.AsyncClient(transport=transport, follow_redirects=True) as http:
                    await http.get(f"{server.origin}/p/x", headers=CALLERS)

            with Server() as stranger, session_scope("s1"):
                server.respond = lambda request, at=stranger: redirect(307, at.at("localhost"))
                asyncio.run(main())
                assert server.arrived[-1].session_id == "s1"
                assert stranger.arrived[0].identifiers == {}

    @pytest.mark.parametrize("second", ["/p/inner/x", "/elsewhere"])
    def test_they_stay_after_a_hop_that_names_others(self, server: Server, gateway, second: str):
        """The second hop is for another gateway of the same origin, or for none."""
        inner = Gateway(f"{server.origin}/p/inner", session_header="X-Inner")
        outer = replace(gateway, session_header="X-Outer")

        class Wrapper(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                return await transport.handle_async_request(request)

        async def main() -> None:
            nonlocal transport
            transport = AiohttpTransport()
            async with httpx.AsyncClient(transport=Wrapper(), follow_redirects=True) as http:
                await http.get(f"{server.origin}/p/x", headers={"X-Outer": "mine"})
            await transport.aclose()

        transport: Any = None
        instrument(outer, inner)
        with Server() as stranger:
            targets = iter([f"{server.origin}{second}", stranger.at("localhost")])
            server.respond = lambda request: redirect(307, next(targets))
            asyncio.run(main())
        assert [arrived.get("X-Outer") for arrived in server.arrived] == ["mine", "mine"]
        assert stranger.arrived[0].get("X-Outer") is None

    def test_a_transport_in_between_that_fails_over_takes_no_stamp_along(
        self, server: Server, gateway: Gateway
    ):
        class Failover(httpx.AsyncBaseTransport):
            def __init__(self) -> None:
                self.inner = AiohttpTransport()

            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                await (await self.inner.handle_async_request(request)).aclose()
                request.url = httpx.URL(stranger.at("localhost"))
                return await self.inner.handle_async_request(request)

            async def aclose(self) -> None:
                await self.inner.aclose()

        async def main() -> None:
            transport = GatewayTransport(gateway, Failover())
            async with httpx.AsyncClient(transport=transport) as http:
                await http.get(f"{server.origin}/p/x", headers=CALLERS)

        with Server() as stranger, instrument(gateway), session_scope("s1"):
            asyncio.run(main())
            assert server.arrived[0].session_id == "s1"
            assert stranger.arrived[0].identifiers == {}

    def test_the_response_has_the_callers_request(self, server: Server, gateway: Gateway):
        instrument(gateway)

        async def main() -> None:
            async with httpx.AsyncClient(transport=AiohttpTransport()) as http:
                answer = await http.get(f"{server.origin}/p/x")
                again = answer.request
                again.url = httpx.URL(stranger.at("localhost"))
                again.headers["Host"] = again.url.netloc.decode()
                await http.send(again)

        with Server() as stranger, session_scope("s1"):
            asyncio.run(main())
            assert server.arrived[0].session_id == "s1"
            assert stranger.arrived[0].identifiers == {}

    def test_defaults_of_httpx_give_way_also_below_a_wrapper(self, server: Server):
        instrument(Gateway(server.origin, forward=FORWARD, headers={"Accept-Encoding": "identity"}))
        other = Gateway("http://other.example", session_header="X-Other")

        async def main() -> None:
            transport = GatewayTransport(other, AiohttpTransport())
            async with httpx.AsyncClient(transport=transport) as http:
                await http.get(server.origin)

        with session_scope("s1"):
            asyncio.run(main())
        (arrived,) = server.arrived
        assert (arrived.get("User-Agent") or "").startswith("cagent-session/")
        assert arrived.get("Accept-Encoding") == "identity"

    def test_httpx_sends_while_aiohttp_is_imported(self, server: Server, gateway, monkeypatch):
        instrument(gateway)
        monkeypatch.setitem(sys.modules, "aiohttp", ModuleType("aiohttp"))  # nothing in it yet

        async def main() -> None:
            async with httpx.AsyncClient() as http:
                await http.get(f"{server.origin}/p/x")

        with session_scope("s1"):
            asyncio.run(main())
        assert server.arrived[0].session_id == "s1"

    def test_after_uninstrument_it_is_as_without(self, server: Server, gateway: Gateway):
        instrument(gateway)
        uninstrument()
        with session_scope("s1"):
            self.get(f"{server.origin}/p/x")
        assert server.arrived[0].identifiers == {}
