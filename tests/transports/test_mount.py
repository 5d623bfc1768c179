"""Several gateways on one session: each request belongs to the one with the longest path."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import subprocess
import sys
import textwrap
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import httpx
import pytest
import requests
from requests.adapters import HTTPAdapter
from support.lifetime import Watch
from support.wire import Server, redirect, response

from cagent_session import Gateway, GatewayAdapter, session_scope
from cagent_session._gate.routes import Router

OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com"


class Double(HTTPAdapter):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[requests.PreparedRequest] = []

    def send(self, request, **options):
        self.seen.append(request)
        answer = requests.Response()
        answer.status_code, answer.request = 200, request
        return answer


@pytest.fixture
def http():
    with requests.Session() as http:
        http.trust_env = False
        yield http


def gateways_at(origin: str) -> dict[str, Gateway]:
    """By the forward that says in each request which of them it was for."""
    paths = {
        OPENAI: "/openai",
        ANTHROPIC: "/anthropic",
        "https://nested.example": "/openai/nested",
        "https://deep.example": "/openai/nested/deep",
        "https://root.example": "",
        "https://other.example": "/openai2",
    }
    return {forward: Gateway(origin + path, forward=forward) for forward, path in paths.items()}


ASKED = {
    "/openai/v1/x": OPENAI,
    "/openai": OPENAI,
    "/openai?x": OPENAI,
    "/OPENAI/x": "https://root.example",
    "/%6Fpenai/x": OPENAI,
    "/anthropic/v1/messages": ANTHROPIC,
    "/openai/nested": "https://nested.example",
    "/openai/nested/x": "https://nested.example",
    "/openai/nestedx": OPENAI,
    "/openai/nested/deep/x": "https://deep.example",
    "/openai2/x": "https://other.example",
    "/": "https://root.example",
    "/else": "https://root.example",
}


def check(http: requests.Session, server: Server, mounted: dict[str, Gateway]) -> None:
    server.arrived.clear()
    with session_scope("s1"):
        for path in ASKED:
            assert http.get(server.origin + path, timeout=10).status_code == 200
    for path, arrived in zip(ASKED, server.arrived, strict=True):
        url = requests.Request("GET", server.origin + path).prepare().url
        owners = [forward for forward, gateway in mounted.items() if gateway.owns(url)]
        owner = max(owners, key=lambda forward: len(mounted[forward]._route.path), default=None)
        assert arrived.forward == owner, path
        assert arrived.session_id == ("s1" if owner else None)
        if len(mounted) == 6:
            assert owner == ASKED[path], path


@pytest.mark.parametrize("order", range(24))
def test_in_every_order_of_mounting(http, server: Server, order: int):
    every = list(gateways_at(server.origin).items())
    some, rest = every[:4], every[4:]
    mounted = {}
    for forward, gateway in [*list(itertools.permutations(some))[order], *rest]:
        adapter = gateway.mount(http)
        assert isinstance(adapter, GatewayAdapter)
        mounted[forward] = gateway
        check(http, server, mounted)


@pytest.mark.parametrize("chosen", list(itertools.combinations(range(6), 2)))
def test_in_pairs_both_ways(http, server: Server, chosen):
    every = list(gateways_at(server.origin).items())
    for pair in (chosen, chosen[::-1]):
        with requests.Session() as http:
            http.trust_env = False
            mounted = {every[number][0]: every[number][1] for number in pair}
            for gateway in mounted.values():
                gateway.mount(http)
            check(http, server, mounted)


@pytest.mark.parametrize("path", ["/./openai/x", "/openai/%2e%2e/x", "//openai", "/openai%2fx"])
def test_what_may_be_another_ones_is_not_the_roots(http, server: Server, path: str):
    for gateway in gateways_at(server.origin).values():
        gateway.mount(http)
    with session_scope("s1"):
        http.get(server.origin + path, timeout=10)
        http.get(f"{server.origin}//v1/x", timeout=10)
    assert server.arrived[0].forward != "https://root.example"
    assert server.arrived[1].forward == "https://root.example"


def test_other_hosts_and_ports(http, server: Server):
    with Server() as other:
        for target, forward in ((server, OPENAI), (other, ANTHROPIC)):
            Gateway(target.origin, forward=forward).mount(http)
        for target, forward in ((server, OPENAI), (other, ANTHROPIC)):
            http.get(target.origin)
            assert target.arrived[0].forward == forward


def test_each_keeps_its_own_adapter_options(http):
    one = Gateway("https://gateway.example/openai", forward=OPENAI).mount(http, max_retries=3)
    two = Gateway("https://gateway.example/anthropic", forward=ANTHROPIC).mount(http)
    for port in ("", ":443"):
        assert http.get_adapter(f"https://gateway.example{port}/openai/x") is one
        assert http.get_adapter(f"https://gateway.example{port}/anthropic/x") is two
    assert (one.max_retries.total, two.max_retries.total) == (3, 0)
    assert type(http.get_adapter("https://elsewhere.example/openai")) is HTTPAdapter


@pytest.mark.parametrize("other", [None, requests.Session, httpx.Client])
def test_only_on_a_session_of_requests(other):
    with pytest.raises(TypeError, match=r"takes a requests.Session, not .*GatewayTransport"):
        Gateway("https://gateway.example", forward="https://a.example").mount(other)


def test_on_every_session_while_another_class_stands_in_for_it():
    """As requests_cache.install_cache() has it, when the first gateway is mounted."""
    code = """
        import requests
        from cagent_session import Gateway, GatewayAdapter
        gateway = Gateway("https://gateway.example", forward="https://a.example")
        original, before = requests.Session, requests.Session()
        class Cached(original):
            pass
        requests.Session = requests.sessions.Session = Cached
        meanwhile = requests.Session()
        assert isinstance(gateway.mount(meanwhile), GatewayAdapter)
        assert isinstance(gateway.mount(before), GatewayAdapter)
        requests.Session = requests.sessions.Session = original
        assert isinstance(gateway.mount(requests.Session()), GatewayAdapter)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("remedy", [False, True])
