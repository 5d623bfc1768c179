"""What only requests has: prepared requests, streams, authentication, pickling, patching."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import requests_mock
import responses
from multidict import CIMultiDict
from requests.adapters import HTTPAdapter
from requests.auth import HTTPDigestAuth
from requests.structures import CaseInsensitiveDict
from support.wire import Proxy, Server, redirect, response
from urllib3._collections import HTTPHeaderDict
from urllib3.util import Retry

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayMixin,
    current_session_id,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"
MARKED = {"X-Cagent-Forward": FORWARD}


def client(adapter: HTTPAdapter) -> requests.Session:
    http = requests.Session()
    http.trust_env = False
    http.mount("http://", adapter)
    http.mount("https://", adapter)
    return http


@pytest.fixture
def http():
    with client(GatewayAdapter()) as http:
        yield http


def uploads():
    def pieces():
        yield b"one"
        yield b"two"

    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    multipart = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    return {
        "get": lambda: {"method": "GET", "params": {"a": ["b", "c d"]}},
        "form": lambda: {"method": "POST", "data": {"a": "b c"}},
        "json": lambda: {"method": "PUT", "json": {"a": "ü"}},
        "multipart": lambda: {"method": "POST", "data": multipart, "headers": boundary},
        "file": lambda: {"method": "POST", "data": io.BytesIO(b"content")},
        "generator": lambda: {"method": "POST", "data": pieces()},
        "cookies": lambda: {"method": "GET", "cookies": {"a": "b"}, "auth": ("u", "p")},
        "stream": lambda: {"method": "GET", "stream": True},
        "no agent": lambda: {"method": "GET", "headers": {"User-Agent": None, "Accept": None}},
        "delete": lambda: {"method": "DELETE", "headers": {"Content-Length": "0", "x": b"bytes"}},
    }


class TestUntouched:
    @pytest.mark.parametrize("kind", uploads())
    @pytest.mark.parametrize("with_gateway", [True, False])
    def test_byte_for_byte(self, server: Server, kind: str, with_gateway: bool):
        gateway = Gateway("http://127.0.0.1:1/", forward=FORWARD) if with_gateway else None
        for adapter in (HTTPAdapter(), GatewayAdapter(gateway)):
            with client(adapter) as http, session_scope("s1"):
                assert http.request(url=f"{server.origin}/x", **uploads()[kind]()).ok
        plain, ours = server.arrived
        assert ours.raw == plain.raw

    def test_the_very_request_object_is_sent(self, http, server: Server):
        prepared = requests.Request("GET", server.origin).prepare()
        assert http.send(prepared).request is prepared

    @pytest.mark.parametrize("kind", uploads())
    def test_bound_requests_keep_everything_else(self, http, server: Server, kind: str):
        """Less what the gate sets, a bound request is what the plain adapter sends."""
        options = uploads()[kind]()
        options["headers"] = {
            "User-Agent": "mine",
            "Accept-Encoding": "gzip",
            **options.get("headers", {}),
            **MARKED,
        }
        with session_scope("s1"):
            http.request(url=f"{server.origin}/x", **options)
        options = uploads()[kind]() | {"headers": options["headers"]}
        with client(HTTPAdapter()) as plain:
            plain.request(url=f"{server.origin}/x", **options)
        ours, expected = server.arrived
        stamped = ours.raw.replace(b"X-Cagent-Session-Id: s1\r\n", b"", 1)
        if options["headers"]["User-Agent"] is None:
            stamped = stamped.replace(b"User-Agent: " + ours.get("User-Agent").encode(), b"")
            expected_raw = expected.raw.replace(
                b"User-Agent: " + expected.get("User-Agent").encode(), b""
            )
        else:
            expected_raw = expected.raw
        assert sorted(stamped.split(b"\r\n")) == sorted(expected_raw.split(b"\r\n"))


class TestPreparedRequests:
    def test_the_callers_request_is_never_changed(self, http, server: Server):
        prepared = http.prepare_request(
            requests.Request("POST", f"{server.origin}/x", headers=MARKED, json={"a": 1})
        )
        before = copy.deepcopy(vars(prepared) | {"headers": dict(prepared.headers), "_cookies": 0})
        for session_id in ("s1", "s2"):
            with session_scope(session_id):
                answer = http.send(prepared)
            assert answer.request is not prepared
            assert answer.request.headers["x-cagent-session-id"] == session_id
            assert answer.request.url == prepared.url
            assert answer.request.body == prepared.body
        http.send(prepared)
        after = vars(prepared) | {"headers": dict(prepared.headers), "_cookies": 0}
        assert after == before
        assert [request.session_id for request in server.arrived] == ["s1", "s2", None]

    def test_from_many_threads_at_once(self, server: Server):
        gateway = Gateway(server.origin, forward=FORWARD)
        with client(GatewayAdapter(gateway, pool_maxsize=16)) as http:
            prepared = requests.Request("GET", f"{server.origin}/x").prepare()

            def send(number):
                with session_scope(f"s{number}"):
                    return http.send(prepared).request.headers["X-Cagent-Session-Id"]

            with ThreadPoolExecutor(16) as pool:
                sent = list(pool.map(send, range(200)))
        assert sent == [f"s{number}" for number in range(200)]
        assert sorted(request.session_id for request in server.arrived) == sorted(sent)
        assert "X-Cagent-Forward" not in prepared.headers

    def test_response_request_is_what_went_out(self, server: Server):
        gateway = Gateway(f"{server.origin}?tenant=a", forward=FORWARD)
        with client(GatewayAdapter(gateway)) as http, session_scope("s1"):
            answer = http.get(f"{server.origin}/x")
        assert answer.url == answer.request.url == f"{server.origin}/x?tenant=a"
        assert answer.request.headers["X-Cagent-Forward"] == FORWARD
        assert server.arrived[0].target == "/x?tenant=a"

    def test_headers_in_a_plain_dict(self, http, server: Server):
        prepared = requests.Request("GET", server.origin).prepare()
        prepared.headers = {"x-cagent-forward": FORWARD, "user-agent": "python-mine"}
        with session_scope("s1"):
            http.send(prepared)
        assert server.arrived[0].session_id == "s1"
        assert prepared.headers == {"x-cagent-forward": FORWARD, "user-agent": "python-mine"}

    def test_a_header_that_is_there_twice(self, http, server: Server):
        headers = HTTPHeaderDict([("X-A", "1"), ("X-A", "2"), *MARKED.items()])
        prepared = requests.Request("GET", server.origin).prepare()
        prepared.headers = headers
        with session_scope("s1"):
            http.send(prepared)
        assert server.arrived[0].all("X-A") == ["1", "2"]
        assert server.arrived[0].session_id == "s1"

    @pytest.mark.parametrize("replace", [True, False])
    def test_response_request_has_what_an_adapter_below_has_set(self, server: Server, replace):
        class Signing(HTTPAdapter):
            def send(self, request, *args, **options):
                if replace:
                    request.headers = CaseInsensitiveDict(request.headers)
                request.headers["X-Signature"] = "1"
                return super().send(request, *args, **options)

        class Ours(GatewayMixin, Signing):
            pass

        with client(Ours(Gateway(server.origin, forward=FORWARD))) as http, session_scope("s1"):
            sent = http.get(server.origin).request
        assert sent.headers["X-Signature"] == "1"
        assert "X-Cagent-Forward" not in sent.copy().headers

    def test_responses_can_be_pickled(self, http, server: Server):
        with session_scope("s1"):
            answer = http.get(server.origin, headers=MARKED)
        twin = pickle.loads(pickle.dumps(answer))
        assert twin.request.headers["X-Cagent-Session-Id"] == "s1"
        assert type(twin.request) is requests.PreparedRequest

    def test_hooks_and_cookies_work_as_ever(self, server: Server):
        server.respond = lambda request: response(headers={"Set-Cookie": "a=b"})
        seen = []
        gateway = Gateway(server.origin, forward=FORWARD)
        with client(GatewayAdapter(gateway)) as http:
            http.hooks["response"].append(lambda answer, **options: seen.append(answer.status_code))
            http.get(server.origin)
            http.get(server.origin)
        assert seen == [200, 200]
        assert server.arrived[1].get("Cookie") == "a=b"


class TestStreaming:
    def test_a_streamed_response_is_not_compressed(self, http, server: Server):
        http.get(server.origin, headers=MARKED, stream=True).close()
        http.get(server.origin, headers=MARKED | {"Accept-Encoding": "br"}, stream=True).close()
        http.get(server.origin, headers=MARKED).close()
        http.get(server.origin, stream=True).close()
        default = requests.utils.default_headers()["Accept-Encoding"]
        encodings = [request.get("Accept-Encoding") for request in server.arrived]
        assert encodings == ["identity", "br", default, default]

    def test_chunks_arrive_one_by_one(self, http):
        go_on = threading.Event()

        class Streaming(Server):
            def handle(self, connection):
                connection.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                connection.sendall(head + b"3\r\none\r\n")
                assert go_on.wait(10)
                connection.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

        with Streaming() as server, http.get(server.origin, headers=MARKED, stream=True) as answer:
            chunks = answer.iter_content(None)
            assert next(chunks) == b"one"
            go_on.set()
            assert list(chunks) == [b"two"]


def digest_gateway(stranger: str):
    """Asks for digest authentication, then redirects to a stranger."""

    def respond(request):
        if request.get("Authorization") is None:
            challenge = 'Digest realm="r", nonce="n", qop="auth"'
            return response(401, b"", {"WWW-Authenticate": challenge})
        return redirect(307, stranger) if stranger else response()

    return respond


class TestSendingAgain:
    def test_a_401_handler_is_stamped_again(self, http, server: Server):
        server.respond = digest_gateway("")
        with session_scope("s1"):
            answer = http.get(server.origin, headers=MARKED, auth=HTTPDigestAuth("u", "p"))
        assert answer.status_code == 200
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    @pytest.mark.parametrize("by", ["gateway", "caller"])
    def test_a_redirect_after_it_leaves_the_identifiers_behind(self, by: str):
        with Server() as stranger, Server(digest_gateway(stranger.origin)) as server:
            gateway = Gateway(server.origin, forward=FORWARD) if by == "gateway" else None
            headers = None if gateway else MARKED | {"X-Cagent-Session-Id": "mine"}
            with client(GatewayAdapter(gateway)) as http, session_scope("s1"):
                auth = HTTPDigestAuth("u", "p")
                assert http.get(server.origin, headers=headers, auth=auth).status_code == 200
            assert [request.session_id for request in server.arrived] == ["s1", "s1"]
            (arrived,) = stranger.arrived
        assert arrived.identifiers == {}

    def test_a_hook_that_sends_the_stamped_request_again(self, http, server: Server):
        def again(answer, **options):
            if "X-Again" not in answer.request.headers:
                twice = answer.request.copy()
                twice.headers["X-Again"] = "1"
                with session_scope("s2"):
                    return answer.connection.send(twice, **options)
            return answer

        with session_scope("s1"):
            http.get(server.origin, headers=MARKED, hooks={"response": again})
        assert [request.session_id for request in server.arrived] == ["s1", "s2"]

    def test_retries_are_stamped(self, server: Server):
        answers = iter([response(503), response(429, headers={"Retry-After": "0"}), response()])
        server.respond = lambda request: next(answers)
        retry = Retry(3, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
        gateway = Gateway(server.origin, forward=FORWARD)
        with client(GatewayAdapter(gateway, max_retries=retry)) as http, session_scope("s1"):
            assert http.post(server.origin, json={}).status_code == 200
        assert [request.session_id for request in server.arrived] == ["s1"] * 3


class TestRedirects:
    @pytest.mark.parametrize("marking", ["call", "session"])
    def test_mounted_at_the_gateway_alone(self, marking: str):
        """The next hop is then served by the plain adapter, which takes nothing off."""
        with Server() as stranger, Server(lambda r: redirect(302, stranger.origin)) as server:
            with requests.Session() as http, session_scope("s1"):
                http.trust_env = False
                http.mount(server.origin, GatewayAdapter())
                if marking == "session":
                    http.headers.update(MARKED)
                http.get(server.origin, headers=MARKED if marking == "call" else None)
            assert server.arrived[0].session_id == "s1"
            assert stranger.arrived[0].identifiers == {}

    def test_a_hop_that_is_followed_by_hand(self, http):
        with Server() as stranger, Server(lambda r: redirect(302, stranger.origin)) as server:
            with session_scope("s1"):
                answer = http.get(server.origin, headers=MARKED, allow_redirects=False)
                assert answer.status_code == 302
                http.send(answer.next)
            assert stranger.arrived[0].identifiers == {}

    @pytest.mark.parametrize(
        "location", ["http://[", "http://\\evil", "//", "http://a b/", "\xff\xfe", "http:///x"]
    )
    def test_a_broken_target_is_handled_as_by_the_plain_adapter(self, location: str):
        outcomes = []
        with Server(lambda request: redirect(302, location)) as server:
            for adapter in (HTTPAdapter(), GatewayAdapter()):
                with client(adapter) as http, session_scope("s1"):
                    http.max_redirects = 2
                    try:
                        http.get(server.origin, headers=MARKED, timeout=5)
                        outcomes.append(None)
                    except (requests.RequestException, ValueError) as error:
                        outcomes.append(type(error))
            assert outcomes[0] is outcomes[1]

    def test_no_redirect_no_withdrawal(self, http, server: Server):
        server.respond = lambda request: response(201, headers={"Location": "http://evil.example"})
        prepared = requests.Request("GET", server.origin, headers=MARKED).prepare()
        with session_scope("s1"):
            http.send(prepared)
        assert prepared.headers["X-Cagent-Forward"] == FORWARD


class TestTheAdapterItself:
    def test_mixin_behind_the_adapter_is_refused(self):
        class Own(HTTPAdapter): ...

        for adapter in (HTTPAdapter, Own):
            with pytest.raises(TypeError, match=r"class Wrong\(GatewayMixin, (HTTPAdapter|Own)\)"):
                type("Wrong", (adapter, GatewayMixin), {})

    def test_adapter_before_the_mixin_may_pass_on_to_it(self, server: Server):
        class Logged(HTTPAdapter):
            def send(self, request, **options):
                return super().send(request, **options)

        class Both(Logged, GatewayAdapter): ...

        adapter = Both(Gateway(server.origin, forward=FORWARD))
        with client(adapter) as http, session_scope("s1"):
            http.get(server.origin)
        assert server.arrived[0].session_id == "s1"

    def test_survives_pickle_and_deepcopy(self, server: Server):
        gateway = Gateway(server.origin, forward=FORWARD)
        adapter = GatewayAdapter(gateway, max_retries=3, pool_maxsize=7)
        for twin in (pickle.loads(pickle.dumps(adapter)), copy.deepcopy(adapter)):
            assert twin.gateway == gateway
            assert twin.max_retries.total == 3
            assert twin._pool_maxsize == 7
            with client(twin) as http, session_scope("s1"):
                http.get(server.origin)
        with client(adapter) as http:
            twin = pickle.loads(pickle.dumps(http))
        with twin, session_scope("s2"):
            twin.get(server.origin)
        assert [request.session_id for request in server.arrived] == ["s1", "s1", "s2"]

    def test_send_has_the_signature_of_http_adapter(self):
        ours, theirs = (inspect.signature(cls.send) for cls in (GatewayAdapter, HTTPAdapter))
        assert list(ours.parameters) == list(theirs.parameters)
        defaults = [[p.default for p in s.parameters.values()] for s in (ours, theirs)]
        assert defaults[0] == defaults[1]

    def test_takes_nothing_but_the_gateway_by_position(self):
        with pytest.raises(TypeError):
            GatewayAdapter(None, 10)
        with pytest.raises(TypeError, match="gateway must be a Gateway or None, not str"):
            GatewayAdapter("https://gateway.example")

    def test_mixes_with_another_adapter(self, server: Server):
        class Counting(HTTPAdapter):
            def __init__(self, *, label, **options):
                super().__init__(**options)
                self.label, self.sent = label, []

            def send(self, request, **options):
                self.sent.append(request.headers.get("X-Cagent-Session-Id"))
                return super().send(request, **options)

        class Both(GatewayMixin, Counting):
            pass

        adapter = Both(Gateway(server.origin, forward=FORWARD), label="x", pool_maxsize=2)
        with client(adapter) as http, session_scope("s1"):
            http.get(server.origin)
        assert adapter.label == "x"
        assert adapter.sent == ["s1"]

    def test_the_headers_it_reads_in_private_are_there(self):
        """The adapter reads requests' own table of headers; here is where a change would show."""
        headers = CaseInsensitiveDict({"X-A": "b"})
        assert headers._store == {"x-a": ("X-A", "b")}


