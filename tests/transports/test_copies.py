"""requests: identifiers do not survive a copy, and return at the origin that they were for."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import HTTPDigestAuth
from requests.structures import CaseInsensitiveDict
from support.lifetime import Watch
from support.wire import Proxy, Server, redirect, response
from urllib3._collections import HTTPHeaderDict

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayMixin,
    GatewayPoolManager,
    GatewayProxyManager,
    gateway_headers,
    instrument,
    no_session,
    session_scope,
    uninstrument,
)

FORWARD = "https://api.openai.com/v1"
MARKERS = gateway_headers(FORWARD, provider="openai") | {"X-Cagent-Session-Id": "mine"}


@pytest.fixture
def http():
    with requests.Session() as http:
        http.trust_env = False
        yield http


@pytest.fixture(params=["gateway", "call", "session", "prepared"])
def marked(request, http):
    """Send a request to a server that is marked in one of the ways, through adapters of ours."""

    def send(server: Server, path: str = "/here", adapter=None, **options) -> requests.Response:
        url = f"{server.origin}{path}"
        if request.param == "gateway":
            gateway = Gateway(server.origin, forward=FORWARD, provider="openai")
            adapter = adapter or GatewayAdapter(gateway)
        else:
            adapter = adapter or GatewayAdapter()
        http.mount("http://", adapter)
        headers = MARKERS if request.param in ("call", "prepared") else None
        if request.param == "session":
            http.headers.update(MARKERS)
        with session_scope("s1"):
            if request.param == "prepared":
                prepared = requests.Request("POST", url, data=b"body", headers=headers).prepare()
                return http.send(prepared, timeout=10, **options)
            return http.post(url, data=b"body", headers=headers, timeout=10, **options)

    return send


SPELLINGS = [
    "http://{stranger}/there",
    "HTTP://{stranger}",
    "//{stranger}/there",
    "///{stranger}/there",
    "////{stranger}/there",
    "http:////{stranger}/there",
    "http:///{stranger}/there",
    "http:/{stranger}/there",
    "http:{stranger}/there",
    "\\\\\\\\{stranger}/there",
    "/\\\\{stranger}/there",
    "http:\\\\\\\\{stranger}/there",
    "http://{gateway}@{stranger}/there",
    "http://{stranger}\\\\@{gateway}/there",
    "http://{stranger}#@{gateway}/",
    "http://{stranger}?@{gateway}/",
    "\thttp://{stranger}/there",
    "http://{stranger}\t/there",
    "http://{stranger}:/there",
    "//{gateway}/\\\\..//{stranger}/",
    "http://[::ffff:127.0.0.1]:{stranger_port}/there",
    "http://0177.0.0.1:{stranger_port}/there",
    "http://2130706433:{stranger_port}/there",
    "http://%31%32%37.0.0.1:{stranger_port}/there",
    "http://127.0.0.1:0{stranger_port}/there",
    "http://localhost:{stranger_port}/there",
    "http://{gateway}.localhost:{stranger_port}/",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("status", [301, 303, 307])
def test_no_spelling_of_a_location_takes_them_to_a_stranger(marked, spelling: str, status: int):
    with Server(host="0.0.0.0") as stranger, Server() as server:
        location = spelling.replace("\\\\", "\\").format(
            stranger=f"127.0.0.1:{stranger.port}",
            stranger_port=stranger.port,
            gateway=f"127.0.0.1:{server.port}",
        )
        server.respond = lambda r: redirect(status, location) if r.path == "/here" else response()
        with contextlib.suppress(requests.RequestException, ValueError):  # what requests refuses
            marked(server)
        assert server.arrived[0].session_id == "s1"
        for arrived in stranger.arrived:
            assert arrived.identifiers == {}
            assert b"s1" not in arrived.raw


class TestWhoCopies:
    """Whoever makes the next request, it has no identifier that is not for its origin."""

    @pytest.fixture
    def stranger(self):
        with Server() as stranger:
            yield stranger
            assert stranger.arrived
            for arrived in stranger.arrived:
                assert arrived.identifiers == {}
                assert b"s1" not in arrived.raw

    def test_resolve_redirects(self, marked, http, stranger: Server):
        with Server(lambda r: redirect(302, stranger.origin)) as server:
            answer = marked(server, allow_redirects=False)
            list(http.resolve_redirects(answer, answer.request))

    def test_the_next_request_of_a_response(self, marked, http, stranger: Server):
        with Server(lambda r: redirect(302, stranger.origin)) as server:
            answer = marked(server, allow_redirects=False)
            http.send(answer.next)
            with requests.Session() as plain:
                plain.send(answer.next)

    @pytest.mark.parametrize(
        "make",
        [
            lambda sent: sent.copy(),
            copy.copy,
            copy.deepcopy,
            lambda sent: copy.deepcopy(sent).copy(),
            lambda sent: sent.copy().copy(),
            lambda sent: _with_headers(sent, sent.headers.copy()),
            lambda sent: _with_headers(sent, copy.copy(sent.headers)),
        ],
        ids=["copy", "copy.copy", "deepcopy", "both", "twice", "headers", "copy of headers"],
    )
    @pytest.mark.parametrize("through", ["ours", "plain"])
    def test_a_hook_that_sends_a_copy_elsewhere(self, stranger: Server, make, through):
        def hook(answer, **options):
            if answer.url.startswith(stranger.origin):
                return answer
            again = make(answer.request)
            again.url = stranger.origin
            adapter = answer.connection if through == "ours" else HTTPAdapter()
            return adapter.send(again, **options)

        with Server() as server, requests.Session() as http:
            http.hooks["response"].append(hook)
            gateway = Gateway(server.origin, forward=FORWARD)
            gateway.mount(http)
            with session_scope("s1"):
                http.get(server.origin, headers=MARKERS)

    @pytest.mark.parametrize("make", [lambda sent: sent.copy(), copy.copy, copy.deepcopy])
    def test_a_hook_that_sends_again_and_is_then_redirected(self, stranger, make):
        """The client makes the next hop from the request that it was given, not from the hook's."""

        def hook(answer, **options):
            if "X-Again" in answer.request.headers:
                return answer
            again = make(answer.request)
            again.headers = again.headers.copy()
            again.headers["X-Again"] = "1"
            return answer.connection.send(again, **options)

        def respond(request):
            return redirect(307, stranger.origin) if request.get("X-Again") else response()

        with Server(respond) as server, requests.Session() as http:
            http.hooks["response"].append(hook)
            Gateway(server.origin, forward=FORWARD).mount(http)
            with session_scope("s1"):
                http.get(server.origin, headers=MARKERS)
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    def test_digest_authentication(self, stranger: Server):
        def respond(request):
            if request.get("Authorization") is None:
                challenge = 'Digest realm="r", nonce="n", qop="auth"'
                return response(401, b"", {"WWW-Authenticate": challenge})
            return redirect(307, stranger.origin)

        with Server(respond) as server:
            with requests.Session() as http:
                http.mount(server.origin, GatewayAdapter())
                with session_scope("s1"):
                    http.get(server.origin, headers=MARKERS, auth=HTTPDigestAuth("u", "p"))
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    def test_two_hops_with_an_adapter_that_is_mounted_at_a_path(self, http, stranger: Server):
        """The second hop goes over the plain adapter, which takes nothing off."""

        def respond(request):
            return redirect(307, "/else" if request.path == "/p/1" else stranger.origin)

        with Server(respond) as server:
            http.mount(f"{server.origin}/p", GatewayAdapter())
            with session_scope("s1"):
                http.get(f"{server.origin}/p/1", headers=MARKERS)
            assert [request.path for request in server.arrived] == ["/p/1", "/else"]

    def test_a_location_that_no_prefix_matches(self, http, stranger: Server):
        """requests does not normalise a redirect's target, so a bare origin has no slash."""
        with Server() as server:
            targets = {"/p/1": server.origin, "/": stranger.origin}
            server.respond = lambda request: redirect(307, targets[request.path])
            http.mount(f"{server.origin}/", GatewayAdapter())
            with session_scope("s1"):
                http.get(f"{server.origin}/p/1", headers=MARKERS)
            assert len(server.arrived) == 2

    def test_a_gateway_that_does_not_own_the_second_hop(self, http, stranger: Server):
        """Bound at some hop is enough: what the caller set then stays with the origin."""

        def respond(request):
            return redirect(307, "/else" if request.path == "/p/1" else stranger.origin)

        with Server(respond) as server:
            http.mount("http://", GatewayAdapter(Gateway(f"{server.origin}/p", forward=FORWARD)))
            headers = {"X-Cagent-Session-Id": "mine", "X-Cagent-Model": "m"}
            http.get(f"{server.origin}/p/1", headers=headers)
            assert [request.session_id for request in server.arrived] == ["mine", "mine"]

    @pytest.mark.parametrize("follow", ["by hand", "client"])
    def test_a_session_header_of_the_gateways_own_after_a_hop_to_another_path(
        self, http, stranger: Server, follow
    ):
        """The second hop, which no gateway owns, has to know that name, too."""

        def respond(request):
            return redirect(307, "/else" if request.path == "/p/1" else f"{stranger.origin}/")

        with Server(respond) as server:
            gateway = Gateway(f"{server.origin}/p", forward=FORWARD, session_header="X-Session-ID")
            http.mount("http://", GatewayAdapter(gateway))
            headers = gateway_headers(FORWARD) | {"X-Session-ID": "s1"}
            with session_scope("s1"):
                url = f"{server.origin}/p/1"
                if follow == "by hand":
                    answer = http.get(url, allow_redirects=False)
                    list(http.resolve_redirects(answer, answer.request))
                else:
                    http.get(url, headers=headers)
            assert [request.get("X-Session-ID") for request in server.arrived] == ["s1", "s1"]

    def test_a_copy_whose_url_is_changed_after_it_was_sent(self, http, stranger: Server):
        """Identifiers that were put back into a copy are no more its own than they were before."""
        with Server() as server:
            http.mount("http://", GatewayAdapter())
            with session_scope("s1"):
                twin = http.get(server.origin, headers=MARKERS).request.copy()
                http.send(twin)
                twin.url = stranger.origin
                http.send(twin)
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]


