"""instrument(): one line for a process, under every client of it."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import copy
import functools
import inspect
import io
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import unittest.mock
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import responses
import urllib3
import wrapt
from multidict import CIMultiDict
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from requests.adapters import HTTPAdapter
from support.wire import Proxy, Server, redirect, response
from urllib3._collections import HTTPHeaderDict
from urllib3.util import Retry

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayMixin,
    GatewayPoolManager,
    SessionRequired,
    _patching,
    bind_session,
    gateway_headers,
    instrument,
    no_session,
    session_scope,
    uninstrument,
)
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

FORWARD = "https://api.openai.com/v1"
OTHER = "https://api.anthropic.com"
MARKERS = gateway_headers(FORWARD) | {"X-Cagent-Session-Id": "mine"}


@pytest.fixture(autouse=True)
def _switched_off():
    yield
    uninstrument()


def _async(library):
    def get(url, headers=None):
        async def main():
            async with library.AsyncClient(follow_redirects=True, trust_env=False) as http:
                return (await http.get(url, headers=headers, timeout=20)).status_code

        return asyncio.run(main())

    return get


def _once(url, **options):
    with urllib3.PoolManager() as http:
        return http.request("GET", url, **options)


class Clients:
    """Clients of all libraries, as anybody could have made them."""

    def __init__(self) -> None:
        self._session = requests.Session()
        self._session.trust_env = False
        self._manager = urllib3.PoolManager()
        self._clients = {
            library: library.Client(follow_redirects=True, trust_env=False)
            for library in (httpx, httpx2)
        }

    def all(self):
        return {
            "requests": functools.partial(self._session.get, timeout=20),
            "requests.get": functools.partial(requests.get, timeout=20),
            "urllib3": functools.partial(self._manager.request, "GET"),
            "urllib3, once": _once,
            "httpx": self._clients[httpx].get,
            "httpx2": self._clients[httpx2].get,
            "httpx-async": _async(httpx),
            "httpx2-async": _async(httpx2),
        }

    def close(self) -> None:
        self._session.close()
        self._manager.clear()
        for client in self._clients.values():
            client.close()


NAMES = list(Clients().all())


@pytest.fixture(scope="module")
def made_before():
    clients = Clients()
    yield clients
    clients.close()


@pytest.fixture(params=NAMES)
def get(request, made_before):
    return made_before.all()[request.param]


@pytest.fixture
def gateway(server: Server) -> Gateway:
    return Gateway(f"{server.origin}/p?tenant=a", forward=FORWARD, parent_header="X-Parent")


class TestEachRequest:
    def test_of_clients_made_before_and_after(self, get, server: Server, gateway: Gateway):
        instrument(gateway)
        clients = Clients()
        with session_scope("main"), session_scope("s1"):
            get(f"{server.origin}/p/x")
            for made_after in clients.all().values():
                made_after(f"{server.origin}/p/x")
        clients.close()
        assert len(server.arrived) == 1 + len(NAMES)
        for arrived in server.arrived:
            assert (arrived.session_id, arrived.forward) == ("s1", FORWARD)
            assert arrived.get("X-Parent") == "main"
            assert arrived.target == "/p/x?tenant=a"

    def test_that_is_not_bound_is_as_without(self, get, server: Server, gateway: Gateway):
        url = f"{server.origin}/else"
        headers = {"X-Cagent-Session-Id": "mine", "X-A": "b"}
        with session_scope("s1"):
            get(url, headers=headers)
            instrument(gateway)
            get(url, headers=headers)
            get(url, headers=headers | {"X-Cagent-Forward": ""})
        without, within, opted_out = server.arrived
        assert within.raw == without.raw
        assert opted_out.session_id == "mine"

    def test_without_gateways_only_what_is_marked(self, get, server: Server):
        instrument()
        with session_scope("s1"):
            get(server.origin, headers=MARKERS)
            get(server.origin)
        assert [request.session_id for request in server.arrived] == ["s1", None]

    def test_outside_every_session(self, get, server: Server):
        instrument(Gateway(server.origin, forward=FORWARD, require_session=True))
        with no_session(), pytest.raises(SessionRequired):
            get(server.origin)
        assert server.arrived == []

    @pytest.mark.parametrize("marking", ["gateway", "call"])
    def test_that_is_redirected(self, get, marking: str):
        with Server() as stranger, Server() as server:
            targets = {"/1": "/2", "/2": f"{stranger.origin}/3"}
            server.respond = lambda request: redirect(307, targets[request.path])
            instrument(*([Gateway(server.origin, forward=FORWARD)] if marking == "gateway" else []))
            headers = MARKERS if marking == "call" else {"X-Cagent-Session-Id": "mine"}
            with session_scope("s1"):
                get(f"{server.origin}/1", headers=headers)
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]
            assert [request.identifiers for request in stranger.arrived] == [{}]

    def test_passes_the_gate_once(self, get, server: Server, gateway: Gateway, caplog):
        instrument(gateway)
        with caplog.at_level(logging.DEBUG, "cagent_session"), session_scope("s1"):
            get(f"{server.origin}/p/x")
            get(f"{server.origin}/else")
        records = [r.getMessage() for r in caplog.records if r.name == "cagent_session"]
        assert [message.partition(",")[0] for message in records] == [
            "gateway-bound",
            "not gateway-bound",
        ]

    def test_belongs_to_the_longest_path(self, get, server: Server):
        gateways = [
            Gateway(server.origin, forward="https://root.example"),
            Gateway(f"{server.origin}/openai", forward=FORWARD),
            Gateway(f"{server.origin}/anthropic", forward=OTHER),
            Gateway(f"{server.origin}/openai/nested", session_header="X-Session-ID"),
            Gateway("http://elsewhere.example", forward="https://elsewhere.example"),
        ]
        asked = ["/openai/x", "/anthropic/x", "/openai/nested/x", "/x", "/openai2"]
        for order in (gateways, gateways[::-1]):
            server.arrived.clear()
            instrument(*order)
            with session_scope("s1"):
                for path in asked:
                    get(server.origin + path)
            seen = [request.forward for request in server.arrived]
            assert seen == [FORWARD, OTHER, None, "https://root.example", "https://root.example"]
            assert server.arrived[2].get("X-Session-ID") == "s1"

    @pytest.mark.parametrize(
        "path",
        [
            "/./openai/x",
            "/x/../openai",
            "/%2e/openai",
            "//openai/x",
            "/openai%2fx",
            "/%256fpenai/x",
            "/openai;a=b/x",
            "/openai%3fx",
        ],
    )
    def test_is_not_the_outer_ones_if_it_may_be_the_inner_ones(
        self, get, server: Server, path: str, caplog
    ):
        root = Gateway(server.origin, forward="https://root.example", headers={"X-Api-Key": "key"})
        instrument(root, Gateway(f"{server.origin}/openai", forward=FORWARD))
        with session_scope("s1"):
            get(server.origin + path)
            get(server.origin + path)
            assert [request.get("X-Api-Key") for request in server.arrived] == [None, None]
            # urllib3 and httpx may have resolved what is ambiguous.
            if {request.forward for request in server.arrived} == {None}:
                (message,) = [r.getMessage() for r in caplog.records if r.name == "cagent_session"]
                assert f"or of the one at {server.origin}/openai, so it" in message
            instrument(root)
            get(server.origin + path)
            assert server.arrived[-1].get("X-Api-Key") == "key"

    @pytest.mark.parametrize("path", ["//x", "/%78", "/x;openai/openai", "/x%2fopenai", "/?/./"])
    def test_is_the_outer_ones_if_it_is_not_the_inner_ones(self, get, server: Server, path: str):
        instrument(
            Gateway(server.origin, forward="https://root.example"),
            Gateway(f"{server.origin}/openai", forward=FORWARD),
        )
        with session_scope("s1"):
            get(server.origin + path)
        assert server.arrived[-1].forward == "https://root.example"

    def test_an_empty_host_is_the_librarys_to_refuse(self, gateway: Gateway):
        instrument(gateway, Gateway("http://other.example", forward=FORWARD))
        prepared = requests.Request("GET", "http://gateway.example").prepare()
        prepared.url = "http://[]/"
        with requests.Session() as http, pytest.raises(ValueError, match=r"host|IPv4|parse"):
            http.send(prepared)


def test_a_url_with_user_info_is_no_gateways(server: Server, gateway: Gateway):
    """Although urllib3, below, sees it without."""
    instrument(gateway)
    url = f"{server.origin}/p/x".replace("//", "//user:password@")
    with session_scope("s1"):
        requests.get(url, timeout=5)
    assert server.arrived[0].identifiers == {}
    assert server.arrived[0].target == "/p/x"


class OwnPool(HTTPAdapter):
    """An adapter that connects to one port, whatever host a URL names."""

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(**options)
        self.port = port

    def get_connection_with_tls_context(self, *args, **options):
        return urllib3.HTTPConnectionPool("127.0.0.1", self.port)

    get_connection = get_connection_with_tls_context  # before requests 2.32

    def request_url(self, request, proxies):
        return request.path_url


@pytest.mark.parametrize("answer", [response(503), None], ids=["answered 503", "dropped"])
@pytest.mark.parametrize("scheme", ["http", "http+docker"])
def test_a_second_attempt_of_what_no_gateway_owns_is_no_gateways_either(
    answer: bytes | None, scheme: str
):
    """urllib3 makes it with a copy of the headers."""
    retry = urllib3.Retry(3, status_forcelist=[503], backoff_factor=0)
    with Server(lambda r: answer if len(server.arrived) < 3 else response()) as server:
        gateway = Gateway(server.origin, forward=FORWARD, headers={"X-Api-Key": "KEY"})
        with requests.Session() as http, instrument(gateway), session_scope("s1"):
            http.mount("http+docker://", OwnPool(server.port, max_retries=retry))
            http.mount("http://", HTTPAdapter(max_retries=retry))
            http.get(f"{scheme}://us:pw@127.0.0.1:{server.port}/a%7eb%2fc")
    assert len(server.arrived) == 3
    for request in server.arrived:
        assert request.identifiers == {}
        assert request.get("X-Api-Key") is None


def test_a_second_attempt_that_a_pool_has_marked_is_gateway_bound(server: Server):
    class Marking(urllib3.HTTPConnectionPool):
        def urlopen(self, method, url, body=None, headers=None, retries=None, **options):
            if retries.history:
                headers = {**headers, "X-Cagent-Forward": FORWARD}
            return super().urlopen(method, url, body, headers, retries, **options)

    adapter = HTTPAdapter(max_retries=urllib3.Retry(1, status_forcelist=[503]))
    adapter.poolmanager.pool_classes_by_scheme = {"http": Marking}
    server.respond = lambda r: response(503 if len(server.arrived) < 2 else 200)
    instrument(Gateway("http://gateway.example", forward=FORWARD))
    with requests.Session() as http, session_scope("s1"):
        http.mount("http://", adapter)
        http.get(server.origin)
    assert [each.session_id for each in server.arrived] == [None, "s1"]


def test_an_adapter_that_is_no_http_adapter_is_reached_through_its_pool(
    server: Server, gateway: Gateway
):
    class Own(requests.adapters.BaseAdapter):
        def send(self, request, **options):
            with urllib3.PoolManager() as http:
                http.request(request.method, request.url, headers=request.headers)
            answer = requests.Response()
            answer.status_code, answer.request, answer.url = 200, request, request.url
            return answer

        def close(self): ...

    instrument(gateway)
    with requests.Session() as http, session_scope("s1"):
        http.mount("http://", Own())
        http.get(f"{server.origin}/p/x")
    assert server.arrived[0].session_id == "s1"


@pytest.mark.parametrize(("library", "integration"), [(httpx, for_httpx), (httpx2, for_httpx2)])
def test_a_transport_inside_ours_that_fails_over_takes_nothing_along(
    server: Server, library, integration
):
    class Failover(library.BaseTransport):
        def handle_request(self, request):
            inner.handle_request(request).read()
            request.url = library.URL(stranger.at("localhost"))
            return inner.handle_request(request)

    # Without a forward, so that nothing at the stranger makes the request gateway-bound.
    gateway = Gateway(server.origin, session_header="X-Session-ID", headers={"X-Key": "secret"})
    instrument()  # which does not know of the gateway
    with Server() as stranger, library.HTTPTransport(trust_env=False) as inner:
        ours = integration.GatewayTransport(gateway, Failover())
        with library.Client(transport=ours, trust_env=False) as http, session_scope("s1"):
            http.get(server.origin, headers={"X-Cagent-Model": "mine"})
        with library.Client(transport=ours, trust_env=False) as http, no_session():
            http.get(server.origin, headers={"X-Session-ID": "mine"})
        assert server.arrived[0].get("X-Session-ID") == "s1"
        for arrived in stranger.arrived:
            assert (arrived.get("X-Session-ID"), arrived.get("X-Key")) == (None, None)
            assert arrived.identifiers == {}
        assert len(stranger.arrived) == 2


class TestWhatIsMountedDecidesFirst:
    @pytest.fixture
    def other(self, server: Server) -> Gateway:
        return Gateway(server.origin, forward=OTHER)

    def clients(self, gateway: Gateway | None):
        """Clients with transports of this package, for each library."""
        http = requests.Session()
        http.trust_env = False
        http.mount("http://", GatewayAdapter(gateway))
        manager = GatewayPoolManager(gateway)
        yield http.get
        yield lambda url: manager.request("GET", url)
        for library, integration in ((httpx, for_httpx), (httpx2, for_httpx2)):
            with library.Client(transport=integration.GatewayTransport(gateway)) as client:
                yield client.get

            def get(url, library=library, integration=integration):
                async def main():
                    transport = integration.GatewayTransport(gateway)
                    async with library.AsyncClient(transport=transport) as client:
                        await client.get(url)

                asyncio.run(main())

            yield get
        manager.clear()
        http.close()

    def test_that_a_request_is_bound(self, server: Server, gateway: Gateway, other: Gateway):
        instrument(other)
        with session_scope("s1"):
            for get in self.clients(gateway):
                get(f"{server.origin}/p/x")
        assert len(server.arrived) == 6
        for arrived in server.arrived:
            assert (arrived.forward, arrived.session_id) == (FORWARD, "s1")

    def test_a_request_that_it_has_not_bound_is_judged_by_instrument(
        self, server: Server, other: Gateway
    ):
        instrument(other)
        with session_scope("s1"):
            for get in self.clients(None):
                get(f"{server.origin}/x")
        assert [request.forward for request in server.arrived] == [OTHER] * 6
        assert {request.session_id for request in server.arrived} == {"s1"}

    def test_that_is_copied_on_its_way(self, server: Server, gateway: Gateway, other: Gateway):
        """A transport that rebuilds requests belongs inside ours, where it changes nothing."""

        class Signing(HTTPAdapter):
            def send(self, request, *args, **options):
                return super().send(request.copy(), *args, **options)

        class Ours(GatewayMixin, Signing):
            pass

        class Rebuilding(httpx.HTTPTransport):
            def handle_request(self, request):
                copied = httpx.Request(
                    request.method, request.url, headers=request.headers, stream=request.stream
                )
                return super().handle_request(copied)

        router = Gateway(server.origin, session_header="X-Session-ID")
        instrument(other)
        with session_scope("s1"):
            with requests.Session() as http:
                http.mount("http://", Ours(router))
                http.get(f"{server.origin}/x", timeout=20)
            transport = for_httpx.GatewayTransport(router, Rebuilding())
            with httpx.Client(transport=transport) as http:
                http.get(f"{server.origin}/x")
        assert [request.identifiers for request in server.arrived] == [{}, {}]
        assert [request.get("X-Session-ID") for request in server.arrived] == ["s1", "s1"]

    def test_but_not_about_what_an_adapter_asks_for_itself(
        self, server: Server, gateway: Gateway, other: Gateway
    ):
        manager = urllib3.PoolManager()

        class Asking(HTTPAdapter):
            def send(self, request, *args, **options):
                requests.get(request.url, timeout=20)
                manager.request("POST", f"{server.origin}/mirror", body=request.body)
                return super().send(request, *args, **options)

        class Ours(GatewayMixin, Asking): ...

        instrument(other)
        with requests.Session() as http, session_scope("s1"), manager:
            http.mount("http://", Ours(gateway))
            http.get(f"{server.origin}/p/x")
        assert [request.forward for request in server.arrived] == [OTHER, OTHER, FORWARD]
        assert {request.session_id for request in server.arrived} == {"s1"}

    def test_but_not_about_a_request_that_a_retry_makes(self, server: Server, gateway: Gateway):
        """Neither of the two has a body, which tells nothing."""
        manager = urllib3.PoolManager()

        class Refreshing(Retry):
            def increment(self, *args, **options):
                manager.request("GET", f"{server.origin}/p/token")
                return super().increment(*args, **options)

        answers = iter([response(503)])
        with Server(lambda request: next(answers, response())) as elsewhere, manager:
            instrument(gateway)
            with requests.Session() as http, session_scope("s1"):
                http.mount(
                    "http://", HTTPAdapter(max_retries=Refreshing(2, status_forcelist=[503]))
                )
                http.get(elsewhere.origin, timeout=20)
            assert [request.identifiers for request in elsewhere.arrived] == [{}, {}]
        assert [request.session_id for request in server.arrived] == ["s1"]

    def test_but_not_about_what_is_sent_on_the_way(self, server: Server, gateway: Gateway):
        """A body that makes requests of its own while it is read."""
        instrument(gateway)

        def body():
            manager = urllib3.PoolManager()
            for get in (requests.get, httpx.get, lambda url: manager.request("GET", url)):
                get(f"{server.origin}/p/inner")
            yield b"x"

        with session_scope("s1"):
            requests.post(f"{server.origin}/p/outer", data=body(), timeout=20)
        assert [request.session_id for request in server.arrived] == ["s1"] * 4
        assert {request.forward for request in server.arrived} == {FORWARD}


class TestSwitching:
    def test_with_puts_back_what_was_in_force_before(self, get, server: Server):
        one, two = (Gateway(server.origin, forward=forward) for forward in (FORWARD, OTHER))
        get(server.origin)
        with instrument(one):
            get(server.origin)
            with instrument(two):
                get(server.origin)
            get(server.origin)
            with instrument():
                get(server.origin)
            get(server.origin)
        get(server.origin)
        forwards = [request.forward for request in server.arrived]
        assert forwards == [None, FORWARD, OTHER, FORWARD, None, FORWARD, None]
        assert server.arrived[-1].raw == server.arrived[0].raw

    def test_entered_again_it_puts_its_gateways_in_force_again(self, server: Server):
        def stamped():
            server.arrived.clear()
            with session_scope("s1"):
                requests.get(server.origin, timeout=20)
            return server.arrived[0].forward

        switched = instrument(Gateway(server.origin, forward=FORWARD))
        with switched:
            assert stamped() == FORWARD
        assert stamped() is None
        with switched:
            with instrument(Gateway(server.origin, forward=OTHER)):
                with switched:
                    assert stamped() == FORWARD
                assert stamped() == OTHER
            assert stamped() == FORWARD
        assert stamped() is None

    @pytest.mark.parametrize("ends", [1, 2])
    def test_ended_without_an_entry_it_can_be_entered(self, server: Server, ends: int):
        gateway = Gateway(server.origin, forward=FORWARD)
        switched = instrument(gateway)
        for _ in range(ends):
            switched.__exit__(None, None, None)
        with switched, session_scope("s1"):
            requests.get(server.origin, timeout=20)
        with session_scope("s1"):
            requests.get(server.origin, timeout=20)
        assert [each.session_id for each in server.arrived] == ["s1", None]

    def test_called_again_it_replaces(self, get, server: Server):
        for forward in (FORWARD, OTHER):
            instrument(Gateway(server.origin, forward=forward))
        get(server.origin)
        assert server.arrived[0].forward == OTHER

    def test_two_gateways_of_one_place_change_nothing(self, get, server: Server):
        one, two = (Gateway(server.origin, forward=forward) for forward in (FORWARD, OTHER))
        instrument(one, one)
        with pytest.raises(ValueError, match="two different gateways"):
            instrument(two, one)
        with pytest.raises(TypeError, match="gateway must be a Gateway or None, not str"):
            instrument(server.origin)
        get(server.origin)
        assert server.arrived[0].forward == FORWARD

    def test_off_is_off(self, get, server: Server):
        prepared = requests.Request("GET", server.origin, headers=MARKERS).prepare()
        with requests.Session() as http, session_scope("s1"):
            http.send(prepared)
            instrument(Gateway(server.origin, forward=FORWARD))
            http.send(prepared)
            get(server.origin)
            uninstrument()
            http.send(prepared)
            uninstrument()
            get(server.origin)
        first, _, _, again, bare = server.arrived
        assert again.raw == first.raw
        assert bare.identifiers == {}

    def test_three_thousand_switches_under_load(self, made_before):
        """Each request is wholly in force or wholly not, and none is broken."""

        def respond(request):
            path = request.path
            return response() if path.endswith("/end") else redirect(307, f"{path}/end")

        with Server(respond) as server:
            gateways = [Gateway(server.origin, forward=forward) for forward in (FORWARD, OTHER)]
            ended, errors = threading.Event(), []

            def work(name: str) -> None:
                get = made_before.all()[name]
                try:
                    while not ended.is_set():
                        with session_scope(name):
                            get(f"{server.origin}/{name}")
                except BaseException as error:
                    errors.append(error)
                    raise

            names = ["requests", "urllib3", "httpx", "httpx2", "httpx-async"]
            threads = [threading.Thread(target=work, args=(name,)) for name in names]
            for thread in threads:
                thread.start()
            for number in range(3000):
                with instrument(gateways[number % 2]):
                    time.sleep(0.0005)  # for the others to have their turn
                    if number % 3 == 0:
                        uninstrument()
            ended.set()
            for thread in threads:
                thread.join(30)
        assert errors == []
        seen = collections.Counter()
        for arrived in server.arrived:
            name = arrived.path.split("/")[1]
            marks = (arrived.session_id, arrived.forward)
            assert marks in ((None, None), (name, FORWARD), (name, OTHER))
            seen[marks] += 1
        assert len(seen) == 1 + 2 * len(names), seen


INSTRUMENTORS = [RequestsInstrumentor, URLLib3Instrumentor, HTTPXClientInstrumentor]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_switches():
    begun, ended = threading.Event(), threading.Event()

    def switch():
        with _patching._lock:
            begun.set()
            ended.wait(20)

    thread = threading.Thread(target=switch)
    thread.start()
    begun.wait(20)
    child = os.fork()
    if not child:
        signal.alarm(10)  # ends it if it hangs
        uninstrument()
        os._exit(0)
    ended.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


class TestNextToOpenTelemetry:
    @pytest.fixture
    def spans(self):
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        exporter.provider = provider
        yield exporter
        for instrumentor in INSTRUMENTORS:
            if instrumentor().is_instrumented_by_opentelemetry:
                instrumentor().uninstrument()
        provider.shutdown()

    @pytest.mark.parametrize("order", list(itertools.permutations(["ours on", "theirs on"])))
    @pytest.mark.parametrize("end", ["ours off", "theirs off"])
    def test_come_and_go_in_any_order(self, get, server: Server, spans, order, end):
        def switch(what: str) -> None:
            if what == "ours on":
                instrument(Gateway(server.origin, forward=FORWARD))
            elif what == "ours off":
                uninstrument()
            for instrumentor in INSTRUMENTORS:
                if what == "theirs on":
                    instrumentor().instrument(tracer_provider=spans.provider)
                elif what == "theirs off":
                    instrumentor().uninstrument()

        def look() -> tuple[bool, bool]:
            server.arrived.clear()
            spans.clear()
            with session_scope("s1"):
                get(server.origin)
            (arrived,) = server.arrived
            traced = arrived.get("traceparent") is not None
            assert traced == bool(spans.get_finished_spans())
            return arrived.session_id == "s1", traced

        for what in order:
            switch(what)
        traces = look()[1]
        assert look() == (True, traces)
        switch(end)
        assert look() == ((False, traces) if end == "ours off" else (True, False))
        switch("theirs off" if end == "ours off" else "ours off")
        assert look() == (False, False)

    @pytest.mark.parametrize("is_below_another", [False, True])
    @pytest.mark.parametrize("wrapper", [wrapt.FunctionWrapper, wrapt.wrappers.FunctionWrapper])
    def test_whose_wrapper_is_bound_to_the_class(self, wrapper: Any, is_below_another: bool):
        """It is left by one that is gone, or called by one that had it from the class.

        The wrappers of wrapt's C extension and those in Python are two kinds of classes.
        """

        class Client:
            def send(self) -> str:
                return "sent"

        class Calling:
            def __init__(self, send):
                functools.update_wrapper(self, send)
                self.send = send

            def __get__(self, client, _):
                return functools.partial(self.send, client)

        library: Any = types.ModuleType("library")
        library.Client = Client
        inner = wrapper(Client.send, lambda send, _, args, kw: send(*args, **kw))
        bound = inner.__get__(None, Client)  # what OpenTelemetry's unwrap() leaves
        Client.send = Calling(bound) if is_below_another else bound  # type: ignore[method-assign]
        for _ in range(2):
            _patching.patch(library, "Client.send", lambda send: lambda self: f"again {send(self)}")
        assert Client().send() == "again sent"

    @pytest.mark.parametrize("end", [uninstrument, "theirs off"])
    @pytest.mark.parametrize("library", [httpx, httpx2])
    def test_which_traces_one_client_that_it_knew_first(
        self, server: Server, spans, library: Any, end: Any
    ):
        """It has wrapped the method of the client's transport as it was without a gate."""
        kind = HTTPXClientInstrumentor if library is httpx else HTTPX2ClientInstrumentor
        with _before_instrument(library), library.Client() as client, session_scope("s1"):
            kind.instrument_client(client, tracer_provider=spans.provider)
            instrument(Gateway(server.origin, forward=FORWARD))
            for _ in range(2):
                client.get(server.origin)
            if end == "theirs off":
                kind.uninstrument_client(client)
            else:
                end()
            client.get(server.origin)
        assert len(spans.get_finished_spans()) == (2 if end == "theirs off" else 3)
        sessions = [arrived.session_id for arrived in server.arrived]
        assert sessions == ["s1", "s1", "s1" if end == "theirs off" else None]

    def test_whose_proxy_has_a_parent_in_a_sense_of_its_own(self):
        class Client:
            def send(self) -> str:
                return "sent"

        class Traced(wrapt.ObjectProxy):
            _self_parent = "the span above"

            def __get__(self, client, _):
                return functools.partial(self.__wrapped__, client)

        library: Any = types.ModuleType("library")
        library.Client = Client
        Client.send = Traced(Client.send)  # type: ignore[method-assign]
        for _ in range(2):
            _patching.patch(library, "Client.send", lambda send: lambda self: f"again {send(self)}")
        assert Client().send() == "again sent"

    @pytest.mark.parametrize("body", [None, b"x"])
    def test_that_copies_the_headers_on_their_way(self, server: Server, spans, body):
        """What is mounted has decided, whatever carries its request on."""
        URLLib3Instrumentor().instrument(tracer_provider=spans.provider)
        instrument(Gateway(server.origin, forward=OTHER, session_header="X-Session-ID"))
        with requests.Session() as http, session_scope("s1"):
            http.mount("http://", GatewayAdapter(Gateway(server.origin, forward=FORWARD)))
            http.post(f"{server.origin}/x", data=body)
        assert len(spans.get_finished_spans()) == 1
        (arrived,) = server.arrived
        assert (arrived.forward, arrived.session_id) == (FORWARD, "s1")
        assert arrived.get("X-Session-ID") is None


