"""Random chains of redirects over urllib3 and requests: pools and proxies, gateways on one host."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.wire import Arrived, Proxy, Server, redirect, response

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayPoolManager,
    GatewayProxyManager,
    instrument,
    no_session,
    session_scope,
)

FORWARD, SESSION, MODEL = "X-Cagent-Forward", "X-Cagent-Session-Id", "X-Cagent-Model"
CALLERS = {FORWARD: "https://callers", SESSION: "callers-session", MODEL: "callers-model"}
# Gateways are named like the first segment of their paths. These are their session headers.
SESSION_HEADERS = {"a": SESSION, "b": "X-Session-ID", "c": SESSION}
# Numbers of servers, and paths: a, b and c have a gateway there, all others are strangers.
SITES = [(0, "/a/x"), (0, "/b/x"), (0, "/a"), (0, "/else"), (2, "/a/x")]
OVER_TLS = [(1, "/c/x"), (1, "/else"), (3, "/c/x")]


def own_headers(name: str) -> dict[str, str]:
    return {"X-Api-Key": f"KEY-{name}", "Authorization": f"Bearer SECRET-{name}"}


@pytest.fixture(scope="module")
def world(tls):
    """Four servers and their origins, a proxy, the gateways, and the CA of two of the servers."""
    with contextlib.ExitStack() as stack:
        contexts = [None, tls.context] * 2
        servers = [stack.enter_context(Server(host="0.0.0.0", tls=each)) for each in contexts]
        hosts = ["127.0.0.1", "localhost", "127.0.0.2", "127.0.0.2"]
        origins = [server.at(host) for server, host in zip(servers, hosts, strict=True)]
        gateways = {
            name: Gateway(
                f"{origins[name == 'c']}/{name}",
                forward=f"https://{name}.example",
                headers=own_headers(name),
                session_header=header,
            )
            for name, header in SESSION_HEADERS.items()
        }
        yield servers, origins, stack.enter_context(Proxy()), gateways, tls.ca


@contextlib.contextmanager
def opened(through: str, ours: list[Gateway | None], proxy: str | None, ca: str):
    """Give ``send(method, url, headers)``, by a client of ours or, without any, by a plain one."""
    client: Any
    more: Any = {"retries": urllib3.Retry(9)}
    if through == "requests":
        client = requests.Session()
        client.trust_env, client.verify = False, ca
        client.proxies = {"http": proxy, "https": proxy} if proxy else {}
        for prefix in ("http://", "https://") if ours else ():
            client.mount(prefix, GatewayAdapter())
        for gateway in filter(None, ours):
            gateway.mount(client)
    elif proxy:
        client = (GatewayProxyManager if ours else urllib3.ProxyManager)(proxy, *ours, ca_certs=ca)
    else:
        client = (GatewayPoolManager if ours else urllib3.PoolManager)(*ours, ca_certs=ca)

    def send(method: str, url: str, headers: dict[str, str]) -> None:
        if through == "requests":
            client.request(method, url, headers=headers, timeout=20)
        elif through == "manager":
            client.request(method, url, headers=headers, **more)
        else:  # a proxy that forwards needs the full URL
            target = url if proxy and url.startswith("http:") else urlsplit(url).path
            pool = client.connection_from_url(url)
            pool.urlopen(method, target, headers=headers, assert_same_host=False, **more)

    with client:
        yield send


@st.composite
def chains(draw, origins: list[str], way: str) -> tuple[str, list[tuple[int, str]]]:
    """A first URL, and the redirects after it."""
    # A pool that forwards can name no host behind TLS. One that tunnels has its own there.
    forwards = way == "forwarded"
    sites = st.sampled_from(SITES if forwards else SITES + OVER_TLS)
    first = st.sampled_from(OVER_TLS) if way == "tunnel" else sites
    hops = [draw(first), *draw(st.lists(sites, min_size=1, max_size=4))]
    redirects = []
    for (here, _), (there, path) in itertools.pairwise(hops):
        url = origins[there] + path
        spellings = [url, url.replace(origins[there], origins[there].upper())]
        if not forwards:
            spellings += [path] if here == there else []
            spellings += [url.partition(":")[2]] if here % 2 == there % 2 else []
        status = draw(st.sampled_from([301, 302, 303, 307, 308]))
        redirects.append((status, draw(st.sampled_from(spellings))))
    return origins[hops[0][0]] + hops[0][1], redirects


def leaks(request: Arrived) -> list[str]:
    """The identifiers in a request, by their names or their values."""
    secrets = ("x-cagent-", "x-session-", "key-", "secret-", "callers", "the-session")
    lines = [f"{name}: {value}".lower() for name, value in request.headers]
    return [line for line in lines if any(secret in line for secret in secrets)]


def check(request: Arrived, owner: str | None, callers: dict[str, str], session: str | None):
    """Compare what arrived with what its owner and the caller's identifiers ask for."""
    if owner is None and not callers:
        assert leaks(request) == []
        return
    own = {FORWARD: f"https://{owner}.example"} | own_headers(owner) if owner else {}
    for name in (FORWARD, MODEL, "X-Api-Key", "Authorization"):
        assert request.get(name) == (own | callers).get(name), name
    header = SESSION_HEADERS[owner] if owner else SESSION
    assert request.get(header) == (session or callers.get(header))
    (other,) = {SESSION, "X-Session-ID"} - {header}
    # Within the origin, the session that an earlier hop has put on a request of the caller's stays
    # on it in requests; a pool takes it off, with the caller's value that was in its place.
    assert request.get(other) in ((None, callers.get(other), session) if callers else (None,))