@pytest.mark.parametrize("again", ["copy", "resolve_redirects"])
def test_a_copy_gets_the_marks_of_the_gateway_it_goes_to(http, again):
    """Two providers behind one host: the key of one is not for the other."""

    def respond(request):
        return redirect(307, "/b") if request.path == "/a" else response()

    with Server(respond) as server, Server() as stranger:
        for name in ("a", "b"):
            forward = f"https://{name}.example"
            gateway = Gateway(f"{server.origin}/{name}", forward=forward, headers={"X-Key": name})
            gateway.mount(http)
        sent = http.get(f"{server.origin}/a", allow_redirects=False)
        if again == "copy":
            twin = sent.request.copy()
            twin.url = f"{server.origin}/b"
            http.send(twin)
        else:
            list(http.resolve_redirects(sent, sent.request))
        arrived = server.arrived[-1]
        assert (arrived.path, arrived.get("X-Cagent-Forward")) == ("/b", "https://b.example")
        assert arrived.get("X-Key") == "b"
        twin = sent.request.copy()
        twin.url = stranger.origin
        http.send(twin)
        assert stranger.arrived[0].get("X-Key") is None


@pytest.mark.parametrize("again", ["copy", "redirect", "twice"])
@pytest.mark.parametrize("switched_on", ["adapter", "instrument"])
def test_a_bare_gate_leaves_a_copy_for_the_inner_gateway_to_that(http, again, switched_on: str):
    def respond(request):
        return redirect(307, "/inner") if request.path == "/outer" else response()

    with Server(respond) as server, session_scope("s1"):
        outer = Gateway(server.origin, forward=FORWARD, headers={"X-Key": "outer"})
        inner = Gateway(f"{server.origin}/inner", session_header="X-Inner", headers={"X-Key": "in"})
        with instrument(outer, inner):
            if switched_on == "adapter":
                http.mount("http://", GatewayAdapter())
            sent = http.get(f"{server.origin}/outer", allow_redirects=False)
            if again == "redirect":
                list(http.resolve_redirects(sent, sent.request))
            else:
                twin = sent.request.copy()
                if again == "twice":
                    twin.url = f"{server.origin}/else"
                    twin = http.send(twin).request.copy()
                    assert server.arrived[-1].get("X-Key") == "outer"
                twin.url = f"{server.origin}/inner"
                http.send(twin)
        arrived = server.arrived[-1]
        assert (arrived.path, arrived.get("X-Key"), arrived.get("X-Inner")) == (
            "/inner",
            "in",
            "s1",
        )
        assert arrived.forward is None


class TestResponseRequest:
    """Sent again somewhere else, with a header of the caller's that another gateway reads."""

    @pytest.fixture(params=["mount", "instrument"])
    def switch_on(self, request: pytest.FixtureRequest, http):
        def switch_on(*gateways: Gateway) -> None:
            if request.param == "instrument":
                instrument(*gateways)
            else:
                for gateway in gateways:
                    gateway.mount(http)

        yield switch_on
        uninstrument()

    def test_at_another_gateway_and_then_at_a_stranger(self, http, server: Server, switch_on):
        with Server() as other, Server() as stranger, session_scope("s1"):
            switch_on(
                Gateway(server.origin, forward=FORWARD, headers={"X-Key": "one"}),
                Gateway(other.origin, session_header="X-Other", headers={"X-Key": "other"}),
            )
            sent = http.get(server.origin, headers={"X-Other": "mine"}).request
            for origin in (other.origin, other.origin, stranger.origin):
                sent.url = f"{origin}/x"
                http.send(sent)
            assert [arrived.get("X-Key") for arrived in other.arrived] == ["other"] * 2
            assert [arrived.get("X-Other") for arrived in other.arrived] == ["s1"] * 2
            for arrived in (*other.arrived, *stranger.arrived):
                assert arrived.identifiers == {}
            assert stranger.arrived[0].get("X-Key") is None

    def test_at_a_gateway_that_redirects_to_a_stranger(self, http, server: Server, switch_on):
        with Server() as stranger:
            away = redirect(307, stranger.origin)
            server.respond = lambda request: away if request.path == "/b" else response()
            switch_on(
                Gateway(f"{server.origin}/a", forward=FORWARD),
                Gateway(f"{server.origin}/b", session_header="X-Other"),
            )
            for scope in (session_scope("s1"), no_session()):
                with scope:
                    sent = http.get(f"{server.origin}/a", headers={"X-Other": "mine"}).request
                    sent.url = f"{server.origin}/b"
                    http.send(sent)
                assert stranger.arrived[-1].get("X-Other") is None
            assert len(stranger.arrived) == 2


def _with_headers(sent: requests.PreparedRequest, headers) -> requests.PreparedRequest:
    made = requests.Request(sent.method, sent.url).prepare()
    made.headers = headers
    return made