def test_a_session_that_chooses_its_adapters_itself_costs_a_warning(caplog, remedy: bool):
    gateway = Gateway("https://gateway.example", forward=OPENAI)
    plain = HTTPAdapter()
    own = GatewayAdapter(gateway, adapter=plain) if remedy else plain

    class Balanced(requests.Session):
        def get_adapter(self, url):
            return own

    for _ in range(2):
        with Balanced() as http:
            assert gateway.mount(http) is own
    messages = [each.getMessage() for each in caplog.records if each.name == "cagent_session"]
    if remedy:
        assert messages == []
    else:
        (message,) = messages
        assert "Balanced.get_adapter() does not return" in message
        assert "GatewayAdapter(gateway, adapter=...)" in message
        assert "instrument(gateway)" in message


class CountedAdapters(OrderedDict):
    seen = 0

    def __iter__(self):
        for each in super().__iter__():
            self.seen += 1
            yield each

    def items(self):
        return [(each, self[each]) for each in self]

    def values(self):
        return [self[each] for each in self]


def test_of_many_gateways_looks_at_each_adapter_a_few_times(http):
    http.adapters = CountedAdapters(http.adapters)
    for number in range(50):
        Gateway(f"https://gateway{number}.example", forward=OPENAI).mount(http)
    http.adapters.seen = 0
    Gateway("https://gateway.example", forward=OPENAI).mount(http)
    assert http.adapters.seen < 7 * len(http.adapters)


