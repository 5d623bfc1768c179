"""urllib3: pools that are used directly follow redirects with the headers of the last attempt."""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3
from support.wire import Proxy, Server, redirect, response
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
KEYS = {"Authorization": "Bearer GATEWAY-KEY", "X-Api-Key": "GATEWAY-KEY-2"}
CALLERS = gateway_headers(FORWARD) | {"X-Cagent-Session-Id": "mine", "X-Cagent-Model": "m"}


@pytest.fixture(autouse=True)
def _switched_off() -> Iterator[None]:
    yield
    uninstrument()


@pytest.fixture(params=["manager", "instrument"])
def by(request: pytest.FixtureRequest) -> str:
    return request.param


def manager(by: str, *gateways: Gateway, proxy: str | None = None, **options: Any) -> Any:
    """A manager of urllib3 with the gate, by one of our classes or by instrument()."""
    if by == "instrument":
        instrument(*gateways)
        return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    gateway = gateways[0] if gateways else None
    if proxy:
        return GatewayProxyManager(proxy, gateway, **options)
    return GatewayPoolManager(gateway, **options)


def secrets(server: Server) -> list[str]:
    """All that arrived of ours, by name or by value."""
    found = []
    for request in server.arrived:
        for name, value in request.headers:
            if name.lower().startswith("x-cagent-") or value in (*KEYS.values(), "s1", "mine"):
                found.append(f"{name}: {value}")
    return found


def test_a_stranger_behind_a_tunnel_gets_nothing(by: str, server: Server, tls):
    """It answers with a redirect to the gateway; the pool asks the stranger for that URL."""
    gateway = Gateway(server.origin, forward=FORWARD, headers=KEYS)
    with Server(tls=tls.context) as stranger, Proxy() as proxy:
        stranger.respond = lambda request: (
            redirect(302, f"{server.origin}/x") if request.path == "/a" else response()
        )
        http = manager(by, gateway, proxy=proxy.origin, ca_certs=tls.ca)
        with http, session_scope("s1"):
            pool = http.connection_from_url(stranger.origin)
            pool.urlopen("GET", "/a", assert_same_host=False)
        assert len(stranger.arrived) == 2
        assert secrets(stranger) == []


@pytest.mark.parametrize("status", [302, 303, 307, 308])
@pytest.mark.parametrize("callers", [None, CALLERS], ids=["gateway", "caller"])
def test_a_stranger_behind_a_forwarding_proxy_gets_nothing(
    by: str, server: Server, status: int, callers
):
    gateway = Gateway(server.origin, forward=FORWARD, headers=KEYS)
    with Server() as stranger, Proxy() as proxy:
        server.respond = lambda request: redirect(status, f"{stranger.at('localhost')}/x")
        with manager(by, gateway, proxy=proxy.origin) as http, session_scope("s1"):
            pool = http.connection_from_url(server.origin)
            pool.urlopen(
                "POST", f"{server.origin}/a", b"x", dict(callers or {}), assert_same_host=False
            )
            http.request("POST", f"{server.origin}/a", headers=callers)
        assert len(server.arrived) == len(stranger.arrived) == 2
        assert {request.session_id for request in server.arrived} == {"s1"}
        assert secrets(stranger) == []


@pytest.mark.parametrize("scope", [no_session(), session_scope("s1")], ids=["outside", "inside"])
@pytest.mark.parametrize("last", ["Authorization", "Content-Type"])
def test_a_stamp_comes_off_when_urllib3_dropped_part_of_it(
    by: str, server: Server, last: str, scope: contextlib.AbstractContextManager[object]
):
    """For a 303 it drops ``Content-Type``, and for another host what its user names."""
    fixed = {"X-Api-Key": "GATEWAY-KEY-2", last: "GATEWAY-KEY"}
    gateway = Gateway(server.origin, session_header="X-Session-Id", headers=fixed)
    retries = Retry(remove_headers_on_redirect=["Authorization", "X-Session-Id"])
    with Server() as stranger, Proxy() as proxy:
        server.respond = lambda request: redirect(303, f"{stranger.at('localhost')}/x")
        with manager(by, gateway, proxy=proxy.origin) as http, scope:
            pool = http.connection_from_url(server.origin)
            pool.urlopen(
                "POST",
                f"{server.origin}/a",
                b"x",
                {"User-Agent": "mine"},  # else the gate's would be its last header, and stay
                retries,
                assert_same_host=False,
            )
        assert [request.get("X-Api-Key") for request in server.arrived] == ["GATEWAY-KEY-2"]
        assert [request.get("X-Api-Key") for request in stranger.arrived] == [None]