class TestTheyReturn:
    def test_when_a_copy_is_sent_to_the_same_origin(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", f"{server.origin}/1", headers=MARKERS).prepare()
        with session_scope("s1"):
            answer = http.send(prepared)
        for sent, session_id in ((prepared, "mine"), (answer.request, "s1")):
            twin = sent.copy()
            assert [name for name in twin.headers if name.startswith("X-Cagent-")] == []
            twin.url = f"{server.origin}/2"
            http.send(twin)
            arrived = server.arrived[-1]
            assert arrived.path == "/2"
            assert arrived.identifiers == _lower(MARKERS) | {"x-cagent-session-id": session_id}

    @pytest.mark.parametrize("of", [lambda sent: sent, lambda sent: sent.copy()])
    @pytest.mark.parametrize("first", ["mount", "instrument"])
    @pytest.mark.parametrize("session", ["s1", None])
    def test_by_a_bare_gate_in_the_session_that_is_in_scope_then(
        self, http, server: Server, of, first: str, session: str | None
    ):
        gateway = Gateway(
            server.origin,
            forward=FORWARD,
            session_header="X-Session-ID",
            parent_header="X-Parent",
            headers={"Accept": "a/b", "X-Api-Key": "KEY"},
        )
        with contextlib.ExitStack() as switched_on:
            if first == "mount":
                gateway.mount(http)
            else:
                switched_on.enter_context(instrument(gateway))
            with no_session() if session is None else session_scope(session, parent="p1"):
                again = of(http.get(server.origin).request)
            http.mount(server.origin, GatewayAdapter())
            with session_scope("s2"):
                http.send(again)
        arrived = server.arrived[-1]
        assert (arrived.all("X-Session-ID"), arrived.all("X-Parent")) == (["s2"], [])
        assert (arrived.all("Accept"), arrived.all("X-Api-Key")) == (["a/b"], ["KEY"])
        assert arrived.forward == FORWARD
        assert arrived.get("X-Cagent-Session-Id") is None

    @pytest.mark.parametrize("of", [lambda sent: sent, lambda sent: sent.copy()])
    @pytest.mark.parametrize("path", ["/b", "/elsewhere"])
    def test_in_another_session_no_header_of_the_first_returns(
        self, http, server: Server, of, path: str
    ):
        Gateway(f"{server.origin}/a", session_header="X-Session-ID").mount(http)
        Gateway(f"{server.origin}/b", session_header="X-Other").mount(http)
        for session, arrives in (("s1", "s1"), ("s2", None)):
            with session_scope("s1"):
                again = of(http.get(f"{server.origin}/a").request)
            again.url = server.origin + path
            with session_scope(session):
                http.send(again)
            assert server.arrived[-1].get("X-Session-ID") == arrives

    def test_not_where_the_copy_has_been_marked_anew(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin, headers=MARKERS).prepare()
        http.send(prepared)
        with Server() as other:
            for target in (server, other):
                twin = prepared.copy()
                twin.url = target.origin
                twin.headers["X-Cagent-Forward"] = "https://api.anthropic.com"
                http.send(twin)
                marks = {"x-cagent-forward": "https://api.anthropic.com"}
                assert target.arrived[-1].identifiers == marks

    def test_nor_on_later_hops_of_a_copy_that_has_been_marked_anew(self, http, server: Server):
        """The first gateway's key is not for another provider behind the same URL."""
        gateway = Gateway(server.origin, forward=FORWARD, headers={"X-Api-Key": "KEY"})
        server.respond = lambda request: (
            redirect(307, "/end") if request.path == "/go" else response()
        )
        http.mount("http://", GatewayAdapter(gateway))
        with session_scope("s1"):
            twin = http.get(server.origin).request.copy()
            http.mount("http://", GatewayAdapter())
            twin.url = f"{server.origin}/go"
            twin.headers["X-Cagent-Forward"] = "https://api.anthropic.com"
            http.send(twin)
        assert [request.get("X-Api-Key") for request in server.arrived] == ["KEY", None, None]
        assert server.arrived[-1].forward == "https://api.anthropic.com"

    def test_a_copy_that_is_redirected_off_the_gateway_is_reported(
        self, http, server: Server, caplog
    ):
        gateway = Gateway(server.origin, session_header="X-Session-ID")
        http.mount("http://", GatewayAdapter(gateway))
        with Server() as other, session_scope("s1"):
            twin = http.get(server.origin).request.copy()
            server.respond = lambda request: redirect(308, other.origin)
            http.mount("http://", GatewayAdapter())
            http.send(twin)
        (message,) = [record.getMessage() for record in caplog.records]
        assert f"redirects a gateway-bound request to {other.origin}" in message

    def test_functions_of_session_headers_are_called_once_for_a_request(self, http, server: Server):
        called = []

        def label(session: str, parent: str | None, root: str) -> str:
            called.append(session)
            return {"s1": "one"}[session]

        gateway = Gateway(f"{server.origin}/p", session_headers={"X-Label": label})
        http.mount("http://", GatewayAdapter(gateway))
        with session_scope("s1"):
            sent = http.get(f"{server.origin}/p").request
            http.send(sent.copy())
        elsewhere = sent.copy()
        elsewhere.url = f"{server.origin}/elsewhere"
        with session_scope("s2"):
            http.send(elsewhere)
        assert called == ["s1", "s1"]
        assert [request.get("X-Label") for request in server.arrived] == ["one", "one", None]

    def test_after_a_round_trip_through_a_stranger(self, http):
        with Server() as stranger, Server() as server:
            targets = {"/1": f"{stranger.origin}/2"}
            server.respond = lambda r: (
                redirect(307, targets[r.path]) if r.path == "/1" else response()
            )
            stranger.respond = lambda r: redirect(307, f"{server.origin}/3")
            http.mount("http://", GatewayAdapter())
            with session_scope("s1"):
                http.get(f"{server.origin}/1", headers=MARKERS)
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]
            assert stranger.arrived[0].identifiers == {}

    def test_response_request_shows_what_was_sent_last(self, http, server: Server):
        http.mount(server.origin, GatewayAdapter())
        with session_scope("first"):
            answer = http.get(server.origin, headers=MARKERS)
        with session_scope("second"):
            http.send(answer.request.copy())
        assert answer.request.headers["X-Cagent-Session-Id"] == "first"
        with session_scope("third"):
            http.send(answer.request)
        assert answer.request.headers["X-Cagent-Session-Id"] == "third"
        assert [r.session_id for r in server.arrived] == ["first", "second", "third"]

    def test_response_request_shows_them_after_authentication(self, http, server: Server):
        def respond(request):
            if request.get("Authorization") is None:
                challenge = 'Digest realm="r", nonce="n", qop="auth"'
                return response(401, b"", {"WWW-Authenticate": challenge})
            return response()

        server.respond = respond
        gateway = Gateway(f"{server.origin}?tenant=a", forward=FORWARD)
        gateway.mount(http)
        with session_scope("s1"):
            answer = http.get(server.origin, auth=HTTPDigestAuth("u", "p"))
        assert answer.request.headers["X-Cagent-Session-Id"] == "s1"
        assert answer.request.headers["X-Cagent-Forward"] == FORWARD
        assert 'uri="/?tenant=a"' in server.arrived[1].get("Authorization")
        assert server.arrived[1].target == "/?tenant=a"


def _lower(headers):
    return {name.lower(): value for name, value in headers.items()}