@contextlib.contextmanager
def _before_instrument(library: Any) -> Iterator[None]:
    """Have the methods of ``library`` as they were before the first call of instrument()."""
    with contextlib.ExitStack() as stack:
        for kind, name in (
            (library.HTTPTransport, "handle_request"),
            (library.AsyncHTTPTransport, "handle_async_request"),
        ):
            stack.enter_context(
                unittest.mock.patch.object(kind, name, inspect.unwrap(getattr(kind, name)))
            )
        yield


def _wrapped_by_wrapt(method: Any) -> Any:
    return wrapt.FunctionWrapper(method, lambda send, _, args, options: send(*args, **options))


@pytest.mark.parametrize(
    "wraps",
    [
        [],  # as uninstrument_client() of OpenTelemetry leaves it
        [_wrapped_by_wrapt],
        [_wrapped_by_wrapt, _wrapped_by_wrapt],
    ],
)
@pytest.mark.parametrize("library", [httpx, httpx2])
class TestWhatAnObjectHasInPlaceOfAMethod:
    """A transport with a wrapper of its own, made before the first call of instrument()."""

    @staticmethod
    def _wrap(transport: Any, name: str, wraps: list[Any]) -> None:
        method = getattr(transport, name)
        for wrap in wraps:
            method = wrap(method)
        setattr(transport, name, method)

    def test_goes_through_the_gate(self, server: Server, library: Any, wraps: list[Any]):
        transport = library.HTTPTransport()
        with _before_instrument(library):
            self._wrap(transport, "handle_request", wraps)
        instrument(Gateway(server.origin, forward=FORWARD))
        with library.Client(transport=transport) as client, session_scope("s1"):
            for _ in range(2):
                client.get(server.origin)
            uninstrument()
            client.get(server.origin)
        marks = [(arrived.session_id, arrived.forward) for arrived in server.arrived]
        assert marks == [("s1", FORWARD), ("s1", FORWARD), (None, None)]
        assert list(inspect.signature(transport.handle_request).parameters) == ["request"]

    def test_goes_through_the_gate_asynchronously(
        self, server: Server, library: Any, wraps: list[Any]
    ):
        async def call():
            transport = library.AsyncHTTPTransport()
            with _before_instrument(library):
                self._wrap(transport, "handle_async_request", wraps)
            async with library.AsyncClient(transport=transport) as client:
                await client.get(server.origin)

        instrument(Gateway(server.origin, forward=FORWARD))
        with session_scope("s1"):
            asyncio.run(call())
        (arrived,) = server.arrived
        assert (arrived.session_id, arrived.forward) == ("s1", FORWARD)

    def test_takes_no_marks_to_a_stranger(self, server: Server, library: Any, wraps: list[Any]):
        transport = library.HTTPTransport()
        with _before_instrument(library):
            self._wrap(transport, "handle_request", wraps)
        instrument(Gateway(server.origin, forward=FORWARD))
        with Server() as stranger, library.Client(transport=transport) as client:
            server.respond = lambda _: redirect(307, stranger.origin)
            with session_scope("s1"):
                client.get(server.origin, headers=MARKERS, follow_redirects=True)
            (arrived,) = stranger.arrived
        assert arrived.identifiers == {}

    def test_goes_through_the_gate_from_another_transport(
        self, server: Server, library: Any, wraps: list[Any]
    ):
        class Passing(library.BaseTransport):
            def __init__(self, below: Any) -> None:
                vars(self)["handle_request"] = below.handle_request

            def __setattr__(self, name: str, value: Any) -> None:
                raise AttributeError("frozen")

        with _before_instrument(library):
            below = library.HTTPTransport()
            self._wrap(below, "handle_request", wraps)
            transport = Passing(below)
        instrument(Gateway(server.origin, forward=FORWARD))
        with below, library.Client(transport=transport) as client, session_scope("s1"):
            client.get(server.origin)
        (arrived,) = server.arrived
        assert (arrived.session_id, arrived.forward) == ("s1", FORWARD)