@pytest.mark.parametrize("through", ["manager", "pool", "requests"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_each_hop_gets_what_belongs_there_and_nothing_else(through, world, data):
    servers, origins, proxy, gateways, ca = world
    way = data.draw(st.sampled_from(["direct", "tunnel", "forwarded"]))
    first, redirects = data.draw(chains(origins, way))
    by = data.draw(st.sampled_from(["ours", "instrument", "both"]))
    names = st.sampled_from([*gateways])
    ours = [data.draw(st.none() | names)] if by != "instrument" else []
    patched = data.draw(st.lists(names, unique=True)) if by != "ours" else []
    callers = data.draw(st.sampled_from([CALLERS, {}, {}]))
    session = data.draw(st.sampled_from(["the-session", "the-session", None]))

    answers = iter([*(redirect(*each) for each in redirects), response()])
    arrived: list[tuple[str, Arrived]] = []
    for origin, server in zip(origins, servers, strict=True):
        server.respond = lambda r, origin=origin: arrived.append((origin, r)) or next(answers)
    proxy.arrived.clear()
    with contextlib.ExitStack() as stack:
        stack.enter_context(session_scope(session) if session else no_session())
        if by != "ours":
            stack.enter_context(instrument(*map(gateways.get, patched)))
        by_way = None if way == "direct" else proxy.origin
        client = opened(through, [gateways.get(name) for name in ours], by_way, ca)
        send = stack.enter_context(client)
        send(data.draw(st.sampled_from(["GET", "POST"])), first, {"X-A": "b", **callers})

    assert len(arrived) == len(redirects) + 1
    has_left = False
    for origin, request in arrived:
        # A pool sends a full URL to its own server, whatever host is in it: to a stranger.
        url = origin + request.target if request.target[0] == "/" else request.target
        is_here = url.startswith(f"{origin}/")
        is_home = is_here and first.startswith(f"{origin}/")
        # Coming back from elsewhere, the caller's identifiers may have been left behind.
        has_left |= not is_home
        at_home = callers if is_home and (not has_left or request.get(MODEL)) else {}
        # What one of ours has bound, by the caller's word, instrument() leaves as it is.
        known = ours if at_home and by == "both" else {*ours, *patched} - {None}
        owners = [name for name in known if name and f"{url}/".startswith(f"{gateways[name].url}/")]
        check(request, owners[0] if owners and is_here else None, at_home, session)
    assert not any(leaks(request) for request in proxy.arrived if request.method == "CONNECT")
