"""What only httpx and httpx2 have: two kinds of client, wrapped transports, async streams."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import pickle
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import httpx2
import pytest
from support.wire import Proxy, Server, redirect, response

from cagent_session import Gateway, current_session_id, instrument, session_scope
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2
from cagent_session.integrations.httpx import AsyncGatewayTransport, GatewayTransport

FORWARD = "https://api.openai.com/v1"
MARKED = {"X-Cagent-Forward": FORWARD}


@pytest.fixture(autouse=True, params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All of this holds for both libraries: what it says of httpx, it says of httpx2."""
    if request.param == "httpx2":
        here = sys.modules[__name__]
        monkeypatch.setattr(here, "httpx", httpx2)
        monkeypatch.setattr(here, "GatewayTransport", for_httpx2.GatewayTransport)
        monkeypatch.setattr(here, "AsyncGatewayTransport", for_httpx2.AsyncGatewayTransport)
    return request.param


GATEWAY = Gateway("https://gateway.example/p?tenant=a", forward=FORWARD)


def echo(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=dict(request.headers) | {"url": str(request.url)})


class TestRequests:
    def test_the_callers_request_is_never_changed(self):
        with httpx.Client(transport=GatewayTransport(GATEWAY, httpx.MockTransport(echo))) as http:
            request = http.build_request("POST", GATEWAY.endpoint("x"), json={"a": 1})
            before = request.headers.raw.copy(), request.url, request.stream
            for session_id in ("s1", "s2"):
                with session_scope(session_id):
                    answer = http.send(request)
                assert answer.json()["x-cagent-session-id"] == session_id
                assert answer.json()["url"] == "https://gateway.example/p/x?tenant=a"
                assert answer.request is request  # the client's own doing
            assert (request.headers.raw, request.url, request.stream) == before

    def test_a_class_of_request_with_slots(self):
        class Mine(httpx.Request):
            __slots__ = ("tenant",)

        def say(request):
            return httpx.Response(200, text=request.tenant + request.headers["x-cagent-session-id"])

        mine = Mine("GET", GATEWAY.endpoint("x"))
        mine.tenant = "a"
        transport = GatewayTransport(GATEWAY, httpx.MockTransport(say))
        with httpx.Client(transport=transport) as http, session_scope("s1"):
            assert http.send(mine).text == "as1"

    @pytest.mark.parametrize("host", ["[FD00::A]", "GATEWAY.example"])
    def test_a_host_in_capitals(self, host: str):
        gateway = Gateway(f"http://{host}", forward=FORWARD)
        transport = GatewayTransport(gateway, httpx.MockTransport(echo))
        with httpx.Client(transport=transport) as http, session_scope("s1"):
            assert http.get(gateway.endpoint("x")).json()["x-cagent-session-id"] == "s1"

    def test_of_two_gateways_on_one_origin_the_longer_path_is_outermost(self):
        origin = "https://gateway.example"
        transport: httpx.BaseTransport = httpx.MockTransport(echo)
        for path, key in [("", "root"), ("/openai", "openai")]:
            gateway = Gateway(origin + path, forward=FORWARD, headers={"X-Key": key})
            transport = GatewayTransport(gateway, transport)
        with httpx.Client(transport=transport) as http, session_scope("s1"):
            for path, key in [("openai/x", "openai"), ("x", "root")]:
                assert http.get(f"{origin}/{path}").json()["x-key"] == key

    def test_an_unbound_request_is_passed_on_itself(self):
        seen = []

        def keep(request):
            seen.append(request)
            return httpx.Response(200)

        with httpx.Client(transport=GatewayTransport(GATEWAY, httpx.MockTransport(keep))) as http:
            request = http.build_request("GET", "https://elsewhere.example/")
            answer = http.send(request)
        assert seen == [request]
        assert seen[0] is request
        assert answer.request is request

    def test_headers_that_come_twice(self, server: Server):
        headers = [
            ("X-Cagent-Forward", ""),
            ("X-Cagent-Forward", FORWARD),
            ("X-A", "1"),
            ("X-A", "2"),
        ]
        with httpx.Client(transport=GatewayTransport()) as http, session_scope("s1"):
            http.get(server.origin, headers=headers)
        (arrived,) = server.arrived
        assert arrived.session_id == "s1"
        assert arrived.all("X-A") == ["1", "2"]

    def test_without_an_agent_it_stays_without(self, server: Server):
        with httpx.Client(transport=GatewayTransport()) as http:
            request = http.build_request("GET", server.origin, headers=MARKED)
            del request.headers["User-Agent"]
            http.send(request)
        assert server.arrived[0].get("User-Agent") is None

    def test_a_canned_response_is_the_librarys_own(self):
        """One object that is given out again and again keeps nothing of the first request."""
        canned = httpx.Response(200, json={})
        inner = httpx.MockTransport(lambda request: canned)
        with httpx.Client(transport=GatewayTransport(GATEWAY, inner)) as http:
            for session_id in ("s1", "s2"):
                with session_scope(session_id):
                    request = http.build_request("GET", GATEWAY.endpoint("x"))
                    answer = http.send(request)
                assert answer is canned
                assert type(answer) is httpx.Response
                assert answer.request is request
            answer.request = other = httpx.Request("GET", "https://other.example")
            assert answer.request is other
        assert b"cagent_session" not in pickle.dumps(answer)

    def test_a_transport_below_can_pickle_the_request_in_flight(self):
        """A cache on disk does."""
        kept = []

        def answer(request: httpx.Request) -> httpx.Response:
            kept.append(pickle.loads(pickle.dumps(request)))
            return httpx.Response(200)

        transport = GatewayTransport(GATEWAY, httpx.MockTransport(answer))
        with httpx.Client(transport=transport) as http, session_scope("s1"):
            http.get(GATEWAY.endpoint("x"))
        (twin,) = kept
        assert twin.headers["X-Cagent-Session-Id"] == "s1"