@pytest.mark.parametrize("is_below_opentelemetry", [False, True])
@pytest.mark.parametrize("is_in_class", [False, True])
def test_a_function_in_place_of_a_method_is_left_as_it_is(
    server: Server, is_in_class: bool, is_below_opentelemetry: bool
):
    """Above it, the gate would not see where it sends; and it may be a double."""

    def sending_twice(method):
        @functools.wraps(method)
        def send(*args):
            method(*args).read()
            return method(*args)

        return send

    class Transport(httpx.HTTPTransport):
        pass

    transport = Transport()
    with _before_instrument(httpx):
        target: Any = Transport if is_in_class else transport
        target.handle_request = sending_twice(target.handle_request)
        if is_below_opentelemetry:
            transport.handle_request = _wrapped_by_wrapt(  # type: ignore[method-assign]
                transport.handle_request
            )
    before = transport.handle_request
    instrument(Gateway(server.origin, forward=FORWARD))
    with httpx.Client(transport=transport) as client, session_scope("s1"):
        client.get(server.origin)
    assert transport.handle_request == before
    assert [arrived.identifiers for arrived in server.arrived] == [{}, {}]


class TestNextToTestDoubles:
    def test_responses_answers_what_it_did(self, server: Server):
        gateway = Gateway(server.origin, forward=FORWARD)
        with responses.RequestsMock() as mocked:
            instrument(gateway)
            mocked.get(server.origin, body="canned")
            assert requests.get(server.origin, timeout=5).text == "canned"
        instrument(gateway)
        with session_scope("s1"):
            requests.get(server.origin, timeout=5)
        assert [request.session_id for request in server.arrived] == ["s1"]

    def test_a_wrapper_that_shows_nothing_of_what_it_wraps(
        self, server: Server, monkeypatch, caplog
    ):
        """Whoever puts the original back takes ours away, so that is said."""
        original = HTTPAdapter.send
        monkeypatch.setattr(HTTPAdapter, "send", lambda self, *a, **k: original(self, *a, **k))
        gateway = Gateway(server.origin, forward=FORWARD)
        instrument(gateway)
        with session_scope("s1"):
            requests.get(server.origin, timeout=5)
        assert server.arrived[0].session_id == "s1"
        (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
        assert record.name == "cagent_session"
        assert "HTTPAdapter.send is not the library's own" in record.getMessage()
        assert "instrument() has to be called again" in record.getMessage()
        monkeypatch.undo()
        instrument(gateway)
        with session_scope("s2"):
            requests.get(server.origin, timeout=5)
        assert server.arrived[1].session_id == "s2"
        assert len([each for each in caplog.records if each.levelname == "WARNING"]) == 1

    @pytest.mark.parametrize("kind", ["bound method", "staticmethod", "classmethod"])
    def test_a_double_that_is_no_plain_function(self, server: Server, monkeypatch, caplog, kind):
        original = inspect.unwrap(HTTPAdapter.send)  # as before the first call of instrument()
        sent: list[Any] = []

        @functools.wraps(original)
        def send(*arguments, **options):
            sent.append(arguments)
            return requests.Response()

        doubles: dict[str, Any] = {
            "bound method": types.MethodType(send, object()),
            "staticmethod": staticmethod(send),
            "classmethod": classmethod(send),
        }
        monkeypatch.setattr(HTTPAdapter, "send", doubles[kind])
        instrument(Gateway(server.origin, forward=FORWARD))
        requests.get(server.origin, timeout=5)
        assert len(sent) == 1
        assert "HTTPAdapter.send is not the library's own" in caplog.text

    def test_a_mock_is_not_taken_for_ours(self, server: Server):
        with unittest.mock.patch.object(httpx.HTTPTransport, "handle_request") as mocked:
            mocked.return_value = httpx.Response(200)
            instrument(Gateway(server.origin, forward=FORWARD))
            assert httpx.get(server.origin).status_code == 200
        instrument(Gateway(server.origin, forward=FORWARD))
        with session_scope("s1"):
            httpx.get(server.origin)
        assert server.arrived[0].session_id == "s1"

    def test_a_wrapper_that_takes_keywords(self, server: Server, monkeypatch):
        original = urllib3.HTTPConnectionPool.urlopen

        def urlopen(self, method, url, **options):
            return original(self, method, url, **options)

        monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", urlopen)
        instrument(Gateway(server.origin, forward=FORWARD))
        with urllib3.PoolManager() as http, session_scope("s1"):
            http.request("GET", server.origin)
        assert server.arrived[0].session_id == "s1"

    def test_a_request_of_no_library(self, server: Server):
        """What the plain transport sends goes on as it is."""

        class Request:
            def __init__(self, request: httpx.Request):
                vars(self).update(vars(request))

        instrument(Gateway(server.origin, forward=FORWARD))
        with httpx.HTTPTransport() as transport, session_scope("s1"):
            sent = Request(httpx.Request("GET", server.origin))
            transport.handle_request(sent).read()
        assert server.arrived[0].identifiers == {}


class TestWhatOnlyOneLibraryHas:
    def test_pools_of_urllib3(self, server: Server, gateway: Gateway):
        instrument(gateway)
        host = server.origin.removeprefix("http://")
        with urllib3.connection_from_url(server.origin) as pool, session_scope("s1"):
            pool.request("GET", "/p/x", headers={"Host": host})
            pool.urlopen("POST", "/p/y", b"body", None, Retry(2))
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]
        assert [request.target for request in server.arrived] == ["/p/x?tenant=a", "/p/y?tenant=a"]

    def test_retries_of_requests(self, server: Server, gateway: Gateway):
        instrument(gateway)
        answers = iter([response(503), response(503), response()])
        server.respond = lambda request: next(answers)
        with requests.Session() as http, session_scope("s1"):
            http.trust_env = False
            http.mount("http://", HTTPAdapter(max_retries=Retry(3, status_forcelist=[503])))
            http.get(f"{server.origin}/p/x")
        assert [request.session_id for request in server.arrived] == ["s1"] * 3

    def test_streams_of_requests(self, server: Server, gateway: Gateway):
        instrument(gateway)
        url = f"{server.origin}/p/x"
        requests.get(url, stream=True, timeout=5).close()
        adapter = HTTPAdapter()
        adapter.send(requests.Request("GET", url).prepare(), True, 5)
        adapter.close()
        assert [r.get("Accept-Encoding") for r in server.arrived] == ["identity"] * 2

    def test_uploads(self, server: Server, gateway: Gateway):
        instrument(gateway)
        with session_scope("s1"):
            requests.post(f"{server.origin}/p/x", files={"a": io.BytesIO(b"content")}, timeout=5)
            httpx.post(f"{server.origin}/p/x", files={"a": io.BytesIO(b"content")})
        assert all(b"content" in request.body for request in server.arrived)
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    def test_proxies(self, server: Server, gateway: Gateway):
        instrument(gateway)
        url = f"{server.origin}/p/x"
        with Proxy() as proxy, session_scope("s1"):
            requests.get(url, proxies={"http": proxy.origin}, timeout=5)
            with urllib3.ProxyManager(proxy.origin) as http:
                http.request("GET", url)
            with httpx.Client(proxy=proxy.origin) as http:
                http.get(url)
        assert [request.session_id for request in server.arrived] == ["s1"] * 3
        assert {request.target for request in server.arrived} == {"/p/x?tenant=a"}

    def test_response_request_is_what_went_out(self, server: Server, gateway: Gateway):
        instrument(gateway)
        with session_scope("s1"):
            answer = requests.get(f"{server.origin}/p/x", timeout=5)
        assert answer.request.headers["X-Cagent-Session-Id"] == "s1"
        assert answer.url == answer.request.url == f"{server.origin}/p/x?tenant=a"

    @pytest.mark.parametrize("library", [httpx, httpx2])
    def test_errors_are_the_librarys_own(self, library, gateway: Gateway):
        instrument(Gateway("http://127.0.0.1:9", forward=FORWARD))
        for error, get in (
            (requests.ConnectionError, requests.get),
            (urllib3.exceptions.MaxRetryError, _once),
            (library.ConnectError, library.get),
        ):
            with session_scope("s1"), pytest.raises(error):
                get("http://127.0.0.1:9/x")


