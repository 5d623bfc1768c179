"""What only urllib3 has: retries in every form, header containers, pools, proxies."""

from __future__ import annotations

import contextlib
import gc
import io
import unittest.mock
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3
from support.lifetime import Watch
from support.wire import Proxy, Server, redirect, response
from urllib3._collections import HTTPHeaderDict
from urllib3.util import Retry

from cagent_session import (
    Gateway,
    GatewayPoolManager,
    GatewayProxyManager,
    gateway_headers,
    instrument,
    no_session,
    session_scope,
    uninstrument,
)

FORWARD = "https://api.openai.com/v1"
MARKERS = gateway_headers(FORWARD) | {"X-Cagent-Session-Id": "mine", "Authorization": "secret"}

RETRIES = {
    "missing": {},
    "None": {"retries": None},
    "int": {"retries": 5},
    "Retry": {"retries": Retry(5)},
    "Retry that removes X-Mine": {
        "retries": Retry(5, remove_headers_on_redirect=["X-Mine", "Authorization"])
    },
    "Retry that removes nothing": {"retries": Retry(5, remove_headers_on_redirect=[])},
}
HEADERS = {
    "dict": dict,
    "HTTPHeaderDict": HTTPHeaderDict,
    "defaults": dict,
}


@pytest.fixture(autouse=True)
def _switched_off() -> Iterator[None]:
    yield
    uninstrument()


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("retries", RETRIES)
@pytest.mark.parametrize("on_manager", [True, False])
class TestRedirects:
    def ask(self, url, kind, retries, on_manager, manager_class):
        """Send the markers in one of the ways, and say whether they were changed."""
        headers = HEADERS[kind](MARKERS | {"X-Mine": "1"})
        before = list(headers.items())
        options = RETRIES[retries]
        on_request = {} if on_manager else options
        for_manager = options if on_manager else {}
        if kind == "defaults":
            for_manager = for_manager | {"headers": headers}
        else:
            on_request = on_request | {"headers": headers}
        with manager_class(**for_manager) as http, session_scope("s1"):
            status = http.request("GET", url, **on_request).status
        assert list(headers.items()) == before or manager_class is urllib3.PoolManager
        return status

    def test_to_a_stranger_leave_the_identifiers_behind(self, kind, retries, on_manager):
        """And are else what they are without us, whatever was asked for."""
        with Server() as stranger, Server(lambda r: redirect(302, stranger.origin)) as server:
            for manager_class in (urllib3.PoolManager, GatewayPoolManager):
                status = self.ask(server.origin, kind, retries, on_manager, manager_class)
                assert status == 200
            plain, ours = stranger.arrived
        assert plain.identifiers
        assert ours.identifiers == {}
        assert ours.get("X-Mine") == plain.get("X-Mine")
        assert ours.get("Authorization") == plain.get("Authorization")


@pytest.mark.parametrize("retries", [False, 0, Retry(0, redirect=0, raise_on_redirect=False)])
def test_no_more_redirects_than_were_asked_for(retries):
    outcomes = []
    with Server(lambda request: redirect(302, "/again")) as server:
        for manager_class in (urllib3.PoolManager, GatewayPoolManager):
            with manager_class() as http, session_scope("s1"):
                try:
                    answer = http.request("GET", server.origin, headers=MARKERS, retries=retries)
                    outcomes.append(answer.status)
                except urllib3.exceptions.MaxRetryError as error:
                    outcomes.append(type(error))
        assert len(server.arrived) == 2
    assert outcomes[0] == outcomes[1]


def test_a_pool_is_stamped_too(server: Server):
    """As botocore uses it: from the manager to a pool, with the target alone."""
    gateway = Gateway(f"{server.origin}/p?tenant=a", forward=FORWARD)
    with GatewayPoolManager(gateway) as http, session_scope("s1"):
        pool = http.connection_from_url(server.origin)
        pool.urlopen("GET", "/p/x", headers={"A": "b"}, retries=Retry(False), redirect=False)
        pool.request("GET", "/p/y")
        pool.urlopen("GET", "/else")
    assert [request.session_id for request in server.arrived] == ["s1", "s1", None]
    assert [request.target for request in server.arrived] == [
        "/p/x?tenant=a",
        "/p/y?tenant=a",
        "/else",
    ]