class TestTheCallersRequest:
    def test_is_marked_as_before_every_time(self, http):
        """Also after a redirect off the gateway, and from many threads at once."""
        with Server() as stranger, Server(lambda r: redirect(307, stranger.origin)) as server:
            http.mount("http://", GatewayAdapter(pool_maxsize=8))
            prepared = requests.Request("POST", server.origin, headers=MARKERS, data=b"x").prepare()
            before = dict(prepared.headers), prepared.url, prepared.body

            def send(number: int) -> None:
                with session_scope(f"s{number}"):
                    http.send(prepared, timeout=10)

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(send, range(200)))
            assert (dict(prepared.headers), prepared.url, prepared.body) == before
            found = sorted(request.session_id for request in server.arrived)
            assert found == sorted(f"s{number}" for number in range(200))
            assert {request.forward for request in server.arrived} == {FORWARD}
            assert all(request.identifiers == {} for request in stranger.arrived)

    def test_its_headers_stay_one_with_what_the_caller_holds(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin, headers=MARKERS).prepare()
        held = prepared.headers
        http.send(prepared)
        held["X-Later"] = "1"
        assert prepared.headers["x-later"] == "1"
        assert held == prepared.headers
        http.send(prepared)
        assert server.arrived[1].get("X-Later") == "1"

    def test_may_be_sent_elsewhere_by_whoever_marked_it(self, http, server: Server):
        """The URL is the caller's, too; and what follows knows the origin of now."""
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", f"{server.origin}/1", headers=MARKERS).prepare()
        http.send(prepared)
        with Server(lambda request: redirect(307, f"{server.origin}/2")) as other:
            prepared.url = other.origin
            http.send(prepared)
            assert other.arrived[0].forward == FORWARD
        assert server.arrived[1].path == "/2"
        assert server.arrived[1].identifiers == {}

    def test_a_twin_of_one_that_is_marked_and_not_sent_is_marked(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        marked = http.get(server.origin, headers=MARKERS).request.copy()
        marked.headers["X-Cagent-Forward"] = FORWARD
        twin = copy.copy(marked)
        http.send(marked)
        with Server() as other:
            twin.url = other.origin
            http.send(twin)
            assert other.arrived[0].forward == FORWARD

    def test_headers_that_an_adapter_below_takes_from_elsewhere(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        first = http.get(server.origin, headers=MARKERS).request

        class Reusing(HTTPAdapter):
            def send(self, request, *args, **options):
                request.headers = first.headers
                return super().send(request, *args, **options)

        class Ours(GatewayMixin, Reusing): ...

        with Server() as other:
            http.mount(other.origin, Ours())
            http.get(other.origin, headers=MARKERS)
            assert other.arrived[0].identifiers == {}
        http.send(first.copy())
        assert server.arrived[1].forward == FORWARD

    @pytest.mark.parametrize("is_a_copy", [True, False])
    def test_may_go_anywhere_however_often_it_was_sent(self, http, server: Server, is_a_copy):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin, headers=MARKERS).prepare()
        http.send(prepared)
        if is_a_copy:
            prepared = prepared.copy()
            prepared.headers["X-Cagent-Forward"] = FORWARD
        http.send(prepared)
        with Server() as other:
            prepared.url = other.origin
            http.send(prepared)
            assert other.arrived[0].forward == FORWARD

    def test_has_headers_of_its_own_also_where_it_is_not_bound(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin, headers=MARKERS).prepare()
        http.send(prepared)
        prepared.headers["X-Cagent-Forward"] = ""
        answer = http.send(prepared)
        answer.request.headers["X-A"] = "1"
        assert "X-A" not in prepared.headers

    def test_attributes_of_a_subclass_are_kept(self, http, server: Server):
        class Mine(requests.PreparedRequest):
            source = "a user's own"

        http.mount("http://", GatewayAdapter(Gateway(server.origin, forward=FORWARD)))
        mine = Mine()
        mine.prepare("GET", server.origin)
        mine.source = "mine"
        answer = http.send(mine)
        assert type(answer.request) is Mine
        assert answer.request is not mine
        assert answer.request.source == "mine"

    def test_sending_the_sent_one_again_keeps_nothing_alive(self, http, server: Server):
        class Body(bytearray):
            """Bytes that can be watched."""

        http.mount("http://", GatewayAdapter(Gateway(server.origin, forward=FORWARD)))
        body = Body(b"x" * 1000)
        watch = Watch(body)
        answer = http.post(server.origin, data=body)
        del body
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                answer = http.send(answer.request)
            answer.request.body = None
            assert watch.is_gone
        finally:
            gc.enable()

    def test_headers_of_another_kind(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin).prepare()
        given = {"x-cagent-forward": FORWARD, "X-A": "1", "x-a": "2", b"X-B": "3"}
        prepared.headers = dict(given)
        for _ in range(2):
            with session_scope("s1"):
                http.send(prepared)
            arrived = server.arrived[-1]
            assert arrived.session_id == "s1"
            assert arrived.all("X-A") == ["1", "2"]
            assert arrived.get("X-B") == "3"
            assert prepared.headers == given
        twin = prepared.copy()
        assert dict(twin.headers) == {"X-A": "1", "x-a": "2", b"X-B": "3"}
        http.send(twin)
        assert server.arrived[-1].forward == FORWARD

    def test_headers_of_a_library_with_a_table_of_another_shape(self, http, server: Server):
        class Theirs(MutableMapping[str, str]):  # azure-core's
            def __init__(self, headers: Mapping[str, str]) -> None:
                self._store = {name.lower(): value for name, value in headers.items()}

            def __getitem__(self, name: str) -> str:
                return self._store[name.lower()]

            def __setitem__(self, name: str, value: str) -> None:
                self._store[name.lower()] = value

            def __delitem__(self, name: str) -> None:
                del self._store[name.lower()]

            def __iter__(self) -> Iterator[str]:
                return iter(self._store)

            def __len__(self) -> int:
                return len(self._store)

            def copy(self) -> Theirs:
                return Theirs(self._store)

        http.mount("http://", GatewayAdapter(Gateway(server.origin, forward=FORWARD)))
        prepared = requests.Request("GET", server.origin).prepare()
        prepared.headers = Theirs({"X-A": "1"})  # type: ignore[assignment]
        with session_scope("s1"):
            http.send(prepared)
        assert (server.arrived[0].session_id, server.arrived[0].get("X-A")) == ("s1", "1")

    @pytest.mark.parametrize(
        "kind", [CaseInsensitiveDict, type("Mine", (CaseInsensitiveDict,), {})]
    )
    @pytest.mark.parametrize("name", ["User-Agent", b"User-Agent"])
    def test_stay_case_insensitive(self, http, server: Server, kind: type, name: str | bytes):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("POST", server.origin, data=b"{}").prepare()
        prepared.headers = kind({"content-length": "2", "x-CAGENT-forward": FORWARD, name: "mine"})
        with session_scope("s1"):
            sent = http.send(prepared).request
        (arrived,) = server.arrived
        assert (arrived.body, arrived.all("Transfer-Encoding")) == (b"{}", [])
        assert sent.headers["CONTENT-LENGTH"] == "2"
        assert sent.headers["x-cagent-session-id"] == "s1"
        assert "CONTENT-LENGTH" in sent.copy().headers

    def test_of_a_subclass_stay_those_that_the_caller_holds(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin).prepare()
        held = type("Mine", (CaseInsensitiveDict,), {})({**MARKERS, "Authorization": "old"})
        prepared.headers = held
        http.send(prepared)
        held["Authorization"] = "new"
        http.send(prepared)
        assert [request.get("Authorization") for request in server.arrived] == ["old", "new"]

    @pytest.mark.parametrize("kind", [CaseInsensitiveDict, HTTPHeaderDict])
    def test_of_a_subclass_with_a_constructor_of_its_own(self, http, server: Server, kind: Any):
        class Mine(kind):
            def __init__(self, tenant: str = "none", headers: Any = None) -> None:
                self.tenant = tenant
                super().__init__(headers or {})

        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin).prepare()
        prepared.headers = Mine("acme", {**MARKERS, "X-A": "1"})
        with session_scope("s1"):
            sent = http.send(prepared).request
            http.send(sent.copy())
        for arrived in server.arrived:
            assert (arrived.forward, arrived.session_id) == (FORWARD, "s1")
            assert arrived.get("X-A") == "1"
        assert pickle.loads(pickle.dumps(prepared)).headers == {**MARKERS, "X-A": "1"}

    def test_with_several_values_of_one_name(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin).prepare()
        given = HTTPHeaderDict([("X-A", "1"), ("X-A", "2"), *MARKERS.items()])
        prepared.headers = given.copy()
        for _ in range(2):
            answer = http.send(prepared)
            assert server.arrived[-1].all("X-A") == ["1", "2"]
            assert server.arrived[-1].forward == FORWARD
            assert prepared.headers == given
        twin = answer.request.copy()
        assert list(twin.headers.items())[:2] == [("X-A", "1"), ("X-A", "2")]
        assert "X-Cagent-Forward" not in twin.headers
        twin.headers["X-Cagent-Provider"] = "another"
        http.send(twin)
        assert server.arrived[-1].all("X-Cagent-Provider") == ["another"]
        assert server.arrived[-1].forward == FORWARD
        assert type(pickle.loads(pickle.dumps(prepared)).headers) is HTTPHeaderDict

    def test_of_a_class_that_is_a_dict_too(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin).prepare()
        prepared.headers = type("Both", (CaseInsensitiveDict, dict), {})(MARKERS)
        http.send(prepared)
        assert server.arrived[0].forward == FORWARD

    @pytest.mark.parametrize("kind", [dict, CaseInsensitiveDict, HTTPHeaderDict])
    @pytest.mark.parametrize("is_gated", [True, False])
    def test_others_of_their_class_are_like_any_others(self, http, server: Server, kind, is_gated):
        gateway = Gateway(server.origin, forward=FORWARD)
        gateway.mount(http)
        prepared = http.prepare_request(requests.Request("GET", server.origin))
        prepared.headers = kind({"X-A": "1"})
        with session_scope("s1"):
            sent = http.send(prepared).request
        again = sent.copy()
        again.headers = type(sent.headers)({"X-B": "2"})
        assert again.headers.copy() == {"X-B": "2"}
        assert type("Mine", (type(sent.headers),), {})({"X-B": "2"}) == {"X-B": "2"}
        if is_gated:
            http.send(again)
        else:
            requests.Session().send(again)
        assert server.arrived[1].get("X-B") == "2"
        assert server.arrived[1].forward == (FORWARD if is_gated else None)

    def test_an_encoding_under_a_name_in_bytes(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        prepared = http.prepare_request(requests.Request("GET", server.origin, headers=MARKERS))
        default = prepared.headers["Accept-Encoding"]
        prepared.headers[b"Accept-Encoding"] = b"br"
        http.send(prepared, stream=True).close()
        assert server.arrived[0].all("Accept-Encoding") == [default, "br"]  # as without us

    def test_a_class_of_request_with_slots(self, http, server: Server):
        class Mine(requests.PreparedRequest):
            __slots__ = ("tenant",)

        class Reads(GatewayAdapter):
            def add_headers(self, request, **options):
                request.headers["X-Tenant"] = request.tenant

        http.mount("http://", Reads(Gateway(server.origin, forward=FORWARD)))
        mine = Mine()
        mine.prepare("GET", server.origin)
        mine.tenant = "a"
        http.send(mine)
        assert server.arrived[0].get("X-Tenant") == "a"

    @pytest.mark.parametrize("kind", [dict, CaseInsensitiveDict])
    def test_items_are_compared_as_those_of_the_plain_class(self, http, server: Server, kind):
        Gateway(server.origin, forward=FORWARD).mount(http)
        prepared = http.prepare_request(requests.Request("GET", server.origin))
        prepared.headers = kind({"X-A": "1", **MARKERS})
        before = kind(prepared.headers).items()
        sent = http.send(prepared).request
        assert type(prepared.headers.items() & {("X-A", "1")}) is type(before & {("X-A", "1")})
        for headers in (prepared.headers, sent.headers):
            assert {"X-A": "1"}.items() <= headers.items()
            assert (("x-a", "1") in headers.items()) == (("x-a", "1") in before)

    def test_a_class_of_request_that_sets_its_attributes_itself(self, http, server: Server):
        class Mine(requests.PreparedRequest):
            def __setattr__(self, name, value):
                self.__dict__[name] = value

        http.mount("http://", GatewayAdapter(Gateway(server.origin, forward=FORWARD)))
        mine = Mine()
        mine.prepare("POST", server.origin, data=b"x")
        with session_scope("s1"):
            http.send(mine)
        assert (server.arrived[0].session_id, server.arrived[0].body) == ("s1", b"x")

    @pytest.mark.parametrize("name", [b"X-Cagent-Forward", b"x-CAGENT-forward"])
    def test_a_marker_under_a_name_in_bytes(self, http, server: Server, name: bytes):
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin).prepare()
        prepared.headers[name] = FORWARD
        prepared.headers[b"X-Cagent-Session-Id"] = "mine"
        with session_scope("s1"):
            http.send(prepared)
        (arrived,) = server.arrived
        assert (arrived.forward, arrived.session_id) == (FORWARD, "s1")

    @pytest.mark.parametrize("name", [b"X-Cagent-Compacting", b"x-team-session", b"X-Other"])
    def test_another_name_in_bytes(self, http, server: Server, name: bytes):
        Gateway(server.origin, forward=FORWARD, session_header="X-Team-Session").mount(http)
        prepared = requests.Request("GET", server.origin).prepare()
        prepared.headers[name] = "1"
        with session_scope("s1"):
            http.send(prepared)
        is_other = name == b"X-Other"
        (arrived,) = server.arrived
        assert arrived.all("X-Team-Session") == ["s1"]
        assert arrived.forward == FORWARD
        assert (arrived.get(name.decode()) == "1") is (name != b"x-team-session")
        assert prepared.headers[name] == "1"
        assert (name in prepared.copy().headers) is is_other