class TestHeadersThatWereSentBefore:
    """Headers of a request that was not gateway-bound may be used for one that is."""

    def test_urllib3_sends_them_to_the_gateway_in_the_session(self, server: Server):
        gateway = Gateway(server.origin, forward=FORWARD, require_session=True)
        with Server() as stranger, instrument(gateway):
            headers = requests.get(stranger.origin, timeout=10).request.headers
            with session_scope("s1"):
                _once(server.origin, headers=headers)
            with pytest.raises(SessionRequired):
                _once(server.origin, headers=headers)
        assert [each.session_id for each in server.arrived] == ["s1"]

    def test_an_adapter_sends_them_to_the_gateway_in_the_session(self, server: Server):
        class Failover(HTTPAdapter):
            def send(self, request, **options):
                super().send(request, **options).close()
                url = f"{server.origin}/x"
                raw = self.poolmanager.urlopen("GET", url, headers=request.headers)
                return self.build_response(request, raw)

        with Server() as stranger, requests.Session() as http:
            http.mount("http://", Failover())
            with instrument(Gateway(server.origin, forward=FORWARD)), session_scope("s1"):
                http.get(stranger.origin)
        assert [each.session_id for each in server.arrived] == ["s1"]


def test_a_scheme_of_an_adapters_own_is_no_gateways(server: Server):
    """docker-py's adapter sends ``http+docker://localhost`` to a unix socket."""
    gateway = Gateway(server.origin, forward=FORWARD, headers={"X-Api-Key": "KEY"})
    with requests.Session() as http, instrument(gateway), session_scope("s1"):
        http.mount("http+docker://", OwnPool(server.port))
        http.get("http+docker://localhost/info")
    assert server.arrived[0].identifiers == {}
    assert server.arrived[0].get("X-Api-Key") is None