class TestStreams:
    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_body_that_a_transport_below_has_read_can_be_sent_again(self, is_async: bool):
        """``MockTransport`` does, and transports that log."""
        bodies = []

        def answer(request: httpx.Request) -> httpx.Response:
            bodies.append(request.content)
            headers = {"Location": GATEWAY.endpoint("next")} if len(bodies) == 1 else {}
            return httpx.Response(308 if headers else 200, headers=headers)

        def pieces():
            yield b"one"
            yield b"two"

        async def async_pieces():
            for piece in pieces():
                yield piece

        async def main() -> None:
            transport = AsyncGatewayTransport(GATEWAY, httpx.MockTransport(answer))
            async with httpx.AsyncClient(transport=transport, follow_redirects=True) as http:
                await http.post(GATEWAY.endpoint("first"), content=async_pieces())

        with session_scope("s1"):
            if is_async:
                asyncio.run(main())
            else:
                transport = GatewayTransport(GATEWAY, httpx.MockTransport(answer))
                with httpx.Client(transport=transport, follow_redirects=True) as http:
                    http.post(GATEWAY.endpoint("first"), content=pieces())
        assert bodies == [b"onetwo", b"onetwo"]

    def test_bodies_stay_streams(self, server: Server):
        pulled = []

        def pieces():
            for piece in (b"one", b"two"):
                pulled.append(piece)
                yield piece

        gateway = Gateway(server.origin, forward=FORWARD)
        with httpx.Client(transport=GatewayTransport(gateway)) as http, session_scope("s1"):
            request = http.build_request("POST", server.origin, content=pieces())
            assert pulled == []
            http.send(request)
            with http.stream("GET", server.origin) as answer:
                assert b"".join(answer.iter_bytes()) == b"{}"
        assert server.arrived[0].body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    def test_async_bodies_stay_streams(self, server: Server):
        async def pieces():
            yield b"one"
            yield b"two"

        async def main():
            gateway = Gateway(server.origin, forward=FORWARD)
            transport = AsyncGatewayTransport(gateway)
            async with httpx.AsyncClient(transport=transport) as http:
                with session_scope("s1"):
                    await http.post(server.origin, content=pieces())
                    async with http.stream("GET", server.origin) as answer:
                        return b"".join([chunk async for chunk in answer.aiter_bytes()])

        assert asyncio.run(main()) == b"{}"
        assert server.arrived[0].body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]