class TestPatched:
    """Test doubles that replace the network see the stamped request."""

    @responses.activate
    def test_responses(self):
        responses.post("https://gateway.example/v1/x", json={})
        http = requests.Session()
        gateway = Gateway("https://gateway.example", forward=FORWARD)
        gateway.mount(http)
        with session_scope("s1"):
            answer = http.post(gateway.endpoint("v1/x"), json={})
        sent = responses.calls[0].request
        assert sent.headers["X-Cagent-Session-Id"] == "s1"
        assert sent.headers["X-Cagent-Forward"] == FORWARD
        assert answer.request.headers["X-Cagent-Session-Id"] == "s1"

    @responses.activate
    def test_responses_and_redirects(self):
        responses.get(
            "https://gateway.example/", status=302, headers={"Location": "https://evil.example/"}
        )
        responses.get("https://evil.example/", body="ok")
        with client(GatewayAdapter()) as http, session_scope("s1"):
            http.get("https://gateway.example/", headers=MARKED)
        first, second = (call.request.headers for call in responses.calls)
        assert first["X-Cagent-Session-Id"] == "s1"
        assert not [name for name in second if name.lower().startswith("x-cagent-")]

    def test_http_adapter_send_itself(self, monkeypatch: pytest.MonkeyPatch):
        sent = []

        def fake(self, request, **options):
            sent.append(request.headers.get("X-Cagent-Session-Id"))
            return requests.Response()

        monkeypatch.setattr(HTTPAdapter, "send", fake)
        prepared = requests.Request("GET", "https://gateway.example/", headers=MARKED).prepare()
        with session_scope("s1"):
            GatewayAdapter().send(prepared)
        assert sent == ["s1"]

    def test_an_adapter_of_requests_mock(self):
        class Both(GatewayMixin, requests_mock.Adapter):
            pass

        adapter = Both()
        adapter.register_uri("GET", "https://gateway.example/", text="ok")
        with client(adapter) as http, session_scope("s1"):
            http.get("https://gateway.example/", headers=MARKED)
        assert adapter.last_request.headers["X-Cagent-Session-Id"] == "s1"