class TestTheSamePlace:
    @pytest.mark.parametrize(
        "other",
        [
            Gateway("https://gateway.example/p", forward=ANTHROPIC),
            Gateway("https://gateway.example/p", forward=OPENAI, model="m"),
            Gateway("https://gateway.example/p", session_header="X-Session-ID"),
            Gateway("https://gateway.example/p?tenant=a", forward=OPENAI),
            Gateway("https://gateway.example/p/", forward=ANTHROPIC),
            Gateway("https://GATEWAY.example:443/%70", forward=ANTHROPIC),
        ],
    )
    def test_is_not_for_two(self, http, other: Gateway):
        gateway = Gateway("https://gateway.example/p", forward=OPENAI)
        adapter = gateway.mount(http)
        before = dict(http.adapters)
        with pytest.raises(ValueError, match="two different gateways") as caught:
            other.mount(http)
        assert "https://gateway.example/p" in str(caught.value)
        assert "headers=gateway_headers(...)" in str(caught.value)
        assert http.adapters == before
        assert http.get_adapter("https://gateway.example/p") is adapter

    def test_may_be_mounted_again(self, http, server: Server):
        gateway = Gateway(server.origin + "/openai", forward=OPENAI)
        Gateway(server.origin + "/anthropic", forward=ANTHROPIC).mount(http)
        gateway.mount(http)
        again = Gateway(server.origin + "/openai", forward=OPENAI).mount(http, max_retries=2)
        assert http.get_adapter(server.origin + "/openai/x") is again

    def test_is_free_again_once_nothing_is_mounted_there(self, http, server: Server):
        Gateway(server.origin, forward=OPENAI).mount(http)
        http.mount(f"{server.origin}/", HTTPAdapter())
        Gateway(server.origin, forward=ANTHROPIC).mount(http)
        http.get(server.origin)
        assert server.arrived[0].forward == ANTHROPIC

    def test_is_free_again_once_an_adapter_mounted_by_hand_is_replaced(self, http):
        """Also if a gateway at another origin has been mounted in front of that adapter."""
        http.mount("http://", GatewayAdapter(Gateway("http://gw.example", forward=OPENAI)))
        Gateway("http://other.example", forward=OPENAI).mount(http)
        http.mount("http://", HTTPAdapter())
        mounted = Gateway("http://gw.example", forward=ANTHROPIC).mount(http)
        assert mounted.gateway is not None
        assert mounted.gateway.forward == ANTHROPIC

    def test_takes_no_more_adapters_when_the_one_behind_is_renewed_again_and_again(self, http):
        gateway = Gateway("https://gw.example:8443", forward=OPENAI)
        for _ in range(1000):
            http.mount("https://gw.example:8443/", HTTPAdapter())
            gateway.mount(http)
        assert len(http.adapters) < 10
        http.close()
        copy.deepcopy(http)

    def test_an_adapter_that_was_mounted_by_hand_counts(self, http):
        http.mount("https://", GatewayAdapter(Gateway("https://gateway.example", forward=OPENAI)))
        with pytest.raises(ValueError, match="two different gateways"):
            Gateway("https://gateway.example", forward=ANTHROPIC).mount(http)