class TestAuth:
    def test_digest_is_stamped_again_and_then_leaves_the_identifiers_behind(self):
        with Server() as stranger:

            def respond(request):
                if request.get("Authorization") is None:
                    challenge = 'Digest realm="r", nonce="n", qop="auth"'
                    return response(401, b"", {"WWW-Authenticate": challenge})
                return redirect(307, stranger.origin)

            with Server(respond) as server:
                transport = GatewayTransport()
                client = httpx.Client(transport=transport, follow_redirects=True)
                with client as http, session_scope("s1"):
                    http.get(server.origin, headers=MARKED, auth=httpx.DigestAuth("u", "p"))
                assert [request.session_id for request in server.arrived] == ["s1", "s1"]
            assert stranger.arrived[0].identifiers == {}


class TestRedirects:
    def test_a_hop_that_the_gateway_does_not_own(self):
        """Bound at some hop is enough: what the caller set stays with the origin."""

        def respond(request):
            return redirect(307, "/else" if request.path == "/p/1" else stranger.origin)

        with Server() as stranger, Server(respond) as server:
            gateway = Gateway(
                f"{server.origin}/p", session_header="X-Session-ID", parent_header="X-Parent"
            )
            transport = GatewayTransport(gateway)
            mine = {"X-Session-ID": "mine", "X-Parent": "mine", "X-Cagent-Model": "m"}
            with httpx.Client(transport=transport, follow_redirects=True) as http:
                http.get(f"{server.origin}/p/1", headers=mine | {"X-A": "b"})
            for request in server.arrived:
                assert {name: request.get(name) for name in mine} == mine
            (arrived,) = stranger.arrived
        assert {name: arrived.get(name) for name in mine} == dict.fromkeys(mine)
        assert arrived.get("X-A") == "b"

    def test_within_the_origin_leave_the_callers_request_alone(self):
        with Server(lambda r: redirect(307, "/2") if r.path == "/1" else response()) as server:
            with httpx.Client(transport=GatewayTransport(), follow_redirects=True) as http:
                request = http.build_request("GET", f"{server.origin}/1", headers=MARKED)
                before = request.headers.raw
                with session_scope("s1"):
                    http.send(request)
            assert request.headers.raw == before
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    @pytest.mark.parametrize(
        "location",
        [
            *(
                "http:////{stranger}/x",
                "////{stranger}/x",
                "///{stranger}/x",
                "http:///{stranger}/",
            ),
            *("http:/{stranger}/x", "\\\\{stranger}/x", "/\\{stranger}/x", "http:{stranger}/x"),
            *(
                "http://{gateway}@{stranger}/",
                "http://{stranger}#@{gateway}/",
                "http://{stranger}:",
            ),
            *("http://{stranger}\\@{gateway}/", "http://localhost:{port}/", "http://127.1:{port}/"),
        ],
    )
    def test_every_spelling_of_a_location(self, location: str):
        with Server(host="0.0.0.0") as stranger, Server() as server:
            target = location.format(
                stranger=f"127.0.0.1:{stranger.port}",
                gateway=f"127.0.0.1:{server.port}",
                port=stranger.port,
            )
            server.respond = lambda r: redirect(307, target) if r.path == "/1" else response()
            client = httpx.Client(transport=GatewayTransport(), follow_redirects=True)
            refused = contextlib.suppress(httpx.HTTPError, httpx.InvalidURL)
            with client as http, session_scope("s1"), refused:
                http.post(f"{server.origin}/1", headers=MARKED, timeout=5)
            assert server.arrived[0].session_id == "s1"
            assert all(request.identifiers == {} for request in stranger.arrived)

    @pytest.mark.parametrize("location", ["http://xn--zz.example/", "http://h:99999/", "http://[/"])
    def test_a_location_that_the_client_refuses_costs_no_connection(self, location: str):
        """The client closes such an answer, but only one that it gets."""
        own = httpx.HTTPTransport(limits=httpx.Limits(max_connections=1))
        with Server(lambda r: redirect(307, location) if r.path == "/1" else response()) as server:
            transport = GatewayTransport(Gateway(server.origin, forward=FORWARD), own)
            with httpx.Client(transport=transport, timeout=5, follow_redirects=True) as http:
                with pytest.raises((httpx.HTTPError, httpx.InvalidURL, ValueError)) as refused:
                    http.get(f"{server.origin}/1")
                assert not isinstance(refused.value, httpx.TimeoutException)
                assert http.get(f"{server.origin}/2").status_code == 200

    @pytest.mark.parametrize(
        "location",
        ["http:/x", "http:///x", "http:?x", "HTTP:/x", "http:////gateway.example:8080/x"],
    )
    def test_a_scheme_without_a_host_leads_to_another_port(self, location: str):
        """The client takes the host from the request, and the port that is the scheme's own."""
        hops = []

        def respond(request):
            hops.append((request.url.port, "X-Cagent-Session-Id" in request.headers))
            answers = httpx.Response(307, headers={"Location": location}), httpx.Response(200)
            return answers[len(hops) - 1]

        transport = GatewayTransport(transport=httpx.MockTransport(respond))
        with httpx.Client(transport=transport, follow_redirects=True) as http, session_scope("s1"):
            http.get("http://gateway.example:8080/1", headers=MARKED)
        assert hops == [(8080, True), (None, False)]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_body_that_a_transport_below_has_read_is_there_after_an_error(self, is_async: bool):
        bodies = []

        def fail(request: httpx.Request) -> httpx.Response:
            bodies.append(request.content)
            if len(bodies) == 1:
                raise httpx.ConnectError("down")
            return httpx.Response(200)

        async def pieces():
            yield b"body"

        async def main() -> None:
            transport = AsyncGatewayTransport(GATEWAY, httpx.MockTransport(fail))
            async with httpx.AsyncClient(transport=transport) as http:
                request = http.build_request("POST", GATEWAY.url, content=pieces())
                with pytest.raises(httpx.ConnectError):
                    await http.send(request)
                await http.send(request)

        with session_scope("s1"):
            if is_async:
                asyncio.run(main())
            else:
                transport = GatewayTransport(GATEWAY, httpx.MockTransport(fail))
                with httpx.Client(transport=transport) as http:
                    request = http.build_request("POST", GATEWAY.url, content=iter([b"body"]))
                    with pytest.raises(httpx.ConnectError):
                        http.send(request)
                    http.send(request)
        assert bodies == [b"body", b"body"]

    def test_a_body_that_a_transport_below_has_replaced_is_not_the_callers(self):
        """The transport compresses each hop: twice would be once too often."""
        bodies = []

        class Compressing(httpx.BaseTransport):
            def handle_request(self, request):
                request.stream = httpx.ByteStream(gzip.compress(request.read()))
                bodies.append(gzip.decompress(b"".join(request.stream)))
                location = {"Location": GATEWAY.endpoint("next")} if len(bodies) == 1 else {}
                return httpx.Response(308 if location else 200, headers=location)

        client = httpx.Client(
            transport=GatewayTransport(GATEWAY, Compressing()), follow_redirects=True
        )
        for content in (b"body", iter([b"bo", b"dy"])):
            bodies.clear()
            with session_scope("s1"):
                client.post(GATEWAY.endpoint("first"), content=content)
            assert bodies == [b"body", b"body"]

    def test_that_a_hook_of_the_clients_marks_anew_for_another_gateway(self):
        def mark(request):
            if str(request.url).startswith(second.origin):
                request.headers["X-Cagent-Forward"] = "https://api.anthropic.com"

        with Server() as second, Server(lambda r: redirect(302, second.origin)) as first:
            hooks = {"request": [mark]}
            client = httpx.Client(
                transport=GatewayTransport(), event_hooks=hooks, follow_redirects=True
            )
            with client as http, session_scope("s1"):
                http.get(first.origin, headers=MARKED)
            (arrived,) = second.arrived
            assert (arrived.forward, arrived.session_id) == ("https://api.anthropic.com", "s1")

    @pytest.mark.parametrize("by", ["transport", "instrument"])
    @pytest.mark.parametrize("is_async", [False, True])
    def test_to_where_a_hook_of_the_clients_has_sent_it(self, by: str, is_async: bool):
        """Hooks come before the client reads where a redirect leads."""

        def move(answer):
            if "Location" in answer.headers:
                answer.headers["Location"] = stranger.origin

        async def move_async(answer):
            move(answer)

        async def main() -> None:
            transport = AsyncGatewayTransport() if by == "transport" else None
            hooks = {"response": [move_async]}
            client = httpx.AsyncClient(
                transport=transport, event_hooks=hooks, follow_redirects=True, trust_env=False
            )
            async with client as http:
                await http.get(server.origin, headers=MARKED)

        wired = instrument() if by == "instrument" else contextlib.nullcontext()
        with wired, Server() as stranger, Server(lambda r: redirect(302, "/next")) as server:
            with session_scope("s1"):
                if is_async:
                    asyncio.run(main())
                else:
                    transport = GatewayTransport() if by == "transport" else None
                    hooks = {"response": [move]}
                    client = httpx.Client(
                        transport=transport, event_hooks=hooks, follow_redirects=True
                    )
                    with client as http:
                        http.get(server.origin, headers=MARKED)
            assert server.arrived[0].session_id == "s1"
            assert stranger.arrived[0].identifiers == {}

    def test_to_another_gateway_beside_instrument(self):
        """Which judges each hop once more, below the transport."""
        with Server() as second, Server(lambda r: redirect(302, f"{second.origin}/next")) as first:
            gateways = [Gateway(each.origin, forward=FORWARD) for each in (first, second)]
            mounts = {each.url: GatewayTransport(each) for each in gateways}
            client = httpx.Client(mounts=mounts, follow_redirects=True)
            with instrument(), client as http, session_scope("s1"):
                http.get(first.origin)
            for server in (first, second):
                assert (server.arrived[0].forward, server.arrived[0].session_id) == (FORWARD, "s1")

    def test_followed_by_hand_and_by_another_transport(self):
        with Server() as stranger, Server(lambda r: redirect(302, stranger.origin)) as server:
            mounts = {server.origin: GatewayTransport()}
            with httpx.Client(mounts=mounts, follow_redirects=True) as http, session_scope("s1"):
                http.get(server.origin, headers=MARKED)
                answer = http.get(server.origin, headers=MARKED, follow_redirects=False)
                http.send(answer.next_request)
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]
            assert [request.identifiers for request in stranger.arrived] == [{}, {}]

    @pytest.mark.parametrize(
        "location", ["http://[", "http://x:port/", "//", "http://a b/", "foo:bar"]
    )
    def test_a_broken_target_is_handled_as_by_the_plain_transport(self, location: str):
        outcomes = []
        with Server(lambda request: redirect(302, location)) as server:
            for transport in (httpx.HTTPTransport(), GatewayTransport()):
                options = {"transport": transport, "follow_redirects": True, "max_redirects": 2}
                with httpx.Client(**options) as http, session_scope("s1"):
                    try:
                        http.get(server.origin, headers=MARKED, timeout=5)
                        outcomes.append(None)
                    except (httpx.HTTPError, httpx.InvalidURL) as error:
                        outcomes.append(type(error))
        assert outcomes[0] is outcomes[1]


