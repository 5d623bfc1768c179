"""Section by section what the wire shows, over every transport from one table of cases."""

from __future__ import annotations

from typing import ClassVar

import pytest
from support.transports import Transport
from support.wire import Server, redirect, response

from cagent_session import (
    Gateway,
    __version__,
    gateway_headers,
    no_session,
    session_scope,
)
from cagent_session._gate.protocol import ARCH, OS

FORWARD = "https://api.openai.com/v1"
MARKED = {"X-Cagent-Forward": FORWARD}
OUR_AGENT = f"cagent-session/{__version__} ({OS}; {ARCH})"


def gateway_at(server: Server, path: str = "", **options) -> Gateway:
    return Gateway(server.origin + path, forward=FORWARD, **options)


class TestTheFourRows:
    """Session in scope or not, marker there or not."""

    @pytest.mark.parametrize("in_session", [True, False])
    @pytest.mark.parametrize("marked", [True, False])
    def test_only_a_marked_request_in_a_session_is_stamped(
        self, transport: Transport, server: Server, in_session: bool, marked: bool
    ):
        with transport.open() as send, session_scope("s1") if in_session else no_session():
            assert send("POST", f"{server.origin}/x", MARKED if marked else {}, b"hi") == 200
        (arrived,) = server.arrived
        assert arrived.session_id == ("s1" if in_session and marked else None)
        assert arrived.forward == (FORWARD if marked else None)
        assert arrived.body == b"hi"

    @pytest.mark.parametrize("in_session", [True, False])
    def test_a_gateway_marks_its_own(self, transport: Transport, server: Server, in_session: bool):
        gateway = gateway_at(server, provider="openai", model="gpt", model_name="")
        with transport.open(gateway) as send, session_scope("s1") if in_session else no_session():
            send("GET", gateway.endpoint("v1/models"))
        (arrived,) = server.arrived
        assert arrived.session_id == ("s1" if in_session else None)
        arrived.identifiers.pop("x-cagent-session-id", None)
        expected = {
            "x-cagent-forward": FORWARD,
            "x-cagent-provider": "openai",
            "x-cagent-model": "gpt",
            "x-cagent-lang": "python",
            "x-cagent-os": OS,
            "x-cagent-arch": ARCH,
            "x-cagent-runtime": "cagent-session",
            "x-cagent-runtime-version": __version__,
        }
        if in_session:
            expected["x-cagent-session-id"] = "s1"
        assert arrived.identifiers == expected
        assert arrived.get("User-Agent") == OUR_AGENT

    @pytest.mark.parametrize(
        "path",
        ["/me%40corp", "/a%3Ab", "/a%2cb(%29", "/a%2Bb+", "/a%3Bb;c", "/%7Eu", "/a%2Fb"],
    )
    def test_a_gateway_marks_its_own_however_the_library_spells_its_path(
        self, transport: Transport, server: Server, path: str
    ):
        gateway = gateway_at(server, path)
        with transport.open(gateway) as send, session_scope("s1"):
            send("GET", gateway.endpoint("v1/models"))
        assert server.arrived[0].session_id == "s1"

    def test_a_gateway_marks_nothing_else(self, transport: Transport, server: Server):
        with Server() as other, transport.open(gateway_at(server, "/prefix")) as send:
            with session_scope("s1"):
                send("GET", f"{other.origin}/prefix/x")
                send("GET", f"{server.origin}/prefixed")
            arrived = other.arrived + server.arrived
        assert [request.identifiers for request in arrived] == [{}, {}]


class TestUntouched:
    @pytest.mark.parametrize(
        ("method", "headers", "body"),
        [
            ("GET", {}, None),
            ("GET", {"X-Cagent-Session-Id": "mine", "X-Cagent-Model": "m"}, None),
            ("GET", {"X-Cagent-Forward": ""}, None),
            ("POST", {"Content-Type": "application/json", "x-UPPER": "1"}, b'{"a": 1}'),
            ("DELETE", {"User-Agent": "mine/1", "Accept-Encoding": "gzip"}, None),
        ],
    )
    @pytest.mark.parametrize("with_gateway", [False, True])
    def test_byte_for_byte(
        self, transport: Transport, server: Server, method, headers, body, with_gateway
    ):
        # A gateway elsewhere, or one here whose marker the caller has emptied.
        gateway = gateway_at(server, "" if "X-Cagent-Forward" in headers else "/else")
        for options in ({"plain": True}, {"gateway": gateway if with_gateway else None}):
            with transport.open(**options) as send, session_scope("s1"):
                send(method, f"{server.origin}/a?b=c", headers, body)
        plain, ours = server.arrived
        assert ours.raw == plain.raw

    def test_redirects_of_unbound_requests(self, transport: Transport, server: Server):
        """Whatever the caller sends with it is the caller's business."""
        headers = {"X-Cagent-Session-Id": "mine", "X-Other": "1"}
        with Server(lambda request: redirect(307, server.origin + "/there")) as first:
            for plain in (True, False):
                with transport.open(plain=plain) as send, session_scope("s1"):
                    send("POST", f"{first.origin}/", headers, b"x")
            one, two = first.arrived
            three, four = server.arrived
        assert one.raw == two.raw
        assert three.raw == four.raw
        assert four.session_id == "mine"


