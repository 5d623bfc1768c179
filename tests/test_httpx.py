"""What only httpx and httpx2 have: two kinds of client, wrapped transports, async streams."""

from __future__ import annotations

import asyncio
import pickle
import ssl
import sys

import httpx
import httpx2
import pytest
from support.wire import Proxy, Server, redirect, response

from cagent_session import Gateway, current_session_id, session_scope
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


class TestStreams:
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

    def test_a_response_class_of_its_own_is_kept(self):
        class Own(httpx.Response):
            pass

        inner = httpx.MockTransport(lambda request: Own(200))
        with httpx.Client(transport=GatewayTransport(None, inner)) as http:
            assert type(http.get("https://gateway.example", headers=MARKED)) is Own

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
        pytest.raises(TypeError, match=rf"is for clients of {library}, not of {other.__name__}$"),
    ):
        http.get("https://gateway.example")