class TestBothWorlds:
    """One object for blocking and for asynchronous clients."""

    def test_serves_a_client_of_each_kind(self, server: Server):
        transport = GatewayTransport(Gateway(server.origin, forward=FORWARD))
        assert AsyncGatewayTransport is GatewayTransport

        async def main():
            async with httpx.AsyncClient(transport=transport) as http:
                await http.get(server.origin)

        with session_scope("s1"), httpx.Client(transport=transport) as http:
            http.get(server.origin)
            asyncio.run(main())
            http.get(server.origin)
        assert [request.session_id for request in server.arrived] == ["s1"] * 3

    def test_a_transport_of_the_wrong_kind_is_named(self):
        name = httpx.__name__
        blocking = GatewayTransport(None, httpx.HTTPTransport())
        with pytest.raises(
            TypeError,
            match=rf"^GatewayTransport was given a HTTPTransport, which {name}\.AsyncClient cannot "
            rf"use: give it an {name}\.AsyncHTTPTransport, or none$",
        ):
            asyncio.run(_get(httpx.AsyncClient(transport=blocking)))
        asynchronous = GatewayTransport(None, httpx.AsyncHTTPTransport())
        with pytest.raises(TypeError, match=rf"give it an {name}\.HTTPTransport, or none$"):
            httpx.Client(transport=asynchronous).get("http://127.0.0.1:9")
        for nonsense in (httpx.Client, "https://gateway.example", object()):
            with pytest.raises(TypeError, match=rf"^transport must be one of {name}'s, not "):
                GatewayTransport(None, nonsense)

    def test_makes_of_each_kind_only_what_is_needed(self, monkeypatch):
        made = []
        for name in ("HTTPTransport", "AsyncHTTPTransport"):
            original = getattr(httpx, name)
            monkeypatch.setattr(
                httpx, name, lambda name=name, original=original: made.append(name) or original()
            )
        transport = GatewayTransport()
        transport.close()
        asyncio.run(transport.aclose())
        assert made == []
        with transport, transport:
            pass
        assert made == ["HTTPTransport"]

    def test_from_many_threads_at_once_it_makes_one(self, server: Server, monkeypatch):
        made = []
        original = httpx.HTTPTransport
        monkeypatch.setattr(httpx, "HTTPTransport", lambda: made.append(1) or original())
        with httpx.Client(transport=GatewayTransport()) as http, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: http.get(server.origin), range(16)))
        assert made == [1]