class TestAfterAnAdapterAtTheHost:
    """A user has replaced the gate at the host, but not the one at the path of a gateway."""

    @pytest.fixture
    def of_path(self, http, server: Server) -> Gateway:
        gateway = Gateway(server.origin + "/openai", forward=OPENAI, headers={"X-Api-Key": "one"})
        gateway.mount(http, max_retries=3)
        http.mount(server.origin + "/", HTTPAdapter())
        return gateway

    def test_requests_to_the_path_stay_those_of_its_gateway(self, http, server: Server, of_path):
        of_host = Gateway(server.origin, forward=ANTHROPIC, headers={"X-Api-Key": "two"})
        of_host.mount(http)
        with session_scope("s1"):
            for path in ("/openai/v1", "/%6Fpenai/v1", "/v1"):
                http.get(server.origin + path)
        forwards = [arrived.forward for arrived in server.arrived]
        assert forwards == [OPENAI, OPENAI, ANTHROPIC]
        keys = [arrived.get("X-Api-Key") for arrived in server.arrived]
        assert keys == ["one", "one", "two"]
        assert http.get_adapter(of_path.url).max_retries.total == 3

    def test_so_do_those_below_it_in_a_copy(self, http, server: Server, of_path):
        Gateway(server.origin + "/openai/nested", forward="https://nested.example").mount(http)
        http.mount(server.origin + "/", HTTPAdapter())
        copied = copy.deepcopy(http)
        Gateway(server.origin, forward=ANTHROPIC).mount(copied)
        with copied, session_scope("s1"):
            for path in ("/openai/nested/x", "/openai/x", "/x"):
                copied.get(server.origin + path)
        forwards = [arrived.forward for arrived in server.arrived]
        assert forwards == ["https://nested.example", OPENAI, ANTHROPIC]

    def test_another_one_may_be_mounted_in_its_place(self, http, server: Server, of_path):
        renewed = replace(of_path, headers={"X-Api-Key": "renewed"})
        assert renewed.mount(http).gateway is renewed
        with session_scope("s1"):
            http.get(renewed.endpoint("v1"))
        (arrived,) = server.arrived
        assert arrived.get("X-Api-Key") == "renewed"
        assert http.get_adapter(of_path.url).max_retries.total == 3

    def test_others_may_be_mounted_in_the_place_of_several(self, http, server: Server, of_path):
        of_other = Gateway(server.origin + "/other", forward=ANTHROPIC, headers={"X-Api-Key": "2"})
        of_other.mount(http, max_retries=3)
        http.mount(server.origin + "/", HTTPAdapter())
        for gateway in (of_path, of_other):
            renewed = replace(gateway, headers={"X-Api-Key": "renewed"})
            renewed.mount(http, max_retries=3)
            with session_scope("s1"):
                http.get(renewed.endpoint("v1"))
        assert [arrived.get("X-Api-Key") for arrived in server.arrived] == ["renewed"] * 2

    def test_one_that_was_replaced_does_not_come_back(self, http, server: Server, of_path):
        Gateway(server.origin, forward=ANTHROPIC).mount(http)
        http.mount(server.origin + "/", HTTPAdapter())
        Gateway(server.origin + "/openai2", forward="https://other.example").mount(http)
        with session_scope("s1"):
            http.get(server.origin + "/v1")
        (arrived,) = server.arrived
        assert arrived.forward is None

    @pytest.mark.parametrize("paths", [[""], ["/openai", "/other"], ["/other", "/openai", ""]])
    def test_gates_do_not_pile_up(self, http, server: Server, of_path, paths):
        for _ in range(sys.getrecursionlimit() // 2):
            http.mount(server.origin + "/", HTTPAdapter())
            for path in paths:
                Gateway(server.origin + path, forward="https://api.example" + path).mount(http)
        with session_scope("s1"):
            http.get(of_path.endpoint("v1"))
        is_renewed = "/openai" in paths
        assert server.arrived[0].forward == ("https://api.example/openai" if is_renewed else OPENAI)

    def test_works_without_an_adapter_for_the_scheme(self, http, server: Server, of_path):
        of_host = Gateway(server.origin, forward=ANTHROPIC)
        del http.adapters["http://"]
        of_host.mount(http)
        del http.adapters[server.origin + "/"]
        of_host.mount(http)
        with session_scope("s1"):
            http.get(of_path.endpoint("v1"))
            http.get(of_host.endpoint("v1"))
        assert [arrived.forward for arrived in server.arrived] == [OPENAI, ANTHROPIC]

    def test_the_next_mount_looks_at_each_adapter_a_few_times(self, http, server, of_path):
        http.adapters = CountedAdapters(http.adapters)
        for number in range(50):
            Gateway(f"{of_path.url}/{number}", forward=OPENAI).mount(http, max_retries=1)
        http.mount(server.origin + "/", HTTPAdapter())
        http.adapters.seen = 0
        of_path.mount(http)
        assert http.adapters.seen < 7 * len(http.adapters)


class TestAnAdapterInPlaceOfOneWithSettings:
    """A user has put it at the URL of a gateway after ``mount`` with keywords, such as a double."""

    @pytest.fixture(params=["http://gw.example", "http://gw.example:8080", "http://gw.example/a"])
    def gateway(self, http, request) -> Gateway:
        gateway = Gateway(request.param, forward=OPENAI)
        gateway.mount(http, max_retries=3)
        return gateway

    def test_sends_once_it_is_mounted_again(self, http, gateway: Gateway):
        double = Double()
        http.mount(gateway.endpoint(""), double)
        gateway.mount(http)
        with session_scope("s1"):
            http.get(gateway.endpoint("v1"))
        assert double.seen[0].headers["X-Cagent-Session-Id"] == "s1"

    def test_sends_once_another_one_is_mounted(self, http):
        gateway = Gateway("http://gw.example:8080/a", forward=OPENAI)
        gateway.mount(http, max_retries=3)
        double = Double()
        http.mount(gateway.url, double)
        Gateway("http://gw.example:8080/other", forward=ANTHROPIC).mount(http)
        with session_scope("s1"):
            http.get(gateway.endpoint("v1"))
        assert double.seen[0].headers["X-Cagent-Forward"] == OPENAI

    @pytest.mark.parametrize("order", [1, -1])
    def test_sends_once_all_are_mounted_again(self, http, order: int):
        gateways = [Gateway("http://gw.example:8080" + path, forward=OPENAI) for path in ("", "/a")]
        for gateway in gateways:
            gateway.mount(http, max_retries=3)
        double = Double()
        http.mount("http://gw.example:8080/", double)
        for gateway in gateways[::order]:
            gateway.mount(http)
        with session_scope("s1"):
            http.get(gateways[0].endpoint("v1"))
        assert double.seen[0].headers["X-Cagent-Session-Id"] == "s1"
        assert http.get_adapter(gateways[1].endpoint("v1")).max_retries.total == 3

    def test_sends_on_a_session_with_the_same_adapters_too(self, http, gateway: Gateway):
        double = Double()
        http.mount(gateway.endpoint(""), double)
        gateway.mount(http)
        other = requests.Session()
        other.adapters = http.adapters.copy()
        gateway.mount(other)
        request = requests.Request("GET", gateway.endpoint("v1")).prepare()
        assert other.get_adapter(request.url).adapter_for(request) is double

    def test_sends_no_more_once_it_is_mounted_with_keywords_again(self, http, gateway: Gateway):
        http.mount(gateway.endpoint(""), Double())
        gateway.mount(http)
        gateway.mount(http, max_retries=5)
        adapter = http.get_adapter(gateway.endpoint("v1"))
        request = requests.Request("GET", gateway.endpoint("v1")).prepare()
        assert adapter.adapter_for(request).max_retries.total == 5

    @pytest.mark.parametrize(
        "gateway", ["http://gw.example", "http://gw.example:8080/a"], indirect=True
    )
    def test_leaves_those_at_longer_prefixes_alone(self, http, gateway: Gateway):
        below = gateway.endpoint("below/")
        http.mount(below, Double())
        gateway.mount(http, max_retries=3)
        http.mount(gateway.endpoint(""), Double())
        gateway.mount(http)
        request = requests.Request("GET", below).prepare()
        assert http.get_adapter(below).adapter_for(request).max_retries.total == 3

    def test_leaves_that_one_as_it_was_when_it_is_put_back(self, http, gateway: Gateway):
        before = http.adapters.copy()
        http.mount(gateway.endpoint(""), Double())
        gateway.mount(http)
        http.adapters = before
        request = requests.Request("GET", gateway.endpoint("v1")).prepare()
        adapter = http.get_adapter(gateway.endpoint("v1"))
        assert adapter.adapter_for(request).max_retries.total == 3


def test_on_a_session_with_the_adapters_of_another_changes_that_one_not(http, server: Server):
    openai, anthropic, *_ = gateways_at(server.origin).values()
    openai.mount(http)
    with requests.Session() as clone, session_scope("s1"):
        for prefix, adapter in http.adapters.items():
            clone.mount(prefix, adapter)
        anthropic.mount(clone, max_retries=1)
        for each in (http, clone):
            each.get(openai.endpoint("x"))
            each.get(anthropic.endpoint("x"))
    forwards = [request.forward for request in server.arrived]
    assert forwards == [OPENAI, None, OPENAI, ANTHROPIC]
    openai.mount(http)
    assert len(http.adapters) == 3


def test_sessions_that_take_over_the_adapters_of_the_last_one_have_no_more_of_them(server: Server):
    openai, anthropic, *_ = gateways_at(server.origin).values()
    http = requests.Session()
    openai.mount(http, max_retries=1)
    for _ in range(1000):
        renewed = requests.Session()
        renewed.adapters = http.adapters.copy()
        anthropic.mount(renewed)
        http = renewed
    with http, session_scope("s1"):
        for gateway in (openai, anthropic):
            http.get(gateway.endpoint("x"))
    assert [request.forward for request in server.arrived] == [OPENAI, ANTHROPIC]
    assert http.get_adapter(openai.url).max_retries.total == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_on_sessions_with_the_adapters_of_a_copy(server: Server, copied):
    openai, anthropic, *_ = gateways_at(server.origin).values()
    template = requests.Session()
    openai.mount(template)
    template = copied(template)
    with requests.Session() as one, requests.Session() as two, session_scope("s1"):
        for each in (one, two):
            each.adapters = template.adapters.copy()
        anthropic.mount(one)
        two.get(anthropic.endpoint("x"))
    assert server.arrived[0].identifiers == {}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_redirect_between_gateways_of_a_copy_is_no_redirect_to_a_stranger(
    http, server: Server, copied, caplog
):
    with Server() as second, session_scope("s1"):
        server.respond = lambda request: redirect(307, second.origin + "/x")
        Gateway(server.origin, forward=OPENAI).mount(http)
        http = copied(http)
        Gateway(second.origin, forward=ANTHROPIC).mount(http)
        http.get(server.origin)
        assert second.arrived[0].forward == ANTHROPIC
    assert caplog.messages == []


@pytest.mark.parametrize("copied", [lambda it: it, copy.deepcopy])
def test_the_work_of_a_mount_does_not_grow_with_the_gateways(monkeypatch, copied):
    def count(number: int) -> int:
        http = requests.Session()
        gateways = [Gateway(f"http://gw{i}.example", forward=OPENAI) for i in range(number)]
        for gateway in gateways:
            gateway.mount(http)
        duplicate = copied(http)
        added.clear()
        for gateway in gateways:
            gateway.mount(duplicate)
        return len(added)

    added: list[Gateway] = []
    add = Router.add
    monkeypatch.setattr(Router, "add", lambda self, one: (added.append(one), add(self, one))[1])
    assert count(40) <= 2 * count(20)


class SessionProxy:
    """Like werkzeug's LocalProxy, which allows no weak reference."""

    __slots__ = ("_http",)

    def __init__(self, http: requests.Session) -> None:
        self._http = http

    @property
    def __class__(self) -> Any:
        return requests.Session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._http, name)