class TestWhoWins:
    def test_the_caller_wins_over_the_gateway(self, transport: Transport, server: Server):
        gateway = gateway_at(server, provider="openai", headers={"X-Team": "a", "X-Two": "b"})
        headers = {
            "x-CAGENT-forward": "https://other.example/",
            "X-Cagent-Provider": "mine",
            "x-cagent-lang": "go",
            "User-Agent": "mine/1",
            "x-team": "mine",
        }
        with transport.open(gateway) as send, session_scope("s1"):
            send("GET", gateway.endpoint("x"), headers)
        (arrived,) = server.arrived
        for name, value in headers.items():
            assert arrived.get(name) == value
        assert arrived.get("X-Two") == "b"
        assert arrived.identifiers["x-cagent-runtime"] == "cagent-session"

    def test_the_session_in_scope_wins_over_the_caller(self, transport: Transport, server: Server):
        headers = MARKED | {"x-cagent-SESSION-id": "mine"}
        with transport.open() as send:
            with session_scope("s1"):
                send("GET", f"{server.origin}/", headers)
            send("GET", f"{server.origin}/", headers)
        assert [request.session_id for request in server.arrived] == ["s1", "mine"]

    def test_bytes_count_as_values(self, transport: Transport, server: Server):
        if not transport.takes_bytes:
            pytest.skip("it refuses bytes itself")
        with transport.open() as send, session_scope("s1"):
            send("GET", f"{server.origin}/", {"X-Cagent-Forward": b"https://a.example/"})
            send("GET", f"{server.origin}/", {"X-Cagent-Forward": b""})
        assert [request.session_id for request in server.arrived] == ["s1", None]

    def test_a_fixed_user_agent_of_the_gateway(self, transport: Transport, server: Server):
        gateway = gateway_at(server, headers={"user-agent": "team-a/1"})
        with transport.open(gateway) as send:
            send("GET", gateway.endpoint("x"))
            send("GET", gateway.endpoint("x"), {"User-Agent": "mine/1"})
        assert [request.get("User-Agent") for request in server.arrived] == ["team-a/1", "mine/1"]

    def test_the_bare_gate_renames_the_default_agent_of_bound_requests(
        self, transport: Transport, server: Server
    ):
        with transport.open() as send:
            send("GET", f"{server.origin}/", MARKED)
        assert server.arrived[0].get("User-Agent") == OUR_AGENT

    def test_another_session_header(self, transport: Transport, server: Server):
        gateway = gateway_at(server, session_header="X-Team-Session")
        with transport.open(gateway) as send, session_scope("s1"):
            send("GET", gateway.endpoint("x"), {"x-team-session": "mine"})
        (arrived,) = server.arrived
        assert arrived.get("X-Team-Session") == "s1"
        assert arrived.session_id is None