async def _get(http):
    async with http:
        await http.get("http://127.0.0.1:9")


def test_without_their_private_list_of_headers(server: Server, monkeypatch):
    """What is read and made in private goes by what is public, too, if the library changes."""
    integration = for_httpx2 if httpx is httpx2 else for_httpx
    library = integration.GatewayTransport()._gate
    assert library._has_known_layout
    monkeypatch.setattr(library, "_has_known_layout", False)
    gateway = Gateway(server.origin, forward=FORWARD, headers={"X-Team": "a"})
    with Server(lambda r: redirect(307, server.origin)) as first:
        bare = GatewayTransport()
        with httpx.Client(transport=GatewayTransport(gateway)) as http, session_scope("s1"):
            http.get(server.origin, headers=[("X-A", "1"), ("x-a", "2"), ("X-Cagent-Lang", "go")])
        with httpx.Client(transport=bare, follow_redirects=True) as http, session_scope("s1"):
            http.get(first.origin, headers=MARKED)
        assert first.arrived[0].session_id == "s1"
    owned, redirected = server.arrived
    assert (owned.session_id, owned.get("X-Team")) == ("s1", "a")
    assert owned.all("X-A") == ["1", "2"]
    assert owned.identifiers["x-cagent-lang"] == "go"
    assert redirected.identifiers == {}