class TestProxies:
    def test_no_identifier_is_in_the_connect(self, tls):
        with Server(tls=tls.context) as server, Proxy() as proxy:
            gateway = Gateway(server.at("localhost"), forward=FORWARD)
            with client(GatewayAdapter(gateway)) as http, session_scope("s1"):
                http.get(
                    gateway.endpoint("x"), proxies={"https": proxy.origin}, verify=tls.ca, timeout=5
                )
            (connect,) = proxy.arrived
            assert connect.method == "CONNECT"
            assert connect.identifiers == {}
            assert b"s1" not in connect.raw
            assert server.arrived[0].session_id == "s1"

    def test_through_a_proxy_that_forwards(self, server: Server):
        gateway = Gateway(f"{server.origin}/p?tenant=a", forward=FORWARD)
        with Proxy() as proxy, client(GatewayAdapter(gateway)) as http, session_scope("s1"):
            http.get(gateway.endpoint("x"), proxies={"http": proxy.origin}, timeout=5)
        assert server.arrived[0].session_id == "s1"
        assert server.arrived[0].target == "/p/x?tenant=a"


@pytest.mark.parametrize("break_off", ["refuse", "reset"])
def test_errors_are_those_of_the_plain_adapter(break_off: str):
    outcomes = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(lambda request: None))
        origin = server.origin
        if break_off == "refuse":
            stack.close()
        for adapter in (HTTPAdapter(), GatewayAdapter()):
            with client(adapter) as http, session_scope("s1"):
                with pytest.raises(requests.ConnectionError) as caught:
                    http.get(origin, headers=MARKED, timeout=5)
                outcomes.append(type(caught.value))
                assert current_session_id() == "s1"
    assert outcomes[0] is outcomes[1]