class TestFixedHeaders:
    """They stand in for the library's own defaults, and give way to the caller's."""

    FIXED: ClassVar = {"accept": "application/json", "user-agent": "team-a/1", "X-Team": "a"}

    def test_stand_in_for_defaults(self, transport: Transport, server: Server):
        gateway = gateway_at(server, headers=self.FIXED)
        with transport.open(gateway) as send:
            send("GET", gateway.endpoint("x"))
        (arrived,) = server.arrived
        assert {name: arrived.get(name) for name in self.FIXED} == self.FIXED

    def test_give_way_to_the_callers(self, transport: Transport, server: Server):
        gateway = gateway_at(server, headers=self.FIXED)
        mine = {"ACCEPT": "text/event-stream", "User-Agent": "mine/1", "x-team": "mine"}
        with transport.open(gateway) as send:
            send("GET", gateway.endpoint("x"), mine)
        (arrived,) = server.arrived
        assert {name: arrived.get(name) for name in mine} == mine

    @pytest.mark.parametrize(
        ("values", "sent"),
        [
            (["*/*", "text/x"], ["*/*", "text/x"]),
            (["text/x", "*/*"], ["text/x", "*/*"]),
            (["*/*", ""], ["application/json"]),
            (["", "*/*"], ["application/json"]),
        ],
    )
    def test_a_default_is_the_callers_only_beside_another_value(
        self, transport: Transport, server: Server, values, sent
    ):
        if transport.name in ("requests", "mixin", "urllib3"):
            pytest.skip("its headers have each name once")
        gateway = gateway_at(server, headers=self.FIXED)
        with transport.open(gateway) as send:
            send("GET", gateway.endpoint("x"), [("Accept", value) for value in values])
        assert server.arrived[0].all("Accept") == sent

    def test_a_value_that_equals_the_default_counts_as_the_default(
        self, transport: Transport, server: Server
    ):
        if transport.name == "urllib3":
            pytest.skip("urllib3 has no default for Accept")
        gateway = gateway_at(server, headers=self.FIXED)
        with transport.open(gateway) as send:
            send("GET", gateway.endpoint("x"), {"Accept": "*/*"})
        assert server.arrived[0].get("Accept") == "application/json"

    def test_only_on_requests_to_the_gateway(self, transport: Transport, server: Server):
        gateway = gateway_at(server, "/p", headers=self.FIXED)
        with transport.open(gateway) as send:
            send("GET", f"{server.origin}/else", MARKED)
        assert server.arrived[0].get("X-Team") is None

    def test_a_content_type_and_a_key_can_be_fixed(self, transport: Transport, server: Server):
        fixed = {"Authorization": "Bearer x", "Content-Type": "application/x-ndjson"}
        gateway = gateway_at(server, headers=fixed)
        with transport.open(gateway) as send:
            send("POST", gateway.endpoint("x"), None, b"{}")
        (arrived,) = server.arrived
        assert {name: arrived.get(name) for name in fixed} == fixed


class TestOtherGateways:
    """Those that do not speak docker-agent's protocol."""

    def test_get_no_header_of_that_protocol(self, transport: Transport, server: Server):
        gateway = Gateway(server.origin, session_header="X-Session-ID", headers={"X-Team": "a"})
        with transport.open(gateway) as send, session_scope("s1"):
            send("GET", gateway.endpoint("x"))
        (arrived,) = server.arrived
        assert arrived.identifiers == {}
        assert arrived.get("X-Session-ID") == "s1"
        assert arrived.get("X-Team") == "a"
        assert arrived.get("User-Agent") == OUR_AGENT

    def test_a_marker_of_the_callers_is_the_callers(self, transport: Transport, server: Server):
        gateway = Gateway(server.origin, session_header="X-Session-ID")
        with transport.open(gateway) as send, session_scope("s1"):
            send("GET", gateway.endpoint("x"), MARKED)
            send("GET", gateway.endpoint("x"), {"X-Cagent-Forward": ""})
        marked, opted_out = server.arrived
        assert marked.identifiers == {"x-cagent-forward": FORWARD}
        assert marked.get("X-Session-ID") == "s1"
        assert opted_out.get("X-Session-ID") is None

    def test_their_session_stays_behind(self, transport: Transport):
        with Server() as stranger, Server(lambda r: redirect(302, stranger.origin)) as server:
            gateway = Gateway(
                server.origin, session_header="X-Session-ID", parent_header="X-Parent-ID"
            )
            mine = {"x-session-id": "mine", "x-parent-id": "mine", "X-Other": "kept"}
            for headers in (None, mine):
                with transport.open(gateway) as send, session_scope("main"), session_scope("sub"):
                    send("GET", f"{server.origin}/", headers)
        assert {request.get("X-Session-ID") for request in server.arrived} == {"sub"}
        assert {request.get("X-Parent-ID") for request in server.arrived} == {"main"}
        for request in stranger.arrived:
            assert request.get("X-Session-ID") is request.get("X-Parent-ID") is None
        assert stranger.arrived[1].get("X-Other") == "kept"