@pytest.mark.parametrize("scope", [no_session(), session_scope("s1")], ids=["outside", "inside"])
@pytest.mark.parametrize("status", [303, 307])
def test_a_value_of_an_earlier_request_does_not_hide_the_stamp(
    by: str, server: Server, scope: contextlib.AbstractContextManager[object], status: int
):
    """The caller has copied it, so it goes along. What the gate has set does not."""
    gateway = Gateway(server.origin, session_header="X-Session-Id", headers=KEYS)
    with requests.Session() as session, session_scope("s0"):
        gateway.mount(session)
        copied = session.get(server.origin).request.headers["X-Session-Id"]
    server.arrived.clear()
    with Server() as stranger, Proxy() as proxy:
        server.respond = lambda request: redirect(status, f"{stranger.at('localhost')}/x")
        with manager(by, gateway, proxy=proxy.origin) as http, scope:
            pool = http.connection_from_url(server.origin)
            headers = {"X-Copied": copied}
            pool.urlopen("POST", f"{server.origin}/a", b"x", headers, assert_same_host=False)
        assert secrets(stranger) == []
        assert [request.get("X-Copied") for request in stranger.arrived] == ["s0"]


def test_each_of_two_gateways_on_a_host_gets_its_own_key(server: Server):
    keys = {
        "openai": {"Authorization": "Bearer OPENAI-KEY"},
        "anthropic": {"Authorization": "Bearer ANTHROPIC-KEY", "X-Api-Key": "ANTHROPIC-KEY-2"},
    }
    gateways = [
        Gateway(f"{server.origin}/{name}", forward=f"https://{name}.example", headers=headers)
        for name, headers in keys.items()
    ]
    targets = {
        "/openai/1": f"{server.origin}/anthropic/2",
        "/anthropic/2": "/openai/3",
        "/openai/3": "/else",
    }

    def path(target: str) -> str:
        return target.removeprefix(server.origin)

    server.respond = lambda request: (
        redirect(307, targets[path(request.target)])
        if path(request.target) in targets
        else response()
    )
    instrument(*gateways)
    with urllib3.PoolManager() as http, session_scope("s1"):
        http.connection_from_url(server.origin).request("GET", "/openai/1")
        http.request("GET", f"{server.origin}/openai/1")
    seen = [
        (request.forward, request.get("Authorization"), request.get("X-Api-Key"))
        for request in server.arrived
    ]
    openai = ("https://openai.example", "Bearer OPENAI-KEY", None)
    anthropic = ("https://anthropic.example", "Bearer ANTHROPIC-KEY", "ANTHROPIC-KEY-2")
    assert seen == [openai, anthropic, openai, (None, None, None)] * 2


def test_retries_that_forget_the_history_fail_closed(by: str, server: Server):
    class Forgetful(Retry):
        def new(self, **options: Any) -> Any:
            return super().new(**options | {"history": ()})

    gateway = Gateway(server.origin, forward=FORWARD, headers=KEYS)
    with Server() as stranger:
        targets = {"/a": "/b", "/b": f"{stranger.at('localhost')}/x"}
        server.respond = lambda request: redirect(307, targets[request.path])
        with manager(by, gateway, retries=Forgetful(5)) as http, session_scope("s1"):
            http.request("GET", f"{server.origin}/a", headers=CALLERS)
        assert len(stranger.arrived) == 1
        assert secrets(stranger) == []


class Name(str, enum.Enum):
    MINE = "mine"