@pytest.mark.parametrize("by", ["manager", "instrument", "instrument, requests"])
def test_a_name_that_is_turned_into_another_host_counts_as_that_host(server: Server, by: str):
    name = server.at("gateway.test")
    gateway = Gateway(server.origin, forward=FORWARD)

    class Pinned(GatewayPoolManager if by == "manager" else urllib3.PoolManager):  # type: ignore[misc]
        def connection_from_host(self, host, *args, **kwargs):
            return super().connection_from_host("127.0.0.1", *args, **kwargs)

    class PinnedAdapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            self.poolmanager = Pinned()

    if by != "manager":
        instrument(gateway)
    with session_scope("s1"), requests.Session() as http:
        if by == "instrument, requests":
            http.mount("http://", PinnedAdapter())
            http.get(name)
        else:
            (Pinned(gateway) if by == "manager" else Pinned()).request("GET", name)
    assert (server.arrived[0].forward, server.arrived[0].session_id) == (FORWARD, "s1")


def test_a_full_url_does_not_talk_a_pool_into_stamping(server: Server):
    """The request goes where the pool goes, whatever host its target names."""
    gateway = Gateway("http://gateway.example", forward=FORWARD)
    with GatewayPoolManager(gateway) as http, session_scope("s1"):
        pool = http.connection_from_url(server.origin)
        pool.urlopen("GET", "http://gateway.example/x", assert_same_host=False)
    assert server.arrived[0].identifiers == {}