class TestTheParent:
    def test_is_sent_where_the_gateway_names_a_header(self, transport: Transport, server: Server):
        for parent_header in ("X-Cagent-Parent-Session-Id", None):
            gateway = gateway_at(server, parent_header=parent_header)
            with transport.open(gateway) as send, session_scope("main"):
                send("GET", gateway.endpoint("x"))
                with session_scope("sub"):
                    send("GET", gateway.endpoint("x"))
                    send("GET", gateway.endpoint("x"), {"x-cagent-parent-SESSION-id": "mine"})
        seen = [
            (request.session_id, request.get("X-Cagent-Parent-Session-Id"))
            for request in server.arrived
        ]
        assert seen == [
            *[("main", None), ("sub", "main"), ("sub", "main")],
            *[("main", None), ("sub", None), ("sub", "mine")],
        ]

    def test_a_callers_is_taken_off_if_the_session_has_none(
        self, transport: Transport, server: Server
    ):
        gateway = gateway_at(server, parent_header="X-Parent")
        with transport.open(gateway) as send:
            with session_scope("main"):
                send("GET", gateway.endpoint("x"), {"x-PARENT": "mine", "X-A": "b"})
            send("GET", gateway.endpoint("x"), {"x-PARENT": "mine"})
        in_session, outside = server.arrived
        assert (in_session.get("X-Parent"), in_session.get("X-A")) == (None, "b")
        assert outside.get("X-Parent") == "mine"


class TestQuery:
    @pytest.mark.parametrize(
        ("asked", "arrives"),
        [
            ("/x", "/x?tenant=a&flag&two=%C3%BC"),
            ("/x?q=1", "/x?q=1&tenant=a&flag&two=%C3%BC"),
            ("/x?tenant=b", "/x?tenant=b&flag&two=%C3%BC"),
            ("/x?%74enant=b&flag=1&two=", "/x?%74enant=b&flag=1&two="),
        ],
    )
    def test_the_gateways_parameters_are_added_where_missing(
        self, transport: Transport, server: Server, asked: str, arrives: str
    ):
        gateway = gateway_at(server, "?tenant=a&flag&two=%C3%BC")
        with transport.open(gateway) as send:
            send("GET", gateway.endpoint(asked.partition("?")[0]) + asked.partition("/x")[2])
        assert server.arrived[0].target.replace("%74", "t") == arrives.replace("%74", "t")

    def test_with_characters_that_have_to_be_escaped(self, transport: Transport, server: Server):
        gateway = gateway_at(server, '?tags[]=a|b&c="%20"')
        with transport.open(gateway) as send:
            send("GET", gateway.endpoint("/x"))
        assert server.arrived[0].target == "/x?tags%5B%5D=a%7Cb&c=%22%20%22"

    def test_not_to_requests_that_do_not_go_to_the_gateway(
        self, transport: Transport, server: Server
    ):
        with transport.open(gateway_at(server, "/prefix?tenant=a")) as send:
            send("GET", f"{server.origin}/else", MARKED)
        assert server.arrived[0].target == "/else"


MARKINGS = ["gateway", "call", "defaults"]


def marked_client(transport: Transport, marking: str, server: Server, ca: str | None = None):
    """A client that marks its requests to ``server`` in one of three ways, and the headers."""
    markers = gateway_headers(FORWARD, provider="openai") | {"X-Cagent-Session-Id": "mine"}
    if marking == "gateway":
        return transport.open(gateway_at(server, provider="openai"), ca=ca), None
    if marking == "call":
        return transport.open(ca=ca), markers
    return transport.open(ca=ca, defaults=markers), None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("marking", MARKINGS)
