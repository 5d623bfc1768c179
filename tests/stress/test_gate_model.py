"""The gate against a small independent model of it, on any mix of headers, URLs and scopes."""

from __future__ import annotations

import contextlib
import itertools
import json
import posixpath
from urllib.parse import unquote, urlsplit

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.transports import TRANSPORTS, Transport
from support.wire import Arrived, Server, redirect, response

from cagent_session import (
    Gateway,
    GatewayAdapter,
    InvalidSessionID,
    instrument,
    no_session,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"
SYNC = [transport for transport in TRANSPORTS if not transport.name.endswith("async")]
FIXED = {
    "x-cagent-forward": FORWARD,
    "x-cagent-provider": "openai",
    "x-team": "fixed",
    **{f"x-cagent-{name}": ... for name in ("lang", "os", "arch", "runtime", "runtime-version")},
}

NAMES = [
    "X-Cagent-Forward",
    "X-Cagent-Session-Id",
    "X-Cagent-Provider",
    "X-Cagent-Lang",
    "X-Cagent-Anything",
    "X-Cagent",
    "X-Cagent-Forwarded",
    "X-Team",
    "Accept",
]
PATHS = [
    "/",
    "/prefix",
    "/prefix/",
    "/prefix/x",
    "/prefixed",
    "/PREFIX/x",
    "/%70refix/x",
    "/prefix/../x",
    "/prefix/./x",
    "/x/../prefix/y",
    "/prefix/%2e%2e/x",
    "/prefix/%252e%252e/x",
    "/prefix%2f..%2fx",
    "/prefix/..%5cx",
    "/prefix/a%2fb",
]

names = st.sampled_from(NAMES)


@st.composite
def any_case(draw, name: str) -> str:
    upper = draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    return "".join(c.upper() if up else c.lower() for c, up in zip(name, upper, strict=True))


@st.composite
def headers(draw) -> dict[str, str | bytes]:
    chosen = draw(st.lists(names, unique=True, max_size=5))
    values = st.sampled_from(["", b"", "value", b"value", "https://other.example/"])
    return {draw(any_case(name)): draw(values) for name in chosen}


@st.composite
def urls(draw, port: int) -> str:
    scheme = draw(st.sampled_from(["http", "HTTP"]))
    user = draw(st.sampled_from(["", "", "user@", "127.0.0.1:x@", "localhost@"]))
    host = draw(st.sampled_from(["127.0.0.1", "127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST"]))
    path = draw(st.sampled_from(["", *PATHS]))
    query = draw(st.sampled_from(["", "?q=1", "?tenant=b", "?x=/../"]))
    return f"{scheme}://{user}{host}:{port}{path}{query}"


def is_owned(port: int, arrived: Arrived, url: str) -> bool:
    """As the server sees it: the host that was connected to, and the path that came.

    A URL with user info is no gateway's. urllib3 and aiohttp take it off before anyone sees it.
    """
    agent = arrived.get("User-Agent") or ""
    if "@" in url and not ("urllib3" in agent or "aiohttp" in agent):
        return False
    host = (urlsplit(url).hostname or "").lower()
    path = arrived.path
    for _ in range(4):
        path = unquote(path).replace("\\", "/")
    if any(segment in (".", "..") for segment in path.split("/")):
        return False
    path = posixpath.normpath(unquote(arrived.path))
    return host == "127.0.0.1" and (path == "/prefix" or path.startswith("/prefix/"))


def as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def expected(given_headers, owned: bool, session_id: str | None) -> dict[str, str] | None:
    """What arrives of the names that the gate may touch, or ``None``: as without it."""
    callers = {name.lower(): as_text(value) for name, value in given_headers.items()}
    if not callers.get("x-cagent-forward", FORWARD if owned else ""):
        return None
    arrives = (FIXED if owned else {}) | callers
    if session_id is not None:
        arrives["x-cagent-session-id"] = session_id
    return arrives


@pytest.fixture(scope="module", params=SYNC, ids=str)
def clients(request):
    """A plain client, one with the gateway at /prefix, one without a gateway, the server, bytes."""
    transport: Transport = request.param
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(host="0.0.0.0"))
        gateway = Gateway(
            f"http://127.0.0.1:{server.port}/prefix",
            forward=FORWARD,
            provider="openai",
            headers={"X-Team": "fixed"},
        )
        yield (
            stack.enter_context(transport.open(plain=True)),
            stack.enter_context(transport.open(gateway)),
            stack.enter_context(transport.open()),
            server,
            transport.takes_bytes,
        )


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_what_leaves_on_the_socket_is_what_the_model_says(clients, data):
    plain, with_gateway, without_gateway, server, takes_bytes = clients
    url = data.draw(urls(server.port))
    sent = data.draw(headers())
    if not takes_bytes:
        sent = {name: as_text(value) for name, value in sent.items()}
    session_id = data.draw(st.sampled_from([None, "s1"]))
    with_a_gateway = data.draw(st.booleans())

    server.arrived.clear()
    with no_session() if session_id is None else session_scope(session_id):
        plain("GET", url, dict(sent))
        (with_gateway if with_a_gateway else without_gateway)("GET", url, dict(sent))
    as_without, arrived = server.arrived

    owned = with_a_gateway and is_owned(server.port, as_without, url)
    arrives = expected(sent, owned, session_id)
    if arrives is None:
        assert arrived.raw == as_without.raw
        return
    found = {name.lower(): value for name, value in arrived.headers}
    touched = {name for name in found if name.startswith("x-")}
    assert touched == set(arrives) - {"accept"}
    for name, value in arrives.items():
        assert value in (..., found[name]), name
    assert arrived.target == as_without.target
    assert arrived.body == as_without.body