def test_on_a_proxy_that_stands_for_a_session(http, server: Server):
    openai, anthropic, *_ = gateways_at(server.origin).values()
    openai.mount(SessionProxy(http))  # type: ignore[arg-type]
    anthropic.mount(http)
    with session_scope("s1"):
        for gateway in (openai, anthropic):
            http.get(gateway.endpoint("x"))
    assert [request.forward for request in server.arrived] == [OPENAI, ANTHROPIC]


def test_on_sessions_with_the_adapters_of_one_that_is_gone(server: Server):
    openai, anthropic, *_ = gateways_at(server.origin).values()
    template = requests.Session()
    openai.mount(template)
    with requests.Session() as one, requests.Session() as two, session_scope("s1"):
        for each in (one, two):
            each.adapters = template.adapters.copy()
        del template
        anthropic.mount(one)
        two.get(anthropic.endpoint("x"))
    assert server.arrived[0].identifiers == {}


def test_a_session_that_is_dropped_takes_its_adapters_along(server: Server):
    """And so their connections, at once: no cycle keeps them for the collector."""
    gc.disable()
    try:
        http = requests.Session()
        Gateway(server.origin, forward=OPENAI).mount(http, max_retries=2)
        watches = [Watch(adapter.poolmanager) for adapter in http.adapters.values()]
        del http
        assert all(watch.is_gone for watch in watches)
    finally:
        gc.enable()