class TestPools:
    """Used directly, they decide as the manager's do."""

    def test_a_full_url_of_its_own(self, server: Server):
        gateway = Gateway(f"{server.origin}/p?tenant=a", forward=FORWARD)
        with GatewayPoolManager(gateway) as http, session_scope("s1"):
            pool = http.connection_from_url(server.origin)
            pool.urlopen("GET", f"{server.origin}/p/x")
            pool.urlopen("GET", f"{server.origin}/else")
        owned, other = server.arrived
        assert (owned.session_id, owned.target) == ("s1", f"{server.origin}/p/x?tenant=a")
        assert other.identifiers == {}

    @pytest.mark.parametrize("was_instrumented", [True, False])
    @pytest.mark.parametrize("query", ["", "?tenant=a"])
    def test_a_target_that_urllib3_has_to_escape(
        self, server: Server, query: str, was_instrumented: bool
    ):
        gateway = Gateway(f"{server.origin}/p{query}", forward=FORWARD)
        if was_instrumented:
            instrument()
            uninstrument()
        with GatewayPoolManager(gateway) as http, session_scope("s1"):
            http.connection_from_url(server.origin).request("GET", "/p/a b?c=d e")
        (arrived,) = server.arrived
        target = f"/p/a%20b?c=d%20e{query.replace('?', '&')}"
        assert (arrived.session_id, arrived.target) == ("s1", target)

    def test_an_ipv6_host_without_brackets(self):
        with Server(host="::1") as server:
            gateway = Gateway(server.origin, forward=FORWARD)
            with GatewayPoolManager(gateway) as http, session_scope("s1"):
                http.connection_from_host("::1", server.port, "http").urlopen("GET", "/x")
            assert server.arrived[0].session_id == "s1"

    @pytest.mark.parametrize("marking", ["gateway", "call"])
    @pytest.mark.parametrize("status", [302, 303, 307])
    def test_a_redirect_that_a_pool_follows(self, server: Server, marking: str, status: int):
        """As one that the manager follows: what is not the gateway's gets no marks of its."""
        targets = {"/p/1": "/p/2", "/p/2": "/else", "/else": "/p/3", "/p/3": None}

        def respond(request):
            target = targets[request.path]
            return redirect(status, target) if target else response()

        server.respond = respond
        gateway = Gateway(f"{server.origin}/p", forward=FORWARD, parent_header="X-Parent")
        gateway = gateway if marking == "gateway" else None
        headers = {"X-A": "b"} | (MARKERS if marking == "call" else {})
        seen = []
        for through in ("manager", "pool"):
            server.arrived.clear()
            with GatewayPoolManager(gateway) as http, session_scope("s0"), session_scope("s1"):
                if through == "manager":
                    http.request("GET", f"{server.origin}/p/1", headers=headers)
                else:
                    http.connection_from_url(server.origin).urlopen("GET", "/p/1", headers=headers)
            seen.append([sorted((k.lower(), v) for k, v in r.headers) for r in server.arrived])
        assert seen[0] == seen[1]
        sessions = [dict(headers).get("x-cagent-session-id") for headers in seen[0]]
        assert sessions == ["s1", "s1", "s1" if marking == "call" else None, "s1"]

    @pytest.mark.parametrize("marking", ["gateway", "call"])
    def test_a_redirect_to_another_host_that_a_pool_follows(self, server: Server, marking: str):
        """A pool that need not stay with its host sends it the full URL, to relay it or not."""
        server.respond = lambda r: (
            response() if "://" in r.target else redirect(307, "http://stranger.example/x")
        )
        gateway = Gateway(server.origin, forward=FORWARD) if marking == "gateway" else None
        headers = MARKERS if marking == "call" else {"X-Cagent-Session-Id": "mine"}
        with GatewayPoolManager(gateway) as http, session_scope("s1"):
            pool = http.connection_from_url(server.origin)
            pool.urlopen("GET", "/1", headers=headers, assert_same_host=False)
        first, second = server.arrived
        assert first.session_id == "s1"
        assert second.target == "http://stranger.example/x"
        assert second.identifiers == {}

    def test_a_class_that_copies_headers_by_their_class(self, server: Server):
        class Pool(urllib3.HTTPConnectionPool):
            def urlopen(self, method, url, body=None, headers=None, **options):
                mine = type(headers)(headers)
                mine["X-Mine"] = "1"
                return super().urlopen(method, url, body, mine.copy(), **options)

        gateway = Gateway(server.origin, forward=FORWARD)
        with GatewayPoolManager(gateway) as http, session_scope("s1"):
            http.pool_classes_by_scheme = {"http": Pool}
            http.request("GET", gateway.endpoint("x"))
            http.request("GET", gateway.endpoint("x"), headers={"X-Cagent-Model": "m"})
        for arrived in server.arrived:
            assert (arrived.get("X-Mine"), arrived.session_id) == ("1", "s1")

    def test_classes_that_are_put_in_later(self, server: Server):
        """As botocore does."""

        class Pool(urllib3.HTTPConnectionPool):
            """Somebody's own."""

        gateway = Gateway(server.origin, forward=FORWARD)
        with GatewayPoolManager(gateway) as http, session_scope("s1"):
            http.pool_classes_by_scheme = {"http": Pool, "https": urllib3.HTTPSConnectionPool}
            http.request("GET", f"{server.origin}/1")
            pool = http.connection_from_url(server.origin)
            assert isinstance(pool, Pool)
            http.clear()
            http.pool_classes_by_scheme["http"] = type(pool)
            http.request("GET", f"{server.origin}/2")
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]


class TestARedirectThatIsRetriedFirst:
    """Its history has two entries for one hop, the pool's own with a path alone."""

    @pytest.mark.parametrize("through", ["nothing", "a proxy"])
    @pytest.mark.parametrize("marking", ["gateway", "call"])
    def test_leaves_the_identifiers_behind(self, server: Server, marking: str, through: str):
        with Server() as stranger, Proxy() as proxy:
            away = redirect(302, f"{stranger.origin}/there")
            answers = iter([away, redirect(307, f"{stranger.origin}/there")])
            server.respond = lambda request: next(answers)
            gateway = Gateway(server.origin, forward=FORWARD) if marking == "gateway" else None
            retries = Retry(5, status_forcelist=[302], backoff_factor=0)
            if through == "nothing":
                http = GatewayPoolManager(gateway, retries=retries)
            else:
                http = GatewayProxyManager(proxy.origin, gateway, retries=retries)
            with http, session_scope("s1"):
                http.request("GET", f"{server.origin}/here", headers=MARKERS)
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]
            assert [request.identifiers for request in stranger.arrived] == [{}]