OTHER_FORWARD = "https://api.anthropic.com"
HOPS = [(server, path) for server in range(4) for path in ("/p/x", "/p", "/else", "/q/../p/y")]


@st.composite
def locations(draw, origins: list[str], at: int, hop: tuple[int, str]) -> str:
    """One of the spellings in which a redirect can name where it goes."""
    server, path = hop
    origin = origins[server]
    spellings = [origin + path, origin.upper() + path, origin.replace("http:", "") + path]
    if server == at:
        spellings.append(path)
    return draw(st.sampled_from(spellings))


@pytest.fixture(scope="module")
def origins():
    """Two gateways and two strangers, which send a request on as its chain says."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(host="0.0.0.0")) for _ in range(4)]
        hosts = ["127.0.0.1", "127.0.0.1", "127.0.0.2", "localhost"]
        yield (
            servers,
            [f"http://{host}:{server.port}" for host, server in zip(hosts, servers, strict=True)],
        )


def made(session_id: str, parent_id: str | None, root_id: str) -> str:
    return json.dumps([session_id, parent_id, root_id])


FROM_THE_SESSION = {
    "X-Parent": "main",
    "X-Affinity": "s1",
    "X-Path": "/main/s1",
    "X-Json": made("s1", "main", "main"),
}


@pytest.fixture(scope="module", params=["mounted", *[transport.name for transport in SYNC]])
def chain_client(request, origins):
    """A client that knows both gateways, and one that knows none, with what remembers marks."""
    gateways = [
        Gateway(
            f"{origin}/p",
            forward=forward,
            headers={"X-Key": f"key of {forward}"},
            parent_header="X-Parent",
            session_headers={
                "X-Affinity": "{session}",
                "X-Path": "/{root}/{session}",
                "X-Json": made,
            },
        )
        for origin, forward in zip(origins[1][:2], (FORWARD, OTHER_FORWARD), strict=True)
    ]
    with contextlib.ExitStack() as stack:
        if request.param == "mounted":
            with_both, bare = requests.Session(), requests.Session()
            for http in (with_both, bare):
                stack.enter_context(http)
                http.trust_env = False
            for gateway in gateways:
                gateway.mount(with_both)
            bare.mount("http://", GatewayAdapter())

            def sender(http):
                return lambda method, url, headers: http.request(method, url, headers=headers)

            yield contextlib.nullcontext, sender(with_both), sender(bare), request.param
            return
        (transport,) = (transport for transport in SYNC if transport.name == request.param)
        bare = stack.enter_context(transport.open())
        plain = stack.enter_context(transport.open(plain=True))
        yield lambda: instrument(*gateways), plain, bare, request.param


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_chains_of_redirects(chain_client, origins, data):
    """Nothing at a stranger, and at each gateway everything that belongs there."""
    scope, with_both, bare, library = chain_client
    servers, at = origins
    hops = data.draw(st.lists(st.sampled_from(HOPS), min_size=2, max_size=4))
    by_caller = data.draw(st.booleans())
    status = data.draw(st.sampled_from([301, 302, 303, 307, 308]))
    targets = [data.draw(locations(at, here[0], there)) for here, there in itertools.pairwise(hops)]
    answers = iter([*(redirect(status, target) for target in targets), response()])
    arrived: list[tuple[int, Arrived]] = []
    for number, server in enumerate(servers):
        server.respond = lambda r, number=number: arrived.append((number, r)) or next(answers)

    first = at[hops[0][0]] + hops[0][1]
    headers = {"X-A": "b"}
    if by_caller:
        headers |= {"X-Cagent-Forward": FORWARD, "X-Cagent-Model": "m"}
    with session_scope("main"), session_scope("s1"):
        if by_caller:
            bare("GET", first, headers)
        else:
            with scope():
                with_both("GET", first, headers)

    assert [number for number, _ in arrived] == [server for server, _ in hops]
    home, has_left = hops[0][0], False
    for number, request in arrived:
        assert request.get("X-A") == "b"
        if by_caller:
            has_left |= number != home
            returns = not (has_left and library.startswith("httpx"))
            marks = {"x-cagent-forward": FORWARD, "x-cagent-model": "m"}
            marks["x-cagent-session-id"] = "s1"
            assert request.identifiers == (marks if number == home and returns else {})
            continue
        is_owned = number < 2 and (request.path == "/p" or request.path.startswith("/p/"))
        forwards = [FORWARD, OTHER_FORWARD]
        assert request.forward == (forwards[number] if is_owned else None)
        assert request.session_id == ("s1" if is_owned else None)
        for name, value in FROM_THE_SESSION.items():
            assert request.get(name) == (value if is_owned else None)
        assert request.get("X-Key") == (f"key of {forwards[number]}" if is_owned else None)
        assert bool(request.identifiers) == is_owned


def test_every_code_point_in_a_session_id(server: Server):
    """Refused, or on the wire exactly as given; never a broken request."""
    transport = SYNC[0]
    gateway = Gateway(server.origin, forward=FORWARD)
    taken, messages = [], []
    with transport.open(gateway) as send:
        for code in range(0x10000):
            session_id = f"a{chr(code)}b"
            try:
                with session_scope(session_id):
                    send("GET", server.origin)
                    taken.append(session_id)
            except InvalidSessionID as error:
                messages.append(str(error))
    assert all(message.isascii() and message.isprintable() for message in messages)
    assert taken == [f"a{chr(code)}b" for code in range(0x21, 0x7F)]
    assert [request.session_id for request in server.arrived] == taken