def test_defaults_that_authentication_put_in_bytes_are_defaults(server: Server):
    """As OAuth1 of requests-oauthlib does."""

    def in_bytes(request):
        request.headers.update({name: value.encode() for name, value in request.headers.items()})
        return request

    own = {"User-Agent": "team/1", "Accept": "text/event-stream"}
    gateway = Gateway(server.origin, forward=FORWARD, headers=own)
    with client(GatewayAdapter(gateway)) as http, session_scope("s1"):
        http.get(gateway.endpoint("x"), auth=in_bytes, stream=True).close()
    (arrived,) = server.arrived
    assert {name: arrived.get(name) for name in own} == own
    assert arrived.get("Accept-Encoding") == "identity"


def test_headers_with_several_values_of_a_name_are_marked_every_time(server: Server):
    """Those of a class of its own, too, among them what the session replaces."""
    gateway = Gateway(server.origin, session_header="X-Session-ID")
    given = [("X-Session-ID", "a"), ("x-session-id", "b"), ("X-A", "1"), ("X-A", "2")]
    with requests.Session() as http, session_scope("s1"):
        gateway.mount(http)
        request = http.prepare_request(requests.Request("GET", server.origin))
        request.headers = CIMultiDict(given)  # type: ignore[assignment]
        for _ in range(2):
            http.send(request)
    for arrived in server.arrived:
        assert arrived.all("X-Session-ID") == ["s1"]
        assert arrived.all("X-A") == ["1", "2"]
    assert [value for _, value in request.headers.items()] == ["a", "b", "1", "2"]


@pytest.mark.parametrize("kind", [dict, CaseInsensitiveDict, HTTPHeaderDict])
def test_a_redirect_with_the_callers_session_in_bytes(server: Server, kind):
    server.respond = lambda request: (
        redirect(302, "/second") if request.path == "/first" else response()
    )
    with requests.Session() as http:
        http.mount("http://", GatewayAdapter(Gateway(server.origin, forward=FORWARD)))
        request = http.prepare_request(requests.Request("GET", f"{server.origin}/first"))
        request.headers = kind({"X-Cagent-Session-Id": b"mine"})
        http.send(request)
    assert [each.session_id for each in server.arrived] == ["mine", "mine"]