class TestPickling:
    def test_needs_nothing_of_this_package(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        with session_scope("s1"):
            answer = http.get(server.origin, headers=MARKERS)
        for pickled in (answer, answer.request, answer.request.headers.copy()):
            assert b"cagent_session" not in pickle.dumps(pickled)
        twin = pickle.loads(pickle.dumps(answer))
        assert type(twin.request.headers) is CaseInsensitiveDict
        assert twin.request.headers == answer.request.headers
        prepared = requests.Request("GET", server.origin).prepare()
        prepared.headers = {"X-Cagent-Forward": FORWARD}
        http.send(prepared)
        assert type(pickle.loads(pickle.dumps(prepared)).headers) is dict

    def test_a_deepcopy_is_careful_too(self, http, server: Server):
        http.mount("http://", GatewayAdapter())
        answer = http.get(server.origin, headers=MARKERS)
        twin = copy.deepcopy(answer.request)
        assert twin.headers == answer.request.headers
        assert type(twin.headers) is type(answer.request.headers)
        assert twin.headers is not answer.request.headers
        assert "X-Cagent-Forward" not in twin.copy().headers


@pytest.mark.parametrize("make", [requests.PreparedRequest.copy, copy.deepcopy])
def test_an_adapter_below_that_sends_a_copy(http, server: Server, make):
    class Copying(HTTPAdapter):
        def send(self, request, *args, **options):
            return super().send(make(request), *args, **options)

    class Ours(GatewayMixin, Copying): ...

    http.mount("http://", Ours(Gateway(server.origin, forward=FORWARD, session_header="X-Team")))
    with Server() as stranger, session_scope("s1"):
        server.respond = lambda request: redirect(307, stranger.origin)
        answer = http.get(server.origin, allow_redirects=False)
        assert answer.request.headers["X-Team"] == "s1"
        http.mount("http://", HTTPAdapter())
        list(http.resolve_redirects(answer, answer.request))
        assert server.arrived[0].forward == FORWARD
        assert stranger.arrived[0].identifiers == {}
        assert stranger.arrived[0].get("X-Team") is None


@pytest.mark.parametrize("replace", [True, False])
def test_identifiers_of_an_earlier_hop(http, server: Server, replace: bool):
    class Below(HTTPAdapter):
        def send(self, request, *args, **options):
            if replace:
                request.headers = CaseInsensitiveDict(request.headers.items())
            return super().send(request, *args, **options)

    class Ours(GatewayMixin, Below): ...

    http.mount(
        "http://", Ours(Gateway(f"{server.origin}/a", forward=FORWARD, session_header="X-T"))
    )
    answers = iter([redirect(307, "/b")])
    server.respond = lambda request: next(answers, response())
    with session_scope("s1"):
        answer = http.get(f"{server.origin}/a", allow_redirects=False)
        (last,) = http.resolve_redirects(answer, answer.request)
    assert [request.get("X-T") for request in server.arrived] == ["s1", "s1"]
    assert last.request.headers["X-T"] == "s1"
    assert "X-T" not in last.request.copy().headers


@pytest.mark.parametrize("by", ["mount", "instrument"])
@pytest.mark.parametrize("again", ["redirect", "copy"])
def test_a_gateway_without_forward_gets_no_header_of_the_protocol(
    http, server: Server, by: str, again: str
):
    gateways = [
        Gateway(f"{server.origin}/a", forward=FORWARD),
        Gateway(f"{server.origin}/b", session_header="X-Session-ID"),
    ]
    for gateway in gateways if by == "mount" else ():
        gateway.mount(http)
    wired = instrument(*gateways) if by == "instrument" else contextlib.nullcontext()
    hops = iter([redirect(307, "/a/2"), redirect(307, "/b")] if again == "redirect" else [])
    server.respond = lambda request: next(hops, response())
    with wired, session_scope("s1"):
        sent = http.get(f"{server.origin}/a/1", headers={"X-Cagent-Compacting": "1"}).request
        if again == "copy":
            copied = sent.copy()
            copied.url = f"{server.origin}/b"
            http.send(copied)
    assert server.arrived[-1].target == "/b"
    assert server.arrived[-1].get("X-Session-ID") == "s1"
    assert server.arrived[-1].session_id is None


@pytest.mark.parametrize("session", ["s1", None])
@pytest.mark.parametrize("by", ["mount", "instrument"])
def test_a_session_header_that_is_a_fixed_one_of_the_next_gateway(
    http, server: Server, by: str, session: str | None
):
    gateways = [
        Gateway(f"{server.origin}/a", forward=FORWARD, session_header="X-Session-ID"),
        Gateway(f"{server.origin}/b", forward=FORWARD, headers={"X-Session-ID": "nightly"}),
    ]
    for gateway in gateways if by == "mount" else ():
        gateway.mount(http)
    wired = instrument(*gateways) if by == "instrument" else contextlib.nullcontext()
    hops = iter([redirect(307, "/b/1"), redirect(307, "/b/2"), redirect(307, "/a")])
    server.respond = lambda request: next(hops, response())
    with wired, no_session() if session is None else session_scope(session):
        last = http.get(f"{server.origin}/a", headers={"X-Cagent-Compacting": "1"})
        http.send(last.request.copy())
    ids = [request.get("X-Session-ID") for request in server.arrived]
    assert ids == [session, "nightly", "nightly", session, session]


@pytest.mark.parametrize("by", ["instrument", "adapter behind"])
def test_a_gate_further_down_knows_the_session_headers_of_the_one_above(
    http, server: Server, by: str
):
    """A copy of the request that the inner one has stamped is nobody's at a stranger's."""
    outer = Gateway(f"{server.origin}/a", session_header="X-Outer")
    inner = Gateway(f"{server.origin}/b", session_header="X-Inner")
    wired = instrument(outer, inner) if by == "instrument" else contextlib.nullcontext()
    behind = HTTPAdapter() if by == "instrument" else GatewayAdapter(inner)
    http.mount("http://", GatewayAdapter(outer, adapter=behind))
    hops = iter([redirect(307, "/b")])
    server.respond = lambda request: next(hops, response())
    with Server() as stranger, wired, session_scope("s1"):
        sent = http.get(f"{server.origin}/a", headers={"X-Outer": "mine"}).request
        assert server.arrived[-1].get("X-Inner") == "s1"
        copied = sent.copy()
        copied.url = stranger.origin
        http.send(copied)
        assert stranger.arrived[0].get("X-Outer") is None
        assert stranger.arrived[0].get("X-Inner") is None


def test_a_copy_sent_to_a_stranger_through_a_tunnel(http, server: Server, tls):
    """urllib3 does not copy the headers there."""
    Gateway(server.origin, forward=FORWARD, headers={"X-Key": "secret"}).mount(http)
    with Server(tls=tls.context) as stranger, Proxy() as proxy, requests.Session() as plain:
        with session_scope("s1"):
            again = http.get(server.origin).request.copy()
        again.url = stranger.origin
        plain.trust_env = False
        plain.send(again, proxies={"https": proxy.origin}, verify=tls.ca)
        assert stranger.arrived[0].identifiers == {}
        assert stranger.arrived[0].get("X-Key") is None


def test_an_adapter_below_that_copies_and_fails(http, server: Server):
    class Failing(HTTPAdapter):
        def send(self, request, *args, **options):
            raise requests.ConnectionError(request=request.copy())

    class Ours(GatewayMixin, Failing): ...

    http.mount("http://", Ours())
    with pytest.raises(requests.ConnectionError) as caught:
        http.get(server.origin, headers=MARKERS)
    assert caught.value.request.headers["X-Cagent-Forward"] == FORWARD
    assert "X-Cagent-Forward" not in caught.value.request.copy().headers


def test_an_adapter_below_that_asks_another_gateway(http, server: Server):
    other = GatewayAdapter(Gateway(server.origin, forward=FORWARD, session_header="X-Team"))

    class Failover(HTTPAdapter):
        def send(self, request, *args, **options):
            return other.send(requests.Request("GET", server.origin).prepare())

    class Ours(GatewayMixin, Failover): ...

    http.mount("http://", Ours(Gateway("http://first.example", forward="https://first.example")))
    with Server() as stranger, session_scope("s1"):
        answer = http.get("http://first.example")
        http.mount("http://", GatewayAdapter())
        for url in (server.origin, stranger.origin):
            twin = answer.request.copy()
            twin.url = url
            http.send(twin)
        assert (server.arrived[1].forward, server.arrived[1].get("X-Team")) == (FORWARD, "s1")
        assert (stranger.arrived[0].identifiers, stranger.arrived[0].get("X-Team")) == ({}, None)


@pytest.mark.parametrize("request_", [None, requests.PreparedRequest(), object()])
def test_an_adapter_below_that_answers_with_some_double(http, request_):
    class Double(HTTPAdapter):
        def send(self, request, *args, **options):
            answer = requests.Response()
            answer.request = request_
            return answer

    class Ours(GatewayMixin, Double): ...

    with session_scope("s1"), contextlib.closing(Ours()) as adapter:
        prepared = requests.Request("GET", "http://gateway.example", headers=MARKERS).prepare()
        assert adapter.send(prepared).request is request_


def test_an_error_carries_a_request_that_is_as_careful(http):
    class Broken(HTTPAdapter):
        def send(self, request, **options):
            raise requests.ConnectionError(request=request)

    class Both(GatewayMixin, Broken): ...

    http.mount("http://", Both())
    with pytest.raises(requests.ConnectionError) as caught:
        http.get("http://gateway.example", headers=MARKERS)
    sent = caught.value.request
    assert sent.headers["X-Cagent-Forward"] == FORWARD
    assert "X-Cagent-Forward" not in sent.copy().headers


class TestOneRequestInSeveralThreads:
    """Two threads send ``response.request``, or one copy of a request that was sent, at once."""

    @pytest.mark.parametrize("what", ["response.request", "a copy", "a deep copy"])
    def test_each_is_sent_in_the_session_of_its_thread(self, http, server: Server, what: str):
        both_are_here = threading.Barrier(2)

        def respond(request):
            if request.path == "/again":
                both_are_here.wait(10)
            return response()

        server.respond = respond
        http.mount("http://", GatewayAdapter())
        prepared = requests.Request("GET", server.origin, headers=MARKERS).prepare()
        with session_scope("first"):
            sent = http.send(prepared).request
        again = {"response.request": sent, "a copy": prepared.copy()}.get(what)
        again = copy.deepcopy(sent) if again is None else again
        again.url = f"{server.origin}/again"

        def send(session_id: str) -> None:
            with session_scope(session_id):
                http.send(again)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(send, ["s1", "s2"]))
        assert sorted(each.session_id or "" for each in server.arrived[1:]) == ["s1", "s2"]

    def test_the_slower_one_keeps_its_session(self, http, server: Server):
        first_is_inside, second_is_done = threading.Event(), threading.Event()

        class Slow(HTTPAdapter):
            def send(self, request, **options):
                if threading.current_thread().name == "slow":
                    first_is_inside.set()
                    second_is_done.wait(10)
                return super().send(request, **options)

        http.mount(
            "http://", GatewayAdapter(Gateway(server.origin, forward=FORWARD), adapter=Slow())
        )
        with session_scope("s1"):
            again = http.get(server.origin).request

        def send() -> None:
            with session_scope("s1"):
                http.send(again)

        slow = threading.Thread(target=send, name="slow")
        slow.start()
        assert first_is_inside.wait(10)
        send()
        second_is_done.set()
        slow.join()
        assert [each.session_id for each in server.arrived] == ["s1"] * 3