class TestRedirects:
    def test_within_the_origin_keep_the_identifiers(
        self, transport: Transport, marking: str, status: int
    ):
        def respond(request):
            return redirect(status, "/there?x=1") if request.path == "/here" else response()

        with Server(respond) as server:
            client, headers = marked_client(transport, marking, server)
            with client as send, session_scope("s1"):
                assert send("POST", f"{server.origin}/here", headers, b"body") == 200
            first, second = server.arrived
        assert second.target == "/there?x=1"
        assert second.identifiers == first.identifiers
        assert second.session_id == "s1"

    def go_to_the_stranger(self, transport, marking, server, stranger, ca=None) -> None:
        client, headers = marked_client(transport, marking, server, ca)
        with client as send, session_scope("s1"):
            assert send("POST", f"{server.origin}/here", headers, b"body") == 200
        assert server.arrived[0].session_id == "s1"
        (arrived,) = stranger.arrived
        assert arrived.identifiers == {}
        assert b"s1" not in arrived.raw

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
    def test_to_another_port_or_host_leave_them_behind(
        self, transport: Transport, marking: str, status: int, host: str
    ):
        with Server(host="0.0.0.0") as stranger:
            target = f"http://{host}:{stranger.port}/there"
            with Server(lambda request: redirect(status, target)) as server:
                self.go_to_the_stranger(transport, marking, server, stranger)

    def test_from_https_to_http_leave_them_behind(
        self, transport: Transport, marking: str, status: int, tls
    ):
        with Server() as stranger:
            target = f"{stranger.at('localhost')}/there"
            with Server(lambda request: redirect(status, target), tls=tls.context) as server:
                server.host = "localhost"
                self.go_to_the_stranger(transport, marking, server, stranger, tls.ca)


@pytest.mark.parametrize("marking", MARKINGS)
def test_a_chain_through_a_stranger(transport: Transport, marking: str):
    """Gateway, gateway, stranger, and back: the stranger sees nothing, at any time."""
    with Server() as stranger:

        def respond(request):
            targets = {"/1": "/2", "/2": f"{stranger.origin}/3"}
            target = targets.get(request.path)
            return redirect(307, target) if target else response()

        with Server(respond) as server:
            stranger.respond = lambda request: redirect(307, f"{server.origin}/4")
            client, headers = marked_client(transport, marking, server)
            with client as send, session_scope("s1"):
                assert send("POST", f"{server.origin}/1", headers, b"body") == 200
            (at_stranger,) = stranger.arrived
            assert [request.path for request in server.arrived] == ["/1", "/2", "/4"]
            sessions = [request.session_id for request in server.arrived]
    assert at_stranger.identifiers == {}
    # Back at the gateway, a Gateway marks its own again. What the caller had set returns where
    # the client lets us remember it.
    returns = marking == "gateway" or not transport.name.startswith("httpx")
    assert sessions == ["s1", "s1", "s1" if returns else None]


def test_a_custom_session_header_stays_behind(transport: Transport):
    with Server() as stranger, Server(lambda r: redirect(302, f"{stranger.origin}/")) as server:
        gateway = gateway_at(server, session_header="X-Team-Session")
        with transport.open(gateway) as send, session_scope("s1"):
            send("GET", f"{server.origin}/", {"x-team-session": "mine", "X-Other": "kept"})
        assert server.arrived[0].get("X-Team-Session") == "s1"
        (arrived,) = stranger.arrived
    assert arrived.get("X-Team-Session") is None
    assert arrived.get("X-Other") == "kept"


@pytest.mark.parametrize(
    "location",
    [
        "//{stranger}/there",
        "http://u:p@{stranger}/there",
        "HTTP://{stranger}",
        "http://{stranger}#x",
    ],
)
def test_every_spelling_of_another_origin(transport: Transport, location: str):
    with Server() as stranger:
        target = location.format(stranger=f"127.0.0.1:{stranger.port}")
        first = Server(lambda request: redirect(302, target))
        with first as server, transport.open() as send, session_scope("s1"):
            send("GET", f"{server.origin}/", MARKED)
        (arrived,) = stranger.arrived
    assert arrived.identifiers == {}


def test_spellings_of_the_same_origin_keep_the_identifiers(transport: Transport):
    def respond(request):
        return redirect(302, target) if request.path == "/" else response()

    with Server(respond) as server:
        target = f"HTTP://LOCALHOST:{server.port}/there"
        with transport.open() as send, session_scope("s1"):
            send("GET", f"{server.at('localhost')}/", MARKED)
        assert [request.session_id for request in server.arrived] == ["s1", "s1"]


def test_the_session_is_read_when_the_request_is_sent(transport: Transport, server: Server):
    with transport.open() as send:
        for session_id in ("s1", "s2"):
            with session_scope(session_id):
                send("GET", f"{server.origin}/", MARKED)
        send("GET", f"{server.origin}/", MARKED)
    assert [request.session_id for request in server.arrived] == ["s1", "s2", None]


def test_ipv6(transport: Transport):
    with Server(host="::1") as server:
        gateway = gateway_at(server)
        with transport.open(gateway) as send, session_scope("s1"):
            send("GET", gateway.endpoint("x"))
        assert server.arrived[0].session_id == "s1"