def test_headers_in_a_dict_are_judged_once(server: Server):
    gateway = Gateway(server.origin, forward=FORWARD)
    with requests.Session() as http, instrument(gateway), session_scope("s1"):
        url = f"http://us:pw@127.0.0.1:{server.port}/b"
        prepared = http.prepare_request(requests.Request("GET", url))
        prepared.headers = dict(prepared.headers)  # type: ignore[assignment]
        assert http.send(prepared).request is prepared
    assert server.arrived[0].identifiers == {}


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_nothing_of_ours_is_on_a_request_of_nobodys_when_an_adapter_stores_it(
    server: Server, copied
):
    class Storing(requests.adapters.HTTPAdapter):
        def build_response(self, req, resp):
            stored.append((copied(req), copied(vars(req.headers))))
            return super().build_response(req, resp)

    stored: list[Any] = []
    gateway = Gateway(
        "http://gateway.example",
        headers={"X-Key": "secret"},
        session_headers={"X-S": lambda session, parent, root: session},  # it cannot be pickled
    )
    with requests.Session() as http:
        http.mount("http://", Storing())
        http.get(server.origin)
        with instrument(gateway), session_scope("s1"):
            http.get(server.origin)
    (_, attributes_of_plain), (request, attributes) = stored
    assert attributes == attributes_of_plain
    assert copied is copy.deepcopy or b"cagent" not in request