@pytest.mark.parametrize("fixed", [{}, {"Accept": "a/b", "Accept-Encoding": "br"}])
def test_a_hop_gets_no_defaults_that_the_request_never_had(http, server: Server, fixed):
    with Server() as stranger:
        server.respond = lambda request: redirect(302, stranger.at("localhost"))
        http.mount("http://", HTTPAdapter())
        gateway = Gateway(server.origin, forward=FORWARD, headers=fixed)
        for _ in range(2):  # by the plain client, then through the gate
            answer = http.send(
                requests.Request("GET", server.origin).prepare(), allow_redirects=False
            )
            list(http.resolve_redirects(answer, answer.request))
            gateway.mount(http)
        plain, ours = stranger.arrived
        assert ours.headers == plain.headers


@pytest.mark.parametrize("of", [lambda sent: sent, copy.copy, copy.deepcopy])
def test_the_librarys_defaults_are_back_at_a_path_that_is_not_the_gateways(http, server, of):
    gateway = Gateway(f"{server.origin}/p", forward=FORWARD, headers={"Accept": "a/b"})
    http.mount("http://", GatewayAdapter(gateway))
    with session_scope("s1"), http.get(gateway.endpoint("x"), stream=True) as answer:
        again = of(answer.request)
    again.url = f"{server.origin}/else"
    http.send(again)
    first, last = server.arrived
    assert (first.get("Accept"), first.get("Accept-Encoding")) == ("a/b", "identity")
    for name in ("Accept", "Accept-Encoding", "User-Agent"):
        assert last.get(name) == requests.utils.default_headers()[name]