def test_a_session_with_several_can_be_pickled_and_copied(http, server: Server):
    mounted = gateways_at(server.origin)
    for gateway in mounted.values():
        gateway.mount(http)
    with pickle.loads(pickle.dumps(http)) as twin:
        check(twin, server, mounted)
    with copy.deepcopy(http) as twin:
        check(twin, server, mounted)


def test_redirects_between_siblings_carry_each_its_own_marks(http, server: Server):
    targets = {"/openai/1": "/anthropic/2", "/anthropic/2": "/openai/3", "/openai/3": "/else"}

    def respond(request):
        target = targets.get(request.path)
        return redirect(307, target) if target else response()

    server.respond = respond
    for path, forward in (("/openai", OPENAI), ("/anthropic", ANTHROPIC)):
        Gateway(server.origin + path, forward=forward, provider=path[1:]).mount(http)
    with session_scope("s1"):
        http.post(f"{server.origin}/openai/1", data=b"body")
    seen = [(r.forward, r.identifiers.get("x-cagent-provider")) for r in server.arrived]
    assert seen == [(OPENAI, "openai"), (ANTHROPIC, "anthropic"), (OPENAI, "openai"), (None, None)]


@pytest.mark.parametrize("tail", ["?x=1", "#fragment"])
def test_a_redirect_to_the_origin_without_a_path_reaches_the_gate(http, server: Server, tail: str):
    gateway = Gateway(server.origin, forward=OPENAI)
    gateway.mount(http)
    target = redirect(307, server.origin.upper() + tail)
    server.respond = lambda request: target if request.path == "/v1" else response()
    with session_scope("s1"):
        http.get(gateway.endpoint("v1"))
    assert gateway.owns(server.origin + tail)
    assert [each.session_id for each in server.arrived] == ["s1", "s1"]