@pytest.mark.parametrize("method", [None, b"GET", 5])
def test_a_method_that_is_no_text_is_the_librarys_to_refuse(server: Server, method: Any):
    instrument(Gateway("http://gateway.example", forward=FORWARD))
    with requests.Session() as http:
        prepared = http.prepare_request(requests.Request("GET", server.origin))
        prepared.method = method
        with pytest.raises(TypeError):
            http.get_adapter(server.origin).send(prepared)
    assert server.arrived == []


@pytest.mark.parametrize("by", ["instrument", "mount"])
def test_a_request_without_headers_is_sent(server: Server, by: str):
    """``prepare_headers()`` was never called, so they are ``None``."""
    gateway = Gateway(f"{server.origin}/a", forward=FORWARD)
    wired = instrument(gateway) if by == "instrument" else contextlib.nullcontext()
    with requests.Session() as http, wired, session_scope("s1"):
        if by == "mount":
            http.mount("http://", GatewayAdapter(gateway))
        for path, authority in (("a", ""), ("b", ""), ("a", "us:pw@")):
            prepared = requests.PreparedRequest()
            prepared.prepare_method("GET")
            prepared.prepare_url(f"http://{authority}127.0.0.1:{server.port}/{path}", None)
            assert http.send(prepared).status_code == 200
    assert [request.session_id for request in server.arrived] == ["s1", None, None]