def test_a_pool_class_that_takes_keywords(server: Server):
    """Its urlopen is called the way that the manager, or whoever has the pool, calls it."""

    class Patient(urllib3.HTTPConnectionPool):
        def urlopen(self, method, url, **options):
            options.setdefault("timeout", 5)
            return super().urlopen(method, url, **options)

    http = GatewayPoolManager(Gateway(server.origin, forward=FORWARD))
    http.pool_classes_by_scheme = {"http": Patient}
    with http, session_scope("s1"):
        http.request("GET", server.origin)
        http.connection_from_url(server.origin).request("GET", "/")
    assert [request.session_id for request in server.arrived] == ["s1", "s1"]


SPELLINGS = [
    "http://127.0.0.1:{port}/p/./x",
    "http://127.0.0.1:{port}/q/../p/x",
    "http://127.0.0.1:{port}/%70/x",
    "HTTP://127.0.0.1:{port}/p/x#fragment",
    "127.0.0.1:{port}/p/x",
    "//127.0.0.1:{port}/p/x",
    "http://127.0.0.1:0{port}/p/x",
    "http://%31%32%37.0.0.1:{port}/p/x",
    "http://us er:x@127.0.0.1:{port}/p/x",
    "http://user@127.0.0.1:{port}/p/x",
]


@pytest.mark.filterwarnings("ignore:URLs without a scheme:FutureWarning")
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("marking", ["gateway", "call"])
@pytest.mark.parametrize("hops", [1, 2])
def test_every_spelling_of_the_gateways_url(spelling: str, marking: str, hops: int):
    """There is one reading, of where the request goes and of where the redirect came from."""
    with Server() as stranger, Server() as server:
        away = redirect(307, f"{stranger.origin}/there")
        server.respond = lambda r: (
            redirect(307, "/else") if hops == 2 and r.path != "/else" else away
        )
        gateway = Gateway(f"{server.origin}/p", forward=FORWARD) if marking == "gateway" else None
        headers = {"X-Cagent-Session-Id": "mine", "X-Cagent-Model": "m"}
        if marking == "call":
            headers |= gateway_headers(FORWARD)
        with GatewayPoolManager(gateway) as http, session_scope("s1"):
            try:
                http.request("GET", spelling.format(port=server.port), headers=headers)
            except urllib3.exceptions.HTTPError:
                pass  # a spelling that this urllib3 cannot send, or not follow to the end
            else:
                assert len(server.arrived) == hops
                assert len(stranger.arrived) == 1
        assert {request.session_id for request in server.arrived[:1]} <= {"s1"}
        assert [request.identifiers for request in stranger.arrived] in ([], [{}])


def test_a_marker_that_a_redirect_takes_off_counts_all_the_same():
    """Whoever lists it in remove_headers_on_redirect has not listed all of them."""
    with Server() as stranger, Server(lambda r: redirect(302, stranger.origin)) as server:
        retries = Retry(5, remove_headers_on_redirect=["X-Cagent-Forward"])
        with GatewayPoolManager() as http, session_scope("s1"):
            http.request("GET", server.origin, headers=MARKERS, retries=retries)
        assert server.arrived[0].session_id == "s1"
        assert stranger.arrived[0].identifiers == {}


@pytest.mark.parametrize("kind", [dict, HTTPHeaderDict])
def test_names_in_bytes_and_several_spellings(server: Server, kind):
    headers = kind({"X-A": "1"})
    headers[b"x-cagent-FORWARD"] = FORWARD
    headers[b"X-Cagent-Session-Id"] = "mine"
    if kind is dict:
        headers["x-a"] = "2"
    else:
        headers.add("x-a", "2")
    before = list(headers.items())
    with GatewayPoolManager() as http, session_scope("s1"):
        http.request("GET", server.origin, headers=headers)
    (arrived,) = server.arrived
    assert (arrived.forward, arrived.session_id) == (FORWARD, "s1")
    assert arrived.all("X-A") == ["1", "2"]
    assert list(headers.items()) == before