class TestWrapping:
    def test_an_asgi_app(self):
        async def app(scope, receive, send):
            names = dict(scope["headers"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": names[b"x-cagent-session-id"]})

        async def main():
            transport = AsyncGatewayTransport(GATEWAY, httpx.ASGITransport(app))
            async with httpx.AsyncClient(transport=transport) as http:
                with session_scope("s1"):
                    return (await http.get(GATEWAY.endpoint("x"))).text

        assert asyncio.run(main()) == "s1"

    def test_closing_and_entering_pass_through(self):
        calls = []

        class Inner(httpx.BaseTransport):
            def handle_request(self, request):
                return httpx.Response(200)

            def __enter__(self):
                calls.append("enter")
                return self

            def __exit__(self, *exc_info):
                calls.append("exit")

            def close(self):
                calls.append("close")

        class AsyncInner(httpx.AsyncBaseTransport):
            async def __aenter__(self):
                calls.append("aenter")
                return self

            async def __aexit__(self, *exc_info):
                calls.append("aexit")

            async def aclose(self):
                calls.append("aclose")

        with GatewayTransport(None, Inner()) as transport:
            assert isinstance(transport, GatewayTransport)
        transport.close()

        async def main():
            async with AsyncGatewayTransport(None, AsyncInner()) as transport:
                assert isinstance(transport, AsyncGatewayTransport)
            await transport.aclose()

        asyncio.run(main())
        assert calls == ["enter", "exit", "close", "aenter", "aexit", "aclose"]

    def test_an_async_unbound_request(self):
        async def main():
            transport = AsyncGatewayTransport(GATEWAY, httpx.MockTransport(echo))
            async with httpx.AsyncClient(transport=transport) as http:
                with session_scope("s1"):
                    return (await http.get("https://elsewhere.example/")).json()

        assert not [name for name in asyncio.run(main()) if name.startswith("x-cagent-")]

    def test_the_gateway_is_checked(self):
        for transport in (GatewayTransport, AsyncGatewayTransport):
            with pytest.raises(TypeError, match="gateway must be a Gateway or None, not str"):
                transport("https://gateway.example")


def test_concurrent_tasks_on_one_client_keep_apart(server: Server):
    async def main():
        transport = AsyncGatewayTransport(Gateway(server.origin, forward=FORWARD))
        async with httpx.AsyncClient(transport=transport) as http:

            async def work(number):
                with session_scope(f"s{number}"):
                    for _ in range(5):
                        await http.get(f"{server.origin}/s{number}")
                        assert current_session_id() == f"s{number}"

            await asyncio.gather(*(work(number) for number in range(20)))

    asyncio.run(main())
    assert len(server.arrived) == 100
    assert all(request.path == f"/{request.session_id}" for request in server.arrived)


class TestProxies:
    def test_no_identifier_is_in_the_connect(self, tls):
        context = ssl.create_default_context(cafile=tls.ca)
        with Server(tls=tls.context) as server, Proxy() as proxy:
            gateway = Gateway(server.at("localhost"), forward=FORWARD)
            inner = httpx.HTTPTransport(proxy=proxy.origin, verify=context)
            transport = GatewayTransport(gateway, inner)
            with httpx.Client(transport=transport) as http, session_scope("s1"):
                http.get(gateway.endpoint("x"))
            (connect,) = proxy.arrived
            assert connect.method == "CONNECT"
            assert connect.identifiers == {}
            assert server.arrived[0].session_id == "s1"

    def test_through_a_proxy_that_forwards(self, server: Server):
        gateway = Gateway(server.origin, forward=FORWARD)
        with Proxy() as proxy:
            mounts = {"http://": GatewayTransport(gateway, httpx.HTTPTransport(proxy=proxy.origin))}
            with httpx.Client(mounts=mounts) as http, session_scope("s1"):
                http.get(gateway.endpoint("x"))
        assert server.arrived[0].session_id == "s1"


def test_a_client_of_the_other_library_is_refused(library: str):
    other = {"httpx": httpx2, "httpx2": sys.modules["httpx"]}[library]
    with (
        other.Client(transport=GatewayTransport()) as http,
        pytest.raises(
            TypeError, match=rf"is for clients of {library}, not of {other.__name__}: import"
        ),
    ):
        http.get("https://gateway.example")


def test_a_transport_that_is_empty_is_still_the_given_one(server: Server):
    class Recorder(httpx.HTTPTransport):
        def __len__(self) -> int:
            return 0

    transport = GatewayTransport(Gateway(server.origin, forward=FORWARD), Recorder())
    with httpx.Client(transport=transport) as http, session_scope("s1"):
        http.get(server.origin)
    assert server.arrived[0].session_id == "s1"


@pytest.mark.parametrize("knows_the_gateway", [True, False])
def test_a_transport_below_may_send_again_after_a_redirect(server: Server, knows_the_gateway: bool):
    class Again(httpx.HTTPTransport):
        def handle_request(self, request):
            first = super().handle_request(request)
            if first.status_code == 200:
                return first
            first.close()
            return super().handle_request(request)

    with Server() as stranger:
        gateway = Gateway(server.origin, forward=FORWARD, headers={"X-Api-Key": "KEY"})
        targets = {"/1": "/2", "/2": stranger.at("localhost")}
        server.respond = lambda request: redirect(302, targets[request.path])
        transport = GatewayTransport(gateway, Again())
        client = httpx.Client(transport=transport, follow_redirects=True)
        known = [gateway] if knows_the_gateway else []
        with client as http, instrument(*known), session_scope("s1"):
            http.get(f"{server.origin}/1")
        (arrived,) = stranger.arrived
    assert [(each.path, each.session_id, each.get("X-Api-Key")) for each in server.arrived] == [
        (path, "s1", "KEY") for path in ("/1", "/1", "/2", "/2")
    ]
    assert arrived.identifiers == {}


@pytest.mark.parametrize("name", ["Client", "Request", "Headers"])
def test_a_mock_at_the_first_use_is_forgotten_with_the_test(library: str, name: str):
    code = f"""
import unittest.mock, {library}
from cagent_session import Gateway
from cagent_session.integrations.{library} import GatewayTransport
gateway = Gateway("http://gateway.example", forward="{FORWARD}", headers={{"Accept": "a/b"}})
echo = {library}.MockTransport(lambda request: {library}.Response(200, headers=request.headers))
with unittest.mock.patch("{library}.{name}"):
    GatewayTransport(gateway, echo)
with {library}.Client(transport=GatewayTransport(gateway, echo)) as http:
    assert http.get("http://gateway.example").headers["Accept"] == "a/b"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