@pytest.mark.parametrize("value", ["mine", b"mine", Name.MINE, 12345], ids=repr)
def test_a_value_of_any_kind_stays_at_its_origin(by: str, server: Server, value: Any):
    gateway = Gateway(server.origin, session_header="X-Session-ID")
    with Server() as stranger:
        server.respond = lambda request: redirect(302, stranger.at("localhost"))
        with manager(by, gateway) as http:
            http.request("GET", server.origin, headers={"X-Session-ID": value})
            pool = http.connection_from_url(server.origin)
            pool.urlopen("GET", "/x", headers={"x-session-id": value}, redirect=False)
        kept = [request.get("X-Session-ID") for request in server.arrived]
        assert kept == ["12345" if value == 12345 else "mine"] * 2
        assert stranger.arrived[0].get("X-Session-ID") is None


@pytest.mark.parametrize("name", ["Accept", "accept"])
def test_a_callers_accept_wins_behind_a_forwarding_proxy(by: str, server: Server, name: str):
    """urllib3 adds an Accept of its own beside one that is spelt otherwise."""
    gateway = Gateway(server.origin, forward=FORWARD, headers={"Accept": "text/gateway"})
    with Proxy() as proxy, manager(by, gateway, proxy=proxy.origin) as http, session_scope("s1"):
        http.request("GET", server.origin, headers={name: "application/json"})
    (arrived,) = server.arrived
    assert "application/json" in arrived.all("Accept")
    assert "text/gateway" not in arrived.all("Accept")


def test_a_managers_own_headers_are_left_alone(by: str, server: Server):
    """urllib3 1.26 takes Authorization off the headers that it is given, on a redirect."""
    gateway = Gateway("http://gateway.example", session_header="X-Session-ID")
    with Server() as other:
        server.respond = lambda request: redirect(302, other.at("localhost"))
        own = {"Authorization": "Bearer mine"}
        with manager(by, gateway, headers=own) as http:
            for _ in range(2):
                http.urlopen("GET", server.origin)
            assert http.headers == {"Authorization": "Bearer mine"}
        assert [request.get("Authorization") for request in server.arrived] == ["Bearer mine"] * 2


def test_a_request_that_opts_out_leaves_byte_for_byte_through_a_proxy(by: str, server: Server):
    gateway = Gateway(server.origin, session_header="X-Session-ID")
    headers = {"ACCEPT": "a/b", "X-Cagent-Forward": ""}
    with Proxy() as proxy:
        with urllib3.ProxyManager(proxy.origin) as plain:
            plain.request("GET", server.origin, headers=headers)
        with manager(by, gateway, proxy=proxy.origin) as http, session_scope("s1"):
            http.request("GET", server.origin, headers=headers)
    as_without, arrived = server.arrived
    assert arrived.raw == as_without.raw


def test_headers_that_others_copied_count_as_the_callers(server: Server):
    """A stamp of a request that is over, copied by hand, is sent where the caller sends it."""
    gateway = Gateway(server.origin, forward=FORWARD)
    with session_scope("s1"):
        copied = gateway.headers_for(server.origin)
    with Server() as elsewhere, GatewayPoolManager() as http, session_scope("s2"):
        http.request("GET", elsewhere.origin, headers=copied)
        (arrived,) = elsewhere.arrived
    assert (arrived.forward, arrived.session_id) == (FORWARD, "s2")


def test_the_work_per_redirect_does_not_grow_with_their_number(by: str, server: Server):
    """Compared with a plain manager in the same run; the time per hop used to grow linearly."""

    def seconds(http: Any, hops: int) -> float:
        server.respond = lambda request: (
            redirect(307, f"/{int(request.path[1:]) - 1}") if request.path != "/0" else response()
        )
        start = time.thread_time()
        http.request("GET", f"{server.origin}/{hops}", retries=Retry(redirect=hops + 1, total=None))
        return time.thread_time() - start

    with manager(by, Gateway(server.origin, forward=FORWARD)) as http, session_scope("s1"):
        seconds(http, 5)
        few, many = min(seconds(http, 30) for _ in range(3)), seconds(http, 240)
    # Eight times as many; sixty-four times as long, if each hop looked at all before it.
    assert many < 30 * few