def test_an_accept_that_a_proxy_gets_is_no_choice_of_the_callers(server: Server):
    gateway = Gateway(server.origin, forward=FORWARD, headers={"Accept": "application/json"})
    with Proxy() as proxy:
        for http in (GatewayProxyManager(proxy.origin, gateway), GatewayPoolManager(gateway)):
            with http:
                http.request("GET", server.origin)
                http.request("GET", server.origin, headers={"Accept": "text/plain"})
    accepts = [request.get("Accept") for request in server.arrived]
    assert accepts == ["application/json", "text/plain"] * 2


@pytest.mark.parametrize("switched_on", ["manager", "instrument"])
def test_no_headers_at_all_are_not_those_of_the_manager(server: Server, switched_on: str):
    """``headers=None`` keeps a manager's own headers off a call."""
    own = MARKERS | {"Authorization": "Bearer own"}
    if switched_on == "instrument":
        instrument()
    manager = urllib3.PoolManager if switched_on == "instrument" else GatewayPoolManager
    with manager(headers=own) as http, session_scope("s1"):
        http.urlopen("GET", server.origin, headers=None)
        http.urlopen("GET", server.origin)
    assert [request.get("Authorization") for request in server.arrived] == [None, "Bearer own"]
    assert [request.session_id for request in server.arrived] == [None, "s1"]


def test_retries_are_stamped(server: Server):
    answers = iter([response(503), response(429, headers={"Retry-After": "0"}), response()])
    server.respond = lambda request: next(answers)
    gateway = Gateway(server.origin, forward=FORWARD)
    retry = Retry(3, status_forcelist=[503], backoff_factor=0)
    with GatewayPoolManager(gateway, retries=retry) as http, session_scope("s1"):
        assert http.request("GET", server.origin).status == 200
    assert [request.session_id for request in server.arrived] == ["s1"] * 3


def test_bodies_that_stream(server: Server):
    gateway = Gateway(server.origin, forward=FORWARD)
    with GatewayPoolManager(gateway) as http, session_scope("s1"):
        http.request("POST", server.origin, body=io.BytesIO(b"content"))
        answer = http.request("POST", server.origin, body=b"x", preload_content=False)
        assert b"".join(answer.stream()) == b"{}"
        answer.release_conn()
    assert [request.session_id for request in server.arrived] == ["s1", "s1"]
    assert b"content" in server.arrived[0].body


def test_an_openapi_style_client(recording_gateway):
    """The generated rest.py keeps a manager, and calls request() with everything spelt out."""

    class RESTClientObject:
        def __init__(self, gateway):
            self.pool_manager = GatewayPoolManager(gateway, num_pools=4, maxsize=4)

        def request(self, method, url, headers, body):
            return self.pool_manager.request(
                method,
                url,
                body=body,
                timeout=urllib3.Timeout(total=10),
                headers=headers,
                preload_content=False,
            )

    gateway = Gateway(recording_gateway.url, forward=FORWARD)
    client = RESTClientObject(gateway)
    headers = {"Content-Type": "application/json", "User-Agent": "OpenAPI-Generator/1.0.0/python"}
    with client.pool_manager, session_scope("s1"):
        answer = client.request("POST", gateway.endpoint("v1/things"), headers, b"{}")
        assert answer.status == 200
        answer.read()
    (request,) = recording_gateway.requests
    assert request.session_id == "s1"
    assert request.headers["User-Agent"] == "OpenAPI-Generator/1.0.0/python"