@pytest.mark.parametrize("by", ["adapter", "instrument"])
def test_gateway_headers_do_not_return_at_a_path_that_is_not_the_gateways(http, server, by):
    gateway = Gateway(f"{server.origin}/openai", forward=FORWARD, headers={"X-Api-Key": "KEY"})
    http.mount("http://", GatewayAdapter(gateway))
    with session_scope("s1"):
        twin = http.get(gateway.endpoint("v1")).request.copy()
        twin.url = f"{server.origin}/anthropic/v1"
        if by == "adapter":
            http.mount("http://", GatewayAdapter())
            http.send(twin)
        else:
            http.mount("http://", HTTPAdapter())
            with instrument():
                http.send(twin)
    assert server.arrived[0].get("X-Api-Key") == "KEY"
    assert server.arrived[1].get("X-Api-Key") is None
    assert server.arrived[1].identifiers == {}


@pytest.mark.parametrize("by", ["adapter", "instrument"])
@pytest.mark.parametrize("last", ["/gw/last", "/elsewhere"])
@pytest.mark.parametrize("answers", [True, False])
def test_an_adapter_around_reads_no_identifiers_of_a_redirect(
    http, server: Server, by: str, last: str, answers: bool
):
    gateway = Gateway(f"{server.origin}/gw", forward=FORWARD, headers={"X-Api-Key": "KEY"})

    class Failover(HTTPAdapter):
        def send(self, request, **options):
            try:
                sent = inner.send(request, **options)
                if sent.status_code != 503:
                    return sent
            except requests.ConnectionError:
                pass
            copied = request.copy()
            copied.url = stranger.origin
            copied.headers = CaseInsensitiveDict(request.headers)
            return HTTPAdapter().send(copied, **options)

    # To the server, the last response is either an error or no HTTP at all.
    answer = response(503) if answers else b"\r\n\r\n"
    server.respond = lambda request: redirect(307, last) if request.path == "/gw/first" else answer
    with contextlib.ExitStack() as stack:
        stranger = stack.enter_context(Server())
        inner = GatewayAdapter(gateway) if by == "adapter" else HTTPAdapter()
        http.mount("http://", Failover())
        if by == "instrument":
            stack.enter_context(instrument(gateway))
        stack.enter_context(session_scope("s1"))
        headers = {"X-Cagent-Model": "model", "X-Trace": "trace"}
        assert http.get(gateway.endpoint("first"), headers=headers).status_code == 200
        (arrived,) = stranger.arrived
    assert (arrived.identifiers, arrived.get("X-Api-Key")) == ({}, None)
    assert arrived.get("X-Trace") == "trace"


class TestTwoGates:
    """The outer gate does not know the gateway for which the inner one stamps a request."""

    @pytest.fixture(params=["adapters", "a bare adapter", "mount"])
    def gates(self, request, http, server: Server) -> Iterator[None]:
        one = Gateway(f"{server.origin}/one", session_header="X-One")
        two = Gateway(f"{server.origin}/two", session_header="X-Two")
        if request.param == "adapters":
            http.mount("http://", GatewayAdapter(one, adapter=GatewayAdapter(two)))
            yield
            return
        if request.param == "mount":
            one.mount(http)
        else:
            http.mount("http://", GatewayAdapter())
        with instrument(one, two):
            yield

    @pytest.mark.parametrize("by", ["redirects", "a copy"])
    def test_what_the_caller_set_for_the_second_gateway_stays_there(
        self, http, server: Server, gates, by: str
    ):
        with Server() as stranger, session_scope("s1"):
            targets = {"/one/x": "/two/x", "/two/x": f"{stranger.origin}/"}
            server.respond = lambda request: (
                redirect(307, targets[request.path]) if request.path in targets else response()
            )
            mine = {"X-One": "mine", "X-Two": "mine"}
            if by == "redirects":
                http.get(f"{server.origin}/one/x", headers=mine)
            else:
                again = http.get(f"{server.origin}/one/y", headers=mine).request.copy()
                again.url = f"{server.origin}/two/x"
                http.send(again)
            assert server.arrived[-1].get("X-Two") == "s1"
            (arrived,) = stranger.arrived
        assert (arrived.get("X-One"), arrived.get("X-Two")) == (None, None)


