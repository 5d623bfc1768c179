"""A call that is made while another one is being sent is a request of its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import types
import weakref
from collections.abc import Callable, Iterator

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from support.wire import Server, redirect, response

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayMixin,
    GatewayPoolManager,
    gateway_headers,
    instrument,
    session_scope,
    uninstrument,
)
from cagent_session.integrations import aiohttp as for_aiohttp
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

HTTPX = [(httpx, for_httpx), (httpx2, for_httpx2)]
IDS = ["httpx", "httpx2"]


@pytest.fixture(autouse=True)
def _switched_off():
    yield
    uninstrument()


@pytest.fixture
def gateway(server: Server) -> Gateway:
    # Without a forward, so that nothing but the session tells a stamped request.
    return Gateway(server.origin, session_header="X-Session-ID")


@pytest.fixture(params=["transport", "instrument"])
def by(request: pytest.FixtureRequest, gateway: Gateway) -> str:
    if request.param == "instrument":
        instrument(gateway)
    return request.param


def sessions(server: Server) -> list[str | None]:
    return [request.get("X-Session-ID") for request in server.arrived]


class TestInABody:
    """A generator that produces a body calls the model, to the same URL with the same method."""

    def test_of_requests(self, by: str, server: Server, gateway: Gateway):
        with requests.Session() as http:
            if by == "transport":
                gateway.mount(http)

            def body():
                with session_scope("inner"):
                    http.post(server.origin, data=b"x", timeout=10)
                yield b"y"

            with session_scope("outer"):
                http.post(server.origin, data=body(), timeout=10)
        assert sorted(sessions(server)) == ["inner", "outer"]

    def test_of_urllib3(self, by: str, server: Server, gateway: Gateway):
        manager = GatewayPoolManager(gateway) if by == "transport" else urllib3.PoolManager()
        with manager as http:

            def body():
                with session_scope("inner"):
                    http.request("POST", server.origin, body=b"x")
                yield b"y"

            with session_scope("outer"):
                http.request("POST", server.origin, body=body())
        assert sorted(sessions(server)) == ["inner", "outer"]

    @pytest.mark.parametrize(("library", "integration"), HTTPX, ids=IDS)
    def test_of_httpx(self, by: str, server: Server, gateway: Gateway, library, integration):
        transport = integration.GatewayTransport(gateway) if by == "transport" else None
        with library.Client(transport=transport, trust_env=False) as http:

            def body():
                with session_scope("inner"):
                    http.post(server.origin, content=b"x")
                yield b"y"

            with session_scope("outer"):
                http.post(server.origin, content=body())
        assert sorted(sessions(server)) == ["inner", "outer"]

    @pytest.mark.parametrize(("library", "integration"), HTTPX, ids=IDS)
    def test_of_async_httpx(self, by: str, server: Server, gateway: Gateway, library, integration):
        async def main():
            transport = integration.GatewayTransport(gateway) if by == "transport" else None
            async with library.AsyncClient(transport=transport, trust_env=False) as http:

                async def body():
                    with session_scope("inner"):
                        await http.post(server.origin, content=b"x")
                    yield b"y"

                with session_scope("outer"):
                    await http.post(server.origin, content=body())

        asyncio.run(main())
        assert sorted(sessions(server)) == ["inner", "outer"]

    def test_of_aiohttp(self, by: str, server: Server, gateway: Gateway):
        middlewares = [for_aiohttp.GatewayMiddleware(gateway)] if by == "transport" else []

        async def main():
            async with aiohttp.ClientSession(middlewares=middlewares) as http:

                async def body():
                    with session_scope("inner"):
                        await http.post(server.origin, data=b"x")
                    yield b"y"

                with session_scope("outer"):
                    await http.post(server.origin, data=body())

        asyncio.run(main())
        assert sorted(sessions(server)) == ["inner", "outer"]


@pytest.mark.parametrize(("library", "integration"), HTTPX, ids=IDS)
class TestCoroutinesOfHttpx:
    def test_two_tasks_in_one_context(self, by, server, gateway, library, integration):
        async def main():
            transport = integration.GatewayTransport(gateway) if by == "transport" else None
            async with library.AsyncClient(transport=transport, trust_env=False) as http:
                context = contextvars.copy_context()
                calls = [http.post(server.origin) for _ in range(2)]
                if hasattr(asyncio, "TaskGroup"):  # from 3.11 on, tasks take a context
                    loop = asyncio.get_running_loop()
                    calls = [loop.create_task(call, context=context) for call in calls]
                await asyncio.gather(*calls)

        with session_scope("s1"):
            asyncio.run(main())
        assert sessions(server) == ["s1", "s1"]

    def test_a_task_that_is_started_from_a_hook(self, by, server, gateway, library, integration):
        async def main():
            transport = integration.GatewayTransport(gateway) if by == "transport" else None
            tasks = []

            async def trace(name, info):
                if name == "http11.send_request_headers.started" and not tasks:
                    tasks.append(asyncio.create_task(http.post(server.origin)))

            async with library.AsyncClient(transport=transport, trust_env=False) as http:
                await http.post(server.origin, extensions={"trace": trace})
                await asyncio.gather(*tasks)

        with session_scope("s1"):
            asyncio.run(main())
        assert sessions(server) == ["s1", "s1"]

    @pytest.mark.parametrize("end", ["continued", "closed", "collected", "after uninstrument"])
    def test_that_goes_on_in_another_context_raises_nothing_of_its_own(
        self, by, gateway, library, integration, end
    ):
        @types.coroutine
        def pause():
            yield

        class Slow(library.AsyncBaseTransport):
            async def handle_async_request(self, request):
                await pause()
                return library.Response(200)

        if end == "after uninstrument":
            uninstrument()
        client = library.AsyncClient(transport=integration.GatewayTransport(gateway, Slow()))
        steps = client.get(gateway.url)
        contextvars.copy_context().run(steps.send, None)
        if end == "closed":
            contextvars.copy_context().run(steps.close)
        elif end == "collected":
            contextvars.copy_context().run(lambda: gc.collect())
        else:
            with pytest.raises(StopIteration) as done:
                contextvars.copy_context().run(steps.send, None)
            assert done.value.value.status_code == 200

    def test_that_was_abandoned_changes_no_later_request(
        self, by, server, gateway, library, integration
    ):
        class Never(library.AsyncBaseTransport):
            async def handle_async_request(self, request):
                await types.coroutine(lambda: (yield))()

        async def main():
            abandoned = library.AsyncClient(
                transport=integration.GatewayTransport(gateway, Never())
            )
            steps = abandoned.post(server.origin)
            steps.send(None)
            transport = integration.GatewayTransport(gateway) if by == "transport" else None
            async with library.AsyncClient(transport=transport, trust_env=False) as http:
                with session_scope("s2"):
                    await http.post(server.origin)
            steps.close()

        with session_scope("s1"):
            asyncio.run(main())
        assert sessions(server) == ["s2"]

    def test_a_context_copied_while_sending_keeps_no_request_alive(
        self, by, server, gateway, library, integration
    ):
        copied = []

        class Body:
            def __iter__(self):
                copied.append(contextvars.copy_context())
                yield b"x"

        transport = integration.GatewayTransport(gateway) if by == "transport" else None
        with library.Client(transport=transport, trust_env=False) as http, session_scope("s1"):
            body = Body()
            seen = weakref.ref(body)
            http.post(server.origin, content=body)
            del body
        gc.collect()
        assert copied
        assert seen() is None


class TestByAnAdapterOfRequests:
    def test_that_asks_the_gateway_itself_before_it_sends(self, server: Server, gateway: Gateway):
        class Asking(HTTPAdapter):
            def send(self, request, **options):
                with session_scope("adapter"):
                    requests.post(request.url, data=request.body, timeout=10)
                return super().send(request, **options)

        class Ours(GatewayMixin, Asking): ...

        instrument(gateway)
        with requests.Session() as http, session_scope("s1"):
            http.mount("http://", Ours(gateway))
            http.post(server.origin, data=b"x")
        assert sessions(server) == ["adapter", "s1"]

    def test_that_asks_by_another_method_with_the_headers_it_got(
        self, server: Server, gateway: Gateway
    ):
        class Asking(HTTPAdapter):
            def send(self, request, **options):
                if request.method == "POST":
                    with session_scope("adapter"):
                        http.get(request.url, headers=request.headers, timeout=10)
                return super().send(request, **options)

        with requests.Session() as http, session_scope("s1"):
            http.mount("http://", GatewayAdapter(gateway, adapter=Asking()))
            http.post(server.origin, timeout=10)
        assert sessions(server) == ["adapter", "s1"]

    def test_that_rebuilds_the_request_keeps_the_stamp(self, server: Server, gateway: Gateway):
        """Even if the code below runs in another session, and instrument() has another gateway."""

        class Rebuilding(HTTPAdapter):
            def send(self, request, **options):
                rebuilt = requests.Request(
                    request.method, request.url, dict(request.headers), data=request.body
                ).prepare()
                with session_scope("below"):
                    return super().send(rebuilt, **options)

        class Ours(GatewayMixin, Rebuilding): ...

        instrument(Gateway(server.origin, forward="https://other.example"))
        with requests.Session() as http, session_scope("s1"):
            http.mount("http://", Ours(gateway))
            http.post(server.origin, data=b"x")
        assert sessions(server) == ["s1"]
        assert server.arrived[0].identifiers == {}

    def test_whose_retry_is_stamped_as_the_first_attempt(self, server: Server, gateway: Gateway):
        answers = iter([response(503), response()])
        server.respond = lambda request: next(answers)
        instrument(gateway)
        retries = urllib3.Retry(2, status_forcelist=[503], allowed_methods=None)
        with requests.Session() as http, session_scope("s1"):
            http.mount("http://", GatewayAdapter(gateway, max_retries=retries))
            http.post(server.origin, data=b"x")
        assert sessions(server) == ["s1", "s1"]


class TestThatIsRedirectedToAStranger:
    """A call to the gateway that is made below the gate, by a client that follows redirects.

    The stranger gets none of the stamp of the request that is being sent, nor of the call's own.
    """

    @pytest.fixture
    def gateway(self, server: Server) -> Gateway:
        fixed = {"X-Api-Key": "KEY"}
        return Gateway(f"{server.origin}/g", forward="https://api.example", headers=fixed)

    @pytest.fixture
    def stranger(self, server: Server) -> Iterator[Server]:
        with Server() as stranger:
            there = redirect(307, stranger.at("localhost"))
            server.respond = lambda got: there if got.path == "/g/fallback" else response(503)
            yield stranger

    @pytest.fixture(params=["copy", "copy of headers", "headers", "dict of headers"])
    def again(self, request: pytest.FixtureRequest, server: Server) -> Callable[..., None]:
        def send(http: requests.Session, sent: requests.PreparedRequest) -> None:
            url, headers = f"{server.origin}/g/fallback", sent.headers
            if request.param == "copy":
                copied = sent.copy()
                copied.url = url
                http.send(copied, timeout=10)
            elif request.param == "copy of headers":
                http.get(url, headers=headers.copy(), timeout=10)
            else:
                given = dict(headers) if request.param == "dict of headers" else headers
                http.get(url, headers=given, timeout=10)

        return send

    @pytest.mark.parametrize("within", [None, "the gateway", "another"])
    def test_of_requests(self, server: Server, stranger: Server, gateway: Gateway, again, within):
        class Falling(HTTPAdapter):
            def send(self, request, **options):
                answer = super().send(request, **options)
                if request.url.endswith("/x"):
                    with session_scope("below"):
                        again(http, request)
                return answer

        if within is not None:
            other = Gateway(f"{server.origin}/other", forward="https://other.example")
            instrument(gateway if within == "the gateway" else other)
        with requests.Session() as http:
            http.mount("http://", Falling())
            gateway.mount(http)
            with session_scope("s1"):
                http.get(gateway.endpoint("x"), timeout=10)
        assert [request.session_id is None for request in server.arrived] == [False, False]
        (arrived,) = stranger.arrived
        assert arrived.identifiers == {}
        assert arrived.get("X-Api-Key") is None

    @pytest.mark.parametrize("path", ["x", "fallback"])
    @pytest.mark.parametrize(("library", "integration"), HTTPX, ids=IDS)
    def test_of_httpx(
        self, server: Server, stranger: Server, gateway: Gateway, library, integration, path: str
    ):
        class Falling(library.HTTPTransport):
            def handle_request(self, request):
                answer = super().handle_request(request)
                if answer.status_code == 503:
                    answer.close()
                    server.respond = lambda got: redirect(307, stranger.at("localhost"))
                    answer = http.get(gateway.endpoint(path), headers=request.headers)
                return answer

        # As gateway.mount does it for requests: no transport of ours for other hosts.
        mounts = {
            f"all://127.0.0.1:{server.port}": integration.GatewayTransport(gateway, Falling())
        }
        http = library.Client(mounts=mounts, follow_redirects=True, trust_env=False)
        with http, session_scope("s1"):
            http.get(gateway.endpoint("x"))
        (arrived,) = stranger.arrived
        assert arrived.identifiers == {}
        assert arrived.get("X-Api-Key") is None

    def test_and_sent_again_as_it_was(self, server: Server, stranger: Server, gateway: Gateway):
        """By code in between, which is not redirected."""

        class Twice(HTTPAdapter):
            def send(self, request, **options):
                super().send(request, **options)
                return super().send(request, **options)

        instrument(Gateway(f"{server.origin}/other", forward="https://other.example"))
        with requests.Session() as http, session_scope("s1"):
            http.mount("http://", Twice())
            gateway.mount(http)
            http.get(gateway.endpoint("fallback"), timeout=10, allow_redirects=False)
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    @pytest.mark.parametrize(("library", "integration"), HTTPX, ids=IDS)
    def test_and_sent_again_as_it_was_over_httpx(
        self, server: Server, stranger: Server, gateway: Gateway, library, integration
    ):
        class Twice(library.HTTPTransport):
            def handle_request(self, request):
                for again in (
                    request,
                    library.Request("GET", request.url, headers=request.headers),
                ):
                    super().handle_request(again).close()
                return super().handle_request(again)

        instrument(Gateway(f"{server.origin}/other", forward="https://other.example"))
        transport = integration.GatewayTransport(gateway, Twice())
        with library.Client(transport=transport) as http, session_scope("s1"):
            http.get(gateway.endpoint("fallback"))
        assert [request.session_id for request in server.arrived] == ["s1", "s1", "s1"]

    @pytest.mark.parametrize(
        ("path", "of"),
        [
            ("x", lambda request: request),
            ("x", lambda request: request.copy()),
            ("fallback", lambda request: request),
        ],
    )
    def test_and_sent_again_through_the_gate_of_another(
        self, server: Server, stranger: Server, gateway: Gateway, path: str, of
    ):
        """A hook of the caller's may send a copy, which makes no difference to the second try."""

        class Twice(GatewayAdapter):
            def send(self, request, **options):
                super().send(request, **options)
                return super().send(of(request), **options)

        other = Gateway(f"{server.origin}/other", forward="https://other.example")
        with requests.Session() as http, session_scope("s1"):
            http.mount("http://", GatewayAdapter(gateway, adapter=Twice(other)))
            hooks = {"response": lambda answer, **options: answer}
            http.get(gateway.endpoint(path), timeout=10, allow_redirects=False, hooks=hooks)
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]
        assert [request.get("X-Api-Key") for request in server.arrived] == ["KEY", "KEY"]

    def test_shows_what_was_sent(self, server: Server, stranger: Server, gateway: Gateway):
        instrument(gateway)
        with requests.Session() as http, session_scope("s1"):
            gateway.mount(http)
            answer = http.get(gateway.endpoint("fallback"), timeout=10)
        (hop,) = answer.history
        assert hop.request.headers["X-Cagent-Session-Id"] == "s1"
        assert hop.request.headers["X-Api-Key"] == "KEY"
        assert stranger.arrived[0].identifiers == {}


