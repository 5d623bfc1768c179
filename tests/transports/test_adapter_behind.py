"""requests: the gate in front of another adapter, by ``adapter=`` or by ``Gateway.mount``."""

from __future__ import annotations

import copy
import gzip
import io
import pickle
from typing import Any
from unittest import mock

import pytest
import requests
import requests_mock
import responses
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import HTTPDigestAuth
from support.wire import Server, redirect, response
from urllib3.util import Retry

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayMixin,
    SessionRequired,
    gateway_headers,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"


class Tagging(HTTPAdapter):
    """An adapter of a user's own, which can be told by a header."""

    def __init__(self, tag: str = "1", **options: Any) -> None:
        super().__init__(**options)
        self.tag = tag

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"tag": self.tag}

    def send(self, request, **options):
        request = request.copy()
        request.headers["X-Tag"] = self.tag
        return super().send(request, **options)


class Canned(BaseAdapter):
    """A double, as betamax and others are: no HTTPAdapter, and no settings of one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[requests.PreparedRequest] = []
        self.is_closed = False

    def send(self, request, **options):
        self.seen.append(request)
        answer = requests.Response()
        answer.status_code = 200
        answer.request, answer.url = request, request.url
        return answer

    def close(self) -> None:
        self.is_closed = True


class MixedIntoCanned(GatewayMixin, Canned):
    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)


@pytest.fixture
def http():
    with requests.Session() as http:
        http.trust_env = False
        yield http


def digest(request):
    if request.get("Authorization") is None:
        challenge = 'Digest realm="r", nonce="n", qop="auth"'
        return response(401, b"", {"WWW-Authenticate": challenge})
    return response()


class TestGatewayAdapter:
    def test_the_adapter_behind_sends_what_the_gate_stamped(self, http, server: Server):
        gateway = Gateway(server.origin, forward=FORWARD)
        http.mount("http://", GatewayAdapter(gateway, adapter=Tagging()))
        with session_scope("s1"):
            http.get(server.origin)
        (arrived,) = server.arrived
        assert (arrived.session_id, arrived.forward, arrived.get("X-Tag")) == ("s1", FORWARD, "1")

    def test_any_adapter_will_do(self, http):
        gateway = Gateway("https://gateway.example", forward=FORWARD)
        canned = Canned()
        http.mount("https://", GatewayAdapter(gateway, adapter=canned))
        with session_scope("s1"):
            answer = http.get(gateway.url, timeout=5, stream=True)
        assert canned.seen[0].headers["X-Cagent-Session-Id"] == "s1"
        assert answer.request is canned.seen[0]
        assert "X-Cagent-Session-Id" not in answer.request.copy().headers

    def test_close_closes_the_adapter_behind(self):
        canned = Canned()
        GatewayAdapter(adapter=canned).close()
        assert canned.is_closed

    def test_authentication_that_sends_again_passes_the_gate(self, http, server: Server):
        server.respond = digest
        gateway = Gateway(server.origin, forward=FORWARD)
        adapter = GatewayAdapter(gateway, adapter=Tagging())
        http.mount("http://", adapter)
        with session_scope("s1"):
            answer = http.get(server.origin, auth=HTTPDigestAuth("u", "p"))
        assert answer.connection is adapter
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    def test_so_does_authentication_over_a_mixin_that_passes_on(self, http, server: Server):
        below = HTTPAdapter()

        class Passing(HTTPAdapter):
            def send(self, request, **options):
                return below.send(request, **options)

            def close(self):
                below.close()

        class Ours(GatewayMixin, Passing): ...

        server.respond = digest
        gateway = Gateway(server.origin, forward=FORWARD)
        http.mount("http://", Ours(gateway))
        with session_scope("s1"):
            http.get(server.origin, auth=HTTPDigestAuth("u", "p"))
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    @pytest.mark.parametrize("is_mixin", [False, True])
    def test_options_of_its_own_reach_it_and_none_is_added(self, http, is_mixin: bool):
        class Tagging(Canned):
            def send(self, request, **options):
                self.options = options
                return super().send(request)

        class Mixed(GatewayMixin, Tagging):
            def __init__(self) -> None:
                super().__init__(gateway)

        gateway = Gateway("https://gateway.example", forward=FORWARD)
        tagging = Mixed() if is_mixin else Tagging()
        http.mount("https://", tagging if is_mixin else GatewayAdapter(gateway, adapter=tagging))
        request = requests.Request("GET", gateway.url).prepare()
        for wanted in ({"tag": "one", "stream": True}, {"timeout": 5}):
            http.send(request, **wanted)
            options = {"stream": False, "verify": True, "cert": None, "proxies": {}} | wanted
            assert tagging.options == options

    def test_its_pools_are_made_anew_by_itself(self, http):
        """As requests-futures does for the adapters of a session that it is given."""

        class Bound(HTTPAdapter):
            def init_poolmanager(self, *arguments, **options):
                super().init_poolmanager(*arguments, source_address=("127.0.0.1", 0), **options)

        gateway = Gateway("https://gateway.example", forward=FORWARD)
        http.mount("https://", Bound())
        adapter = gateway.mount(http)
        adapter.init_poolmanager(7, 20)
        pools = adapter.poolmanager.connection_pool_kw
        assert (pools["maxsize"], pools["source_address"]) == (20, ("127.0.0.1", 0))

    def test_options_may_be_given_by_position(self, http):
        class Stating(Canned):
            def send(self, request, **options):
                self.options = options
                return super().send(request)

        stating = Stating()
        request = requests.Request("GET", "https://gateway.example").prepare()
        GatewayAdapter(adapter=stating).send(request, True, 5)
        assert stating.options == {"stream": True, "timeout": 5}

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, lambda http: pickle.loads(pickle.dumps(http))]
    )
    def test_a_mixin_over_any_adapter_can_be_pickled_and_copied(self, http, copied):
        gateway = Gateway("https://gateway.example", forward=FORWARD)
        http.mount("https://", MixedIntoCanned(gateway))
        with session_scope("s1"):
            answer = copied(http).get(gateway.url, timeout=5, stream=True)
        assert answer.request.headers["X-Cagent-Session-Id"] == "s1"

    def test_a_body_that_it_has_read_can_be_sent_again(self, http, server: Server):
        """For a server that takes no chunks, for example."""
        gateway = Gateway(server.origin, forward=FORWARD)

        class Reading(HTTPAdapter):
            def send(self, request, **options):
                if not isinstance(request.body, bytes):
                    request.body = b"".join(request.body)
                    del request.headers["Transfer-Encoding"]
                    request.headers["Content-Length"] = str(len(request.body))
                return super().send(request, **options)

        server.respond = lambda request: redirect(307, "/b") if request.path == "/a" else response()
        http.mount("http://", GatewayAdapter(gateway, adapter=Reading()))
        with session_scope("s1"):
            http.post(f"{server.origin}/a", data=iter([b"one", b"two"]))
        assert [request.body for request in server.arrived] == [b"onetwo", b"onetwo"]
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]

    @pytest.mark.parametrize("made", [io.BytesIO, lambda content: iter([content])])
    def test_a_body_that_it_has_read_is_there_after_an_error(self, http, server: Server, made):
        class Failing(HTTPAdapter):
            is_first = True

            def send(self, request, **options):
                if not isinstance(request.body, bytes):
                    request.body = b"".join(request.body)
                if self.is_first:
                    self.is_first = False
                    raise requests.ConnectionError
                return super().send(request, **options)

        gateway = Gateway(server.origin, forward=FORWARD)
        http.mount("http://", GatewayAdapter(gateway, adapter=Failing()))
        prepared = http.prepare_request(requests.Request("POST", server.origin, data=made(b"body")))
        with session_scope("s1"):
            with pytest.raises(requests.ConnectionError):
                http.send(prepared)
            http.send(prepared)
        assert b"body" in server.arrived[0].body

    def test_an_error_of_its_own_reaches_the_caller(self, http):
        class CircuitIsOpen(requests.ConnectionError):
            def __init__(self, host: str) -> None:  # and so it has no attribute "request"
                self.host = host

        class Breaking(HTTPAdapter):
            def send(self, request, **options):
                raise CircuitIsOpen("gateway.example")

        gateway = Gateway("http://gateway.example", forward=FORWARD)
        http.mount("http://", GatewayAdapter(gateway, adapter=Breaking()))
        with session_scope("s1"), pytest.raises(CircuitIsOpen):
            http.get(gateway.url)

    def test_a_body_that_it_has_replaced_is_not_the_callers(self, http, server: Server):
        """The adapter compresses each hop: twice would be once too often."""

        class Compressing(HTTPAdapter):
            def send(self, request, **options):
                request.body = gzip.compress(request.body)
                request.headers["Content-Encoding"] = "gzip"
                request.headers["Content-Length"] = str(len(request.body))
                return super().send(request, **options)

        server.respond = lambda request: redirect(307, "/b") if request.path == "/a" else response()
        gateway = Gateway(server.origin, forward=FORWARD)
        http.mount("http://", GatewayAdapter(gateway, adapter=Compressing()))
        with session_scope("s1"):
            http.post(f"{server.origin}/a", data=b"body")
        assert [gzip.decompress(request.body) for request in server.arrived] == [b"body", b"body"]

    def test_settings_are_those_of_the_adapter_behind(self):
        behind = HTTPAdapter(max_retries=3)
        adapter = GatewayAdapter(adapter=behind)
        for name in ("max_retries", "poolmanager", "proxy_manager", "config"):
            assert getattr(adapter, name) is getattr(behind, name)
        adapter.max_retries = Retry(7)
        assert behind.max_retries.total == 7
        with mock.patch.object(adapter, "max_retries", Retry(1)):
            assert behind.max_retries.total == 1
        assert behind.max_retries.total == 7
        tagging = Tagging()
        adapter = GatewayAdapter(adapter=tagging)
        adapter.tag = "2"
        assert (adapter.tag, tagging.tag) == ("2", "2")
        with mock.patch.object(adapter, "tag", "3"):
            assert tagging.tag == "3"
        assert (adapter.tag, tagging.tag) == ("2", "2")
        with pytest.raises(AttributeError):
            _ = GatewayAdapter(adapter=Canned()).max_retries
        with pytest.raises(AttributeError):
            _ = GatewayAdapter().no_such_name

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"adapter": requests.Session()},
                r"not Session: write GatewayAdapter\(gateway",
            ),
            ({"adapter": HTTPAdapter(), "max_retries": 3}, "max_retries cannot be given together"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(TypeError, match=message):
            GatewayAdapter(None, **arguments)

    @pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
    def test_survives_copying_and_pickling(self, http, server: Server, twin_of):
        gateway = Gateway(server.origin, forward=FORWARD)
        twin = twin_of(GatewayAdapter(gateway, adapter=Tagging("twin", max_retries=2)))
        http.mount("http://", twin)
        with session_scope("s1"):
            http.get(server.origin)
        (arrived,) = server.arrived
        assert (arrived.session_id, arrived.get("X-Tag")) == ("s1", "twin")
        assert twin.max_retries.total == 2
        assert twin.gateway == gateway

    def test_one_gate_in_front_of_another_changes_nothing(self, http, server: Server):
        inner = Gateway(server.origin, forward="https://inner.example", provider="inner")
        outer = Gateway(server.origin, forward=FORWARD)
        http.mount("http://", GatewayAdapter(outer, adapter=GatewayAdapter(inner)))
        with session_scope("s1"):
            http.get(server.origin)
        (arrived,) = server.arrived
        assert arrived.forward == FORWARD
        assert "x-cagent-provider" not in arrived.identifiers

    def test_what_the_outer_gate_does_not_bind_the_inner_one_judges(self, http, server: Server):
        inner = Gateway(server.origin, forward=FORWARD)
        http.mount("http://", GatewayAdapter(adapter=GatewayAdapter(inner)))
        with session_scope("s1"):
            http.get(server.origin)
        assert server.arrived[0].session_id == "s1"


class TestMountKeepsTheAdaptersThatAreThere:
    def test_at_the_scheme(self, http, server: Server):
        http.mount("http://", HTTPAdapter(max_retries=Retry(3, status_forcelist=[503])))
        gateway = Gateway(f"{server.origin}/llm", forward=FORWARD)
        adapter = gateway.mount(http)
        answers = iter([response(503), response(503), response()])
        server.respond = lambda request: next(answers)
        with session_scope("s1"):
            assert http.get(gateway.endpoint("v1")).status_code == 200
        assert [request.session_id for request in server.arrived] == ["s1"] * 3
        assert adapter.max_retries.total == 3

    def test_at_the_gateways_very_url(self, http, server: Server):
        http.mount(server.origin, Tagging())
        gateway = Gateway(server.origin, forward=FORWARD)
        gateway.mount(http)
        with session_scope("s1"):
            http.get(gateway.endpoint("v1"))
        assert (server.arrived[0].get("X-Tag"), server.arrived[0].session_id) == ("1", "s1")

    def test_at_a_longer_prefix(self, http, server: Server):
        gateway = Gateway(server.origin, forward=FORWARD, require_session=True)
        http.mount(f"{server.origin}/v1/", Tagging())
        gateway.mount(http)
        with session_scope("s1"):
            http.get(f"{server.origin}/v1/x")
            http.get(f"{server.origin}/v2/x")
        with pytest.raises(SessionRequired):
            http.get(f"{server.origin}/v1/x")
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]
        assert [request.get("X-Tag") for request in server.arrived] == ["1", None]

    @pytest.mark.parametrize("prefix", ["HTTP://{host}/", "http://{host}", "Http://{host}/llm"])
    def test_at_a_prefix_in_another_spelling(self, http, server: Server, prefix: str):
        host = server.origin.removeprefix("http://")
        http.mount(prefix.format(host=host), Tagging())
        gateway = Gateway(f"{server.origin}/llm", forward=FORWARD)
        gateway.mount(http)
        with session_scope("s1"):
            http.get(gateway.endpoint("v1"))
        assert (server.arrived[0].get("X-Tag"), server.arrived[0].session_id) == ("1", "s1")

    def test_the_hosts_other_paths_are_sent_as_before(self, http, server: Server):
        http.mount(f"{server.origin}/", Tagging())
        gateway = Gateway(f"{server.origin}/llm", forward=FORWARD)
        gateway.mount(http, max_retries=2)
        with session_scope("s1"):
            for path in ("/other", "/llmx", "/llm/x"):
                http.get(server.origin + path)
        assert [request.session_id for request in server.arrived] == [None, None, "s1"]
        assert [request.get("X-Tag") for request in server.arrived] == ["1", "1", None]

    def test_settings_make_an_adapter_for_all_urls_of_the_gateway(self, http, server: Server):
        """Those at longer prefixes, and in another spelling, included."""
        http.mount(f"{server.origin}/llm/v1/", Tagging("longer"))
        http.mount("http://", Tagging("scheme"))
        gateway = Gateway(f"{server.origin}/llm", forward=FORWARD)
        adapter = gateway.mount(http, max_retries=2)
        assert adapter.max_retries.total == 2
        with session_scope("s1"):
            for path in ("/llm/v1/x", "/llm/x", "/%6Clm/x", "/llm"):
                http.get(server.origin + path)
        assert [request.session_id for request in server.arrived] == ["s1"] * 4
        assert [request.get("X-Tag") for request in server.arrived] == [None] * 4
        assert gateway.mount(http, max_retries=5).max_retries.total == 5

    def test_mounting_again_changes_nothing(self, http, server: Server):
        gateway = Gateway(server.origin, forward=FORWARD)
        first = gateway.mount(http)
        before = list(http.adapters.items())
        assert gateway.mount(http) is first
        assert Gateway(server.origin, forward=FORWARD).mount(http) is first
        assert list(http.adapters.items()) == before

    def test_an_adapter_of_ours_mounted_by_hand_counts(self, http, server: Server):
        nested = Gateway(f"{server.origin}/llm/deep", forward="https://deep.example")
        http.mount("http://", GatewayAdapter(nested))
        Gateway(f"{server.origin}/llm", forward=FORWARD).mount(http)
        with session_scope("s1"):
            http.get(f"{server.origin}/llm/x")
            http.get(f"{server.origin}/llm/deep/x")
        assert [request.forward for request in server.arrived] == [FORWARD, "https://deep.example"]

    def test_a_session_class_of_a_users_own(self, server: Server):
        class Mine(requests.Session):
            def __init__(self) -> None:
                super().__init__()
                self.mount("http://", Tagging("mine"))

        with Mine() as http, session_scope("s1"):
            Gateway(server.origin, forward=FORWARD).mount(http)
            http.get(server.origin)
        assert (server.arrived[0].get("X-Tag"), server.arrived[0].session_id) == ("mine", "s1")

    def test_without_an_adapter_for_the_scheme(self, server: Server):
        with requests.Session() as http, session_scope("s1"):
            http.adapters.clear()
            Gateway(server.origin, forward=FORWARD).mount(http)
            http.get(server.origin)
        assert server.arrived[0].session_id == "s1"

    def test_pickled_and_copied_with_adapters_of_every_kind(self, http, server: Server):
        http.mount("http://", Tagging("behind"))
        for path in ("/a", "/b"):
            Gateway(server.origin + path, forward=FORWARD).mount(http)
        Gateway(f"{server.origin}/c", forward=FORWARD).mount(http, max_retries=4)
        for twin in (pickle.loads(pickle.dumps(http)), copy.deepcopy(http)):
            server.arrived.clear()
            with twin, session_scope("s1"):
                for path in ("/a", "/b", "/c", "/d"):
                    twin.get(server.origin + path)
                assert twin.get_adapter(f"{server.origin}/c/x").max_retries.total == 4
            seen = [(r.session_id, r.get("X-Tag")) for r in server.arrived]
            assert seen == [("s1", "behind"), ("s1", "behind"), ("s1", None), (None, "behind")]

    def test_many_gateways_look_at_each_adapter_once_per_mount(self, http):
        class Counted(dict[str, Any]):
            looked_at = 0

            def __iter__(self):
                self.looked_at += len(self)
                return super().__iter__()

        adapters = Counted(http.adapters)
        http.adapters = adapters
        for number in range(200):
            before = adapters.looked_at
            Gateway(f"http://gateway.example/{number}", forward=FORWARD).mount(http)
            assert adapters.looked_at - before <= 4 * len(adapters)
        assert len(adapters) <= 4  # those for the schemes and the origin, whatever the number

    def test_redirects_and_authentication_pass_the_gate(self, http, server: Server):
        http.mount("http://", Tagging())
        Gateway(server.origin, forward=FORWARD).mount(http)
        server.respond = lambda r: redirect(307, "/b") if r.path == "/a" else digest(r)
        with session_scope("s1"):
            http.get(f"{server.origin}/a", auth=HTTPDigestAuth("u", "p"))
        assert [request.session_id for request in server.arrived] == ["s1"] * 3
        assert [request.get("X-Tag") for request in server.arrived] == ["1"] * 3


class TestTestDoubles:
    def test_responses(self, http):
        gateway = Gateway("https://gateway.example", forward=FORWARD)
        gateway.mount(http)
        with responses.RequestsMock() as mocked, session_scope("s1"):
            mocked.get(gateway.url, body="canned")
            assert http.get(gateway.url).text == "canned"
            assert mocked.calls[0].request.headers["X-Cagent-Session-Id"] == "s1"

    def test_an_adapter_of_requests_mock_that_is_there(self, http):
        gateway = Gateway("https://gateway.example", forward=FORWARD)
        double = requests_mock.Adapter()
        double.register_uri("GET", f"{gateway.url}/v1", text="canned")
        http.mount(gateway.url, double)
        gateway.mount(http)
        with session_scope("s1"):
            assert http.get(gateway.endpoint("v1")).text == "canned"
        assert double.last_request.headers["X-Cagent-Session-Id"] == "s1"

    def test_callers_headers_come_off_on_a_redirect_of_a_double(self, http, server: Server):
        double = requests_mock.Adapter()
        headers = {"Location": server.origin}
        double.register_uri("GET", "https://gateway.example/", status_code=302, headers=headers)
        http.mount("https://", GatewayAdapter(adapter=double))
        with session_scope("s1"):
            http.get("https://gateway.example/", headers=gateway_headers(FORWARD))
        assert server.arrived[0].identifiers == {}