@pytest.mark.parametrize("authority", ["us:pw@127.0.0.1:{port}", "127.0.0.1:0{port}"])
def test_a_copy_for_a_url_that_no_gateway_owns_is_sent_as_it_is(server: Server, authority: str):
    gateway = Gateway(server.origin, forward=FORWARD)
    url = f"http://{authority.format(port=server.port)}/b"
    assert not gateway.owns(url)
    with requests.Session() as http, instrument(gateway), session_scope("s1"):
        twin = http.get(server.origin, timeout=10).request.copy()
        twin.url = url
        http.send(twin)
    assert server.arrived[0].session_id == "s1"
    assert server.arrived[1].identifiers == {}


@pytest.mark.parametrize("is_bound", [True, False])
@pytest.mark.parametrize("library", ["requests", "urllib3"])
def test_all_values_of_a_name_are_sent(server: Server, library: str, is_bound: bool):
    """Also of headers whose class is neither requests' nor urllib3's."""

    def get() -> list[str]:
        headers = CIMultiDict([("X-A", "1"), ("X-B", "b"), ("X-A", "2")])
        if library == "requests":
            with requests.Session() as http:
                request = http.prepare_request(requests.Request("GET", server.origin))
                request.headers = headers
                http.send(request)
        else:
            urllib3.PoolManager().request("GET", server.origin, headers=headers)
        return server.arrived[-1].all("X-A")

    assert get() == ["1", "2"]
    origin = server.origin if is_bound else "http://other.example"
    with instrument(Gateway(origin, forward=FORWARD)), session_scope("s1"):
        assert get() == ["1", "2"]
    if not is_bound:
        assert server.arrived[1].raw == server.arrived[0].raw