@pytest.mark.parametrize(
    "duplicate", [lambda it: it, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_a_redirect_from_one_gateway_to_another_is_no_loss(http, server: Server, caplog, duplicate):
    with Server() as second:
        for origin in (server.origin, second.origin):
            Gateway(origin, forward=OPENAI).mount(http)
        server.respond = lambda request: redirect(307, f"{second.origin}/x")
        with duplicate(http) as client, session_scope("s1"):
            client.get(server.origin)
        assert second.arrived[0].session_id == "s1"
    assert not caplog.records


def test_a_session_that_is_closed_closes_the_adapters_that_were_there_before(http):
    closed = []

    class Mine(HTTPAdapter):
        def close(self) -> None:
            closed.append(self)
            super().close()

    mine = Mine()
    http.mount("https://gw.example/", mine)
    Gateway("https://gw.example", forward=OPENAI).mount(http, max_retries=1)
    http.close()
    assert mine in closed


def test_a_mount_that_is_refused_leaves_nothing_behind(http):
    Gateway("https://gw.example", forward=OPENAI).mount(http)
    http.mount("https://x.example/", GatewayAdapter(Gateway("https://x.example", forward=OPENAI)))
    before = list(http.adapters.items())
    for _ in range(3):
        with pytest.raises(ValueError, match="two different gateways"):
            Gateway("https://x.example", forward=ANTHROPIC).mount(http)
    assert list(http.adapters.items()) == before


def test_a_mount_in_front_of_what_is_no_adapter_leaves_nothing_behind(http):
    http.adapters["https://"] = object()
    http.mount("https://gw.example/", HTTPAdapter())
    before = list(http.adapters.items())
    with pytest.raises(TypeError, match="adapter must be one of requests' adapters, not object"):
        Gateway("https://gw.example", forward=OPENAI).mount(http)
    assert list(http.adapters.items()) == before
    del http.adapters["https://"]