class TestWithAValueOfTheStamp:
    """A header under a name of the caller's own, whose value was read from headers that were sent.

    ``X-For-Session: <what the X-Session-ID of another request was>`` is no part of a stamp.
    """

    def test_by_an_adapter(self, server: Server, gateway: Gateway):
        class Reporting(HTTPAdapter):
            def send(self, request, **options):
                value = request.headers["X-Session-ID"]
                requests.get(request.url, headers={"X-For-Session": value}, timeout=10)
                return super().send(request, **options)

        instrument(gateway)
        with requests.Session() as http:
            http.mount("http://", Reporting())
            gateway.mount(http)
            with session_scope("s1"):
                http.get(server.origin, timeout=10)
        assert [request.get("X-For-Session") for request in server.arrived] == ["s1", None]
        assert sessions(server) == ["s1", "s1"]

    def test_by_a_pool(self, server: Server, gateway: Gateway):
        class ReportingPool(urllib3.HTTPConnectionPool):
            def urlopen(self, method, url, body=None, headers=None, *args, **options):
                value = headers["X-Session-ID"]
                with GatewayPoolManager(gateway) as other:
                    other.request("GET", server.origin, headers={"X-For-Session": value})
                return super().urlopen(method, url, body, headers, *args, **options)

        with GatewayPoolManager(gateway) as http, session_scope("s1"):
            http.pool_classes_by_scheme = {"http": ReportingPool}
            http.request("GET", server.origin)
        assert [request.get("X-For-Session") for request in server.arrived] == ["s1", None]
        assert sessions(server) == ["s1", "s1"]

    @pytest.mark.parametrize(("library", "integration"), HTTPX, ids=IDS)
    def test_by_a_transport_of_httpx(self, server: Server, gateway: Gateway, library, integration):
        class Reporting(library.HTTPTransport):
            def handle_request(self, request):
                value = request.headers.raw[-1][1]
                library.get(request.url, headers=[(b"X-For-Session", value)])
                return super().handle_request(request)

        instrument(gateway)
        transport = integration.GatewayTransport(gateway, Reporting())
        with library.Client(transport=transport) as http, session_scope("s1"):
            http.get(server.origin)
        assert [request.get("X-For-Session") for request in server.arrived] == ["s1", None]
        assert sessions(server) == ["s1", "s1"]

    def test_by_a_hook_of_aiohttp(self, server: Server, gateway: Gateway):
        async def main():
            trace = aiohttp.TraceConfig()

            @trace.on_request_headers_sent.append
            async def report(session, context, params):
                headers = {"X-For-Session": params.headers["X-Session-ID"]}
                async with aiohttp.ClientSession() as other:
                    await other.get(server.origin, headers=headers)

            ours = [for_aiohttp.GatewayMiddleware(gateway)]
            async with aiohttp.ClientSession(middlewares=ours, trace_configs=[trace]) as http:
                with session_scope("s1"):
                    await http.get(server.origin)

        instrument(gateway)
        asyncio.run(main())
        assert sorted(request.get("X-For-Session") or "" for request in server.arrived) == [
            "",
            "s1",
        ]
        assert sessions(server) == ["s1", "s1"]

    @pytest.mark.parametrize("source", ["X-Session-ID", "X-Key", "User-Agent"])
    def test_of_an_earlier_request_after_a_challenge(self, server: Server, source: str):
        gateway = Gateway(
            server.origin, session_header="X-Session-ID", headers={"X-Key": "a-fixed-value"}
        )
        challenge = {"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'}
        answers = iter([response(), response(401, headers=challenge), response()])
        server.respond = lambda request: next(answers)
        with requests.Session() as http, session_scope("s1"):
            gateway.mount(http)
            value = http.get(server.origin, timeout=10).request.headers[source]
            digest = requests.auth.HTTPDigestAuth("user", "password")
            http.get(server.origin, headers={"X-Continues": value}, auth=digest, timeout=10)
        assert [each.get("X-Continues") for each in server.arrived] == [None, value, value]

    def test_of_an_earlier_request_at_a_retry_of_urllib3(self, server: Server):
        gateway = Gateway(
            server.origin, session_header="X-Session-ID", headers={"X-Key": "a-fixed-value"}
        )
        answers = iter([response(), response(503), response()])
        server.respond = lambda request: next(answers)
        retries = urllib3.Retry(2, status_forcelist=[503], backoff_factor=0)
        with requests.Session() as by_requests, session_scope("s1"):
            gateway.mount(by_requests)
            value = by_requests.get(server.origin, timeout=10).request.headers["X-Key"]
        with GatewayPoolManager(gateway) as http, session_scope("s2"):
            http.request("GET", server.origin, headers={"X-Continues": value}, retries=retries)
        assert [each.get("X-Continues") for each in server.arrived] == [None, value, value]


class TestFromAThreadOfItsOwn:
    """A call to another URL of the gateway, by code below the gate, in a thread without a session.

    The thread gets the session as the value of the header that is being sent, and sends that.
    """

    def by_requests(self, gateway: Gateway | None, url: str, headers: dict[str, str]) -> None:
        with requests.Session() as http:
            http.mount("http://", GatewayAdapter(gateway))
            http.get(url, headers=headers, timeout=10)

    def by_urllib3(self, gateway: Gateway | None, url: str, headers: dict[str, str]) -> None:
        with GatewayPoolManager(gateway) as http:
            http.request("GET", url, headers=headers)

    def by_httpx(self, gateway: Gateway | None, url: str, headers: dict[str, str]) -> None:
        with httpx.Client(transport=for_httpx.GatewayTransport(gateway)) as http:
            http.get(url, headers=headers)

    def by_httpx2(self, gateway: Gateway | None, url: str, headers: dict[str, str]) -> None:
        with httpx2.Client(transport=for_httpx2.GatewayTransport(gateway)) as http:
            http.get(url, headers=headers)

    def by_aiohttp(self, gateway: Gateway | None, url: str, headers: dict[str, str]) -> None:
        async def main() -> None:
            ours = [for_aiohttp.GatewayMiddleware(gateway)]
            async with aiohttp.ClientSession(middlewares=ours) as http:
                await http.get(url, headers=headers)

        asyncio.run(main())

    @pytest.mark.parametrize("by", ["requests", "urllib3", "httpx", "httpx2", "aiohttp"])
    @pytest.mark.parametrize("is_instrumented", [True, False])
    def test_is_stamped_in_that_session(self, server: Server, by: str, is_instrumented: bool):
        gateway = Gateway(server.origin, session_header="X-Session-ID", headers={"X-Key": "KEY"})
        call = getattr(self, f"by_{by}")

        class Counting(HTTPAdapter):
            def send(self, request, **options):
                headers = {"X-Session-ID": request.headers["X-Session-ID"]}
                url = f"{gateway.url}/count"
                thread = threading.Thread(target=call, args=(gateway, url, headers))
                thread.start()
                thread.join()
                return super().send(request, **options)

        if is_instrumented:
            instrument(gateway)
        with requests.Session() as http, session_scope("s1"):
            http.mount("http://", GatewayAdapter(gateway, adapter=Counting()))
            http.get(f"{server.origin}/chat", timeout=10)
        assert [request.path for request in server.arrived] == ["/count", "/chat"]
        assert sessions(server) == ["s1", "s1"]
        assert [request.get("X-Key") for request in server.arrived] == ["KEY", "KEY"]

    @pytest.mark.parametrize("by", ["requests", "urllib3", "aiohttp"])
    def test_is_not_stamped_for_a_stranger(self, server: Server, by: str):
        """Not by no gateway either, where a marker alone binds the request that is being sent.

        httpx copies the text of headers, which nothing can tell from the caller's own.
        """
        call = getattr(self, f"by_{by}")

        class Telling(HTTPAdapter):
            def send(self, request, **options):
                headers = {"X-Cagent-Session-Id": request.headers["X-Cagent-Session-Id"]}
                thread = threading.Thread(target=call, args=(None, stranger.origin, headers))
                thread.start()
                thread.join()
                return super().send(request, **options)

        with Server() as stranger, requests.Session() as http, session_scope("s1"):
            http.mount("http://", GatewayAdapter(adapter=Telling()))
            http.get(server.origin, headers=gateway_headers("https://api.example"), timeout=10)
            assert stranger.arrived[0].identifiers == {}
        assert server.arrived[0].session_id == "s1"