def test_a_signed_request_that_nothing_is_set_on_passes_the_gate_once(server: Server):
    """Its names are not all text, so the headers that are sent are not of the usual kind."""
    in_bytes = {"Signature-Input": "sig=()", b"X-Cagent-Forward": FORWARD.encode()}
    several = HTTPHeaderDict({"Signature-Input": "sig=()", "X-Cagent-Forward": FORWARD, "X-A": "1"})
    several.add("X-A", "2")
    gateway = Gateway(server.origin, forward=FORWARD)
    with GatewayPoolManager() as http, instrument(gateway), no_session():
        for headers in (in_bytes, several):
            http.request("GET", server.origin, headers=headers)
    marks = {"x-cagent-forward": FORWARD}
    assert [arrived.identifiers for arrived in server.arrived] == [marks, marks]


class TestProxies:
    def test_no_identifier_is_in_the_connect(self, tls):
        with Server(tls=tls.context) as server, Proxy() as proxy:
            gateway = Gateway(server.at("localhost"), forward=FORWARD)
            http = GatewayProxyManager(proxy.origin, gateway, ca_certs=tls.ca)
            with http, session_scope("s1"):
                http.request("GET", gateway.endpoint("x"))
            (connect,) = proxy.arrived
            assert connect.method == "CONNECT"
            assert connect.identifiers == {}
            assert b"s1" not in connect.raw
            assert server.arrived[0].session_id == "s1"

    def test_through_a_proxy_that_forwards(self, server: Server):
        gateway = Gateway(f"{server.origin}/p?tenant=a", forward=FORWARD)
        with (
            Proxy() as proxy,
            GatewayProxyManager(proxy.origin, gateway) as http,
            session_scope("s1"),
        ):
            http.request("GET", gateway.endpoint("x"))
            http.request("GET", f"{server.origin}/else")
        first, second = server.arrived
        assert (first.session_id, first.target) == ("s1", "/p/x?tenant=a")
        assert (second.identifiers, second.target) == ({}, "/else")

    # requests does not verify such a proxy.
    @pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
    @pytest.mark.parametrize("by", ["manager", "call", "instrument", "requests"])
    def test_through_a_proxy_that_forwards_and_speaks_tls(self, server: Server, tls, by: str):
        gateway = Gateway(f"{server.origin}/p", forward=FORWARD)
        with Proxy(tls=tls.context) as proxy, session_scope("s1"):
            proxy_url = proxy.at("localhost")
            if by == "manager":
                http: Any = GatewayProxyManager(proxy_url, gateway, ca_certs=tls.ca)
                http.request("GET", gateway.endpoint("x"))
            elif by == "call":
                http = GatewayProxyManager(proxy_url, ca_certs=tls.ca)
                http.request("GET", gateway.endpoint("x"), headers=MARKERS)
            elif by == "instrument":
                http = urllib3.ProxyManager(proxy_url, ca_certs=tls.ca)
                with instrument(gateway):
                    http.request("GET", gateway.endpoint("x"))
            else:
                http = requests.Session()
                with instrument(gateway):
                    http.get(gateway.endpoint("x"), proxies={"http": proxy_url}, verify=tls.ca)
            (http.close if by == "requests" else http.clear)()
        assert server.arrived[0].session_id == "s1"

    def test_it_gets_no_stamp_for_a_gateway_that_it_cannot_forward_to(self, tls):
        """A pool follows a redirect to https by asking the same proxy, without a tunnel."""
        with Server() as server, Proxy() as proxy:
            gateway = Gateway("https://localhost:9", forward=FORWARD, headers={"X-Api-Key": "key"})
            server.respond = lambda request: redirect(307, gateway.endpoint("x"))
            with GatewayProxyManager(proxy.origin, gateway) as http, session_scope("s1"):
                pool = http.connection_from_url(server.origin)
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    pool.urlopen("GET", server.origin, assert_same_host=False, retries=1)
            assert [arrived.identifiers for arrived in proxy.arrived[:2]] == [{}, {}]
            assert proxy.arrived[1].get("X-Api-Key") is None

    def test_a_path_is_for_a_proxy_that_forwards_itself(self, tls):
        """urllib3 sends such a proxy the target of a redirect as it is spelt, without the host."""
        gateway = Gateway("https://gateway.example", forward=FORWARD, headers={"X-Api-Key": "key"})
        with Proxy(tls=tls.context) as proxy, session_scope("s1"):
            options = {"use_forwarding_for_https": True, "ca_certs": tls.ca, "retries": False}
            with GatewayProxyManager(proxy.at("localhost"), gateway, **options) as http:
                pool = http.connection_from_url(gateway.url)
                for target in (gateway.endpoint("x"), "/x"):
                    pool.urlopen("GET", target, preload_content=True)
        full, path = proxy.arrived
        assert (full.session_id, full.get("X-Api-Key")) == ("s1", "key")
        assert (path.target, path.identifiers, path.get("X-Api-Key")) == ("/x", {}, None)

    def test_a_pool_made_by_hand_asks_its_own_host(self, server: Server):
        """It knows a proxy, but connects to the host that it was made for."""
        gateway = Gateway("https://gateway.example", forward=FORWARD, headers={"X-Api-Key": "key"})
        proxy = urllib3.util.parse_url("http://proxy.example:3128")
        pool = urllib3.HTTPConnectionPool("127.0.0.1", server.port, _proxy=proxy)
        with instrument(gateway), session_scope("s1"):
            pool.urlopen("GET", gateway.endpoint("x"), assert_same_host=False)
        pool.close()
        (arrived,) = server.arrived
        assert (arrived.identifiers, arrived.get("X-Api-Key")) == ({}, None)

    @pytest.mark.parametrize("marking", ["gateway", "call"])
    def test_redirects_through_a_proxy_that_forwards(self, marking: str):
        with Server() as stranger, Proxy() as proxy:

            def respond(request):
                targets = {"/1": "/2", "/2": f"{stranger.origin}/3"}
                return redirect(302, targets[request.path])

            with Server(respond) as server:
                gateway = Gateway(server.origin, forward=FORWARD) if marking == "gateway" else None
                headers = None if gateway else MARKERS
                with GatewayProxyManager(proxy.origin, gateway) as http, session_scope("s1"):
                    http.request("GET", f"{server.origin}/1", headers=headers)
                assert [request.session_id for request in server.arrived] == ["s1", "s1"]
            (arrived,) = stranger.arrived
        assert arrived.identifiers == {}