@pytest.mark.parametrize("was_used", [False, True])
def test_whether_instrument_was_ever_used_changes_nothing(http, server: Server, was_used: bool):
    """A request that a mounted adapter has guarded is not the patch's to give back."""
    http.mount(server.origin, GatewayAdapter())
    prepared = requests.Request("GET", server.origin, headers=MARKERS).prepare()
    http.send(prepared)
    with Server() as stranger, requests.Session() as plain:
        server.respond = lambda request: redirect(307, stranger.origin)
        with instrument():
            if was_used:
                plain.send(prepared, allow_redirects=False)
        plain.send(prepared)
        assert [each.identifiers for each in stranger.arrived] == [{}]
    assert server.arrived[0].identifiers != {}
    assert server.arrived[-1].identifiers == {}


@pytest.mark.parametrize("forward", [None, FORWARD], ids=["own-header", "forward"])
@pytest.mark.parametrize("has_instrument", [False, True])
@pytest.mark.parametrize("manager", [urllib3.PoolManager, GatewayPoolManager])
@pytest.mark.parametrize("scope", [no_session(), session_scope("s1")], ids=["outside", "inside"])
def test_the_headers_leave_the_stamp_behind_in_a_call_of_urllib3(
    http, server: Server, scope, manager, has_instrument: bool, forward: str | None
):
    keys = {"X-Key": "KEY"}
    gateway = Gateway(server.origin, forward=forward, session_header="X-Session-ID", headers=keys)
    gateway.mount(http)
    scope_of_patch = instrument(gateway) if has_instrument else contextlib.nullcontext()
    with Server() as stranger, scope_of_patch, scope, manager() as of_urllib3:
        sent = http.get(gateway.url).request
        of_urllib3.request("GET", stranger.at("localhost"), headers=sent.headers)
        (arrived,) = stranger.arrived
    assert arrived.identifiers == {}
    assert (arrived.get("X-Key"), arrived.get("X-Session-ID")) == (None, None)


@pytest.mark.parametrize("code", [303, 307])
@pytest.mark.parametrize("kind", ["marked", "gateway"])
@pytest.mark.parametrize("by", ["GatewayPoolManager", "GatewayProxyManager", "instrument"])
def test_the_headers_of_a_sent_request_do_not_follow_a_redirect_of_urllib3(
    http, server: Server, by: str, kind: str, code: int
):
    """urllib3 makes copies of its own class, which do not know where they may be sent."""
    keys = {"X-Key": "KEY"}
    gateway = Gateway(server.origin, forward=FORWARD, headers=keys) if kind == "gateway" else None
    http.mount("http://", GatewayAdapter(gateway))
    own = None if gateway else MARKERS
    with contextlib.ExitStack() as stack:
        stranger, proxy = stack.enter_context(Server()), stack.enter_context(Proxy())
        stack.enter_context(session_scope("s1"))
        sent = http.get(server.origin, headers=own).request
        if by == "instrument":
            stack.enter_context(instrument(gateway))
        of_urllib3 = {
            "GatewayPoolManager": lambda: GatewayPoolManager(gateway),
            "GatewayProxyManager": lambda: GatewayProxyManager(proxy.origin, gateway),
            "instrument": urllib3.PoolManager,
        }[by]()
        server.respond = lambda request: redirect(code, stranger.at("localhost"))
        stack.enter_context(of_urllib3).request("GET", server.origin, headers=sent.headers)
        (arrived,) = stranger.arrived
    assert server.arrived[-1].get("X-Cagent-Forward") == FORWARD
    assert (arrived.identifiers, arrived.get("X-Key")) == ({}, None)


def test_the_headers_of_a_sent_request_get_the_home_of_what_another_gateway_knows(
    http, server: Server
):
    http.mount("http://", GatewayAdapter())
    sent = http.get(server.origin, headers=MARKERS | {"X-Session": "mine"}).request
    gateway = Gateway(server.origin, session_header="X-Session")
    with Server() as stranger, GatewayPoolManager(gateway) as of_urllib3:
        server.respond = lambda request: redirect(307, stranger.at("localhost"))
        of_urllib3.request("GET", gateway.url, headers=sent.headers)
        (arrived,) = stranger.arrived
    assert server.arrived[-1].get("X-Session") == "mine"
    assert (arrived.identifiers, arrived.get("X-Session")) == ({}, None)


def test_the_headers_of_a_sent_request_lack_what_a_gateway_set_at_the_next_one(
    http, server: Server
):
    keys = {"X-Key": "ONE", "Accept": "text/event-stream"}
    one = Gateway(f"{server.origin}/one", forward=FORWARD, headers=keys)
    two = Gateway(f"{server.origin}/two", forward=FORWARD, headers={"Authorization": "TWO"})
    one.mount(http)
    with session_scope("s1"):
        sent = http.get(one.url).request
    for gateway in (one, two):
        with GatewayPoolManager(gateway) as of_urllib3:
            for path in ("one", "two", "nobodys"):
                of_urllib3.request("GET", f"{server.origin}/{path}", headers=sent.headers)
    names = ("X-Cagent-Session-Id", "X-Key", "Accept", "Authorization")
    assert [[each.get(name) for name in names] for each in server.arrived[1:]] == [
        [None, "ONE", "text/event-stream", None],
        [None, None, None, None],
        [None, None, None, None],
        [None, None, None, None],
        [None, None, None, "TWO"],
        [None, None, None, None],
    ]


def test_the_headers_of_a_sent_request_bring_nothing_home_from_another_origin(http, server: Server):
    gateway = Gateway(server.origin, forward=FORWARD, headers={"User-Agent": "gateway"})
    gateway.mount(http)
    headers = http.get(gateway.url).request.headers
    headers.update(gateway_headers("https://another.example"))
    with Server() as stranger, GatewayPoolManager() as of_urllib3:
        stranger.respond = lambda request: redirect(307, server.origin)
        of_urllib3.request("GET", stranger.at("localhost"), headers=headers)
        arrived = [*stranger.arrived, server.arrived[-1]]
    assert [each.identifiers for each in arrived] == [{}, {}]
    default = requests.utils.default_user_agent()
    assert [each.get("User-Agent") for each in arrived] == [default, default]


@pytest.mark.parametrize("manager", [urllib3.PoolManager, GatewayPoolManager])
def test_headers_copied_while_they_are_sent_know_their_gateway_without_the_session(
    http, server: Server, manager
):
    gateway = Gateway(server.origin, forward=FORWARD, headers={"X-Key": "KEY"})
    with Server() as mirror, instrument(gateway), session_scope("s1"), manager() as of_urllib3:

        class Mirroring(HTTPAdapter):
            def send(self, request, *args: Any, **kwargs: Any):
                headers = request.headers.copy()
                del headers["X-Cagent-Session-Id"]
                of_urllib3.request("GET", mirror.at("localhost"), headers=headers)
                return super().send(request, *args, **kwargs)

        http.mount("http://", GatewayAdapter(gateway, adapter=Mirroring()))
        http.get(gateway.url)
        (arrived,) = mirror.arrived
    assert (arrived.identifiers, arrived.get("X-Key")) == ({}, None)
    assert server.arrived[-1].session_id == "s1"