@pytest.mark.parametrize("several_values", [False, True])
def test_a_pool_that_is_redirected_after_uninstrument_leaves_the_stamp_behind(
    server: Server, several_values: bool
):
    headers = HTTPHeaderDict({"X-A": "1"})
    if several_values:
        headers.add("X-A", "2")
    with Server() as stranger, Proxy() as proxy:

        def respond(request):
            uninstrument()
            return redirect(302, stranger.at("localhost"))

        server.respond = respond
        instrument(Gateway(server.origin, forward=FORWARD, headers={"X-Api-Key": "KEY"}))
        with urllib3.ProxyManager(proxy.origin) as http, session_scope("s1"):
            pool = http.connection_from_url(server.origin)
            pool.urlopen("GET", f"{server.origin}/x", headers=headers, assert_same_host=False)
        assert server.arrived[0].session_id == "s1"
        assert stranger.arrived[0].identifiers == {}
        assert stranger.arrived[0].get("X-Api-Key") is None


@pytest.mark.parametrize("gateways", [[], ["http://other.example"]])
def test_a_path_of_several_slashes_keeps_the_session_of_an_adapter(server: Server, gateways):
    gateway = Gateway(server.origin, forward=FORWARD, require_session=True)
    others = [Gateway(url, forward=FORWARD) for url in gateways]
    with requests.Session() as http, instrument(*others), session_scope("s1"):
        gateway.mount(http)
        http.get(f"{server.origin}//v1/models")
    assert [each.session_id for each in server.arrived] == ["s1"]


def test_a_url_that_no_gateway_owns_is_sent_as_it_is_by_many_threads(server: Server):
    url = f"http://user:password@127.0.0.1:{server.port}/x"
    with requests.Session() as http, instrument(Gateway(server.origin, forward=FORWARD)):
        prepared = http.prepare_request(requests.Request("GET", url))
        with concurrent.futures.ThreadPoolExecutor(8) as pool, session_scope("s1"):
            send = bind_session(http.send)
            list(pool.map(lambda _: send(prepared).close(), range(200)))
    assert len(server.arrived) == 200
    assert all(each.identifiers == {} for each in server.arrived)


def test_a_stamp_comes_off_below_also_in_a_session_that_has_no_header(server: Server):
    gateway = Gateway(
        server.origin, session_headers={"X-Parent": "{parent}"}, headers={"X-Api-Key": "KEY"}
    )

    class Failover(httpx.BaseTransport):
        def __init__(self) -> None:
            self.inner = httpx.HTTPTransport()

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            headers = httpx.Headers(request.headers)
            headers["Host"] = f"localhost:{stranger.port}"
            return self.inner.handle_request(
                httpx.Request("GET", stranger.at("localhost"), headers=headers)
            )

        def close(self) -> None:
            self.inner.close()

    transport = for_httpx.GatewayTransport(gateway, Failover())
    with Server() as stranger, instrument(), session_scope("s1"):
        with httpx.Client(transport=transport) as http:
            http.get(server.origin)
        assert stranger.arrived[0].get("X-Api-Key") is None


@pytest.mark.parametrize("scope", [no_session(), session_scope("s1")], ids=["outside", "inside"])
@pytest.mark.parametrize("name", ["Authorization", "X-Session-ID"])
@pytest.mark.parametrize("by", ["requests", "urllib3", "httpx", "aiohttp"])
def test_a_value_that_was_copied_by_hand_goes_where_the_caller_sends_it(
    server: Server, by: str, name: str, scope: contextlib.AbstractContextManager[object]
):
    gateway = Gateway(
        server.origin, session_header="X-Session-ID", headers={"Authorization": "KEY"}
    )
    with Server() as elsewhere, instrument(gateway), scope:
        sent = requests.get(server.origin, headers={"X-Session-ID": "mine"}, timeout=10).request
        headers = {"X-Copied": sent.headers[name], "X-Cagent-Model": "model"}
        _senders()[by](elsewhere.at("localhost"), headers=headers)
        (arrived,) = elsewhere.arrived
    assert arrived.get("X-Copied") == sent.headers[name]
    assert arrived.get("X-Cagent-Model") == "model"


@pytest.mark.parametrize("scope", [no_session(), session_scope("s1")], ids=["outside", "inside"])
@pytest.mark.parametrize("later", [no_session(), session_scope("s2")], ids=["outside", "inside"])
@pytest.mark.parametrize("only", ["", "x-cagent-forward"], ids=["all", "forward"])
@pytest.mark.parametrize("by", ["requests", "urllib3", "httpx", "aiohttp"])
def test_identifiers_that_were_copied_by_hand_follow_no_redirect(
    server: Server,
    by: str,
    only: str,
    scope: contextlib.AbstractContextManager[object],
    later: contextlib.AbstractContextManager[object],
):
    with Server() as stranger, instrument(Gateway(server.origin, forward=FORWARD)):
        with scope:
            sent = requests.get(server.origin, timeout=10).request
        copied = {
            name: value
            for name, value in sent.headers.items()
            if name.lower().startswith(only or "x-cagent-")
        }
        server.respond = lambda request: redirect(307, stranger.at("localhost"))
        with later:
            _senders()[by](server.origin, headers=copied)
        (arrived,) = stranger.arrived
    assert arrived.identifiers == {}


def _senders() -> dict[str, Any]:
    follow = functools.partial(httpx.get, follow_redirects=True)
    return {
        "requests": requests.get,
        "httpx": follow,
        "urllib3": _by_urllib3,
        "aiohttp": _by_aiohttp,
    }


def _by_urllib3(url: str, headers: dict[str, str]) -> None:
    with urllib3.PoolManager() as http:
        http.request("GET", url, headers=headers)


def _by_aiohttp(url: str, headers: dict[str, str]) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
            await answer.read()

    asyncio.run(main())


def test_byte_and_text_are_never_compared():
    code = """
        import httpx
        from cagent_session import Gateway, instrument
        from cagent_session.integrations.httpx import GatewayTransport
        instrument(Gateway("http://gateway.example", forward="https://api.openai.com/v1"))
        GatewayTransport(Gateway("http://gateway.example", session_header="X-Session-ID"))
        from cagent_session._gate.routes import BARE, Library, Plan
        Plan(BARE, Library({}), ("host",))
        Plan(BARE, Library({}, in_bytes=True), (b"host",))
    """
    command = [sys.executable, "-bb", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