def test_does_not_keep_every_class_of_pools_that_it_has_met():
    """A program may make a class in each call of a function."""

    def watched() -> Watch:
        class Pool(urllib3.HTTPConnectionPool):
            pass

        with GatewayPoolManager() as http:
            http.pool_classes_by_scheme = {"http": Pool}
            http.connection_from_url("http://gateway.example")
        return Watch(Pool)

    watches = [watched() for _ in range(600)]
    gc.collect()
    assert sum(watch.is_gone for watch in watches) > 300


def test_takes_what_the_plain_ones_take():
    with GatewayPoolManager(None, num_pools=3, headers={"A": "b"}, maxsize=2) as http:
        assert http.headers == {"A": "b"}
        assert http.connection_pool_kw == {"maxsize": 2}
    with pytest.raises(TypeError, match="gateway must be a Gateway or None, not int"):
        GatewayPoolManager(10)
    with pytest.raises(TypeError):
        GatewayPoolManager(None, 10)


class _OfTheirOwn(HTTPHeaderDict):
    pass


@pytest.mark.parametrize("kind", [dict, HTTPHeaderDict, _OfTheirOwn])
def test_values_in_bytes(server: Server, kind):
    with GatewayPoolManager(Gateway(server.origin, forward=FORWARD)) as http, session_scope("s1"):
        http.request("GET", server.origin, headers=kind({"X-Key": b"v"}))
    (arrived,) = server.arrived
    assert (arrived.get("X-Key"), arrived.session_id) == ("v", "s1")


def test_a_mock_in_place_of_the_response(monkeypatch: pytest.MonkeyPatch):
    answer = unittest.mock.Mock(status=200)
    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", lambda *args, **options: answer)
    gateway = Gateway("http://gateway.example", forward=FORWARD)
    with GatewayPoolManager(gateway) as http, session_scope("s1"):
        assert http.request("GET", gateway.url, redirect=False) is answer
