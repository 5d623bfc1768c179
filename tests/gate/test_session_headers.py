"""Gateway(session_headers=...): further headers that are made from the session."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
from support.transports import Transport
from support.wire import Server, redirect, response

from cagent_session import Gateway, SessionRequired, no_session, session_scope
from cagent_session.headers import SESSION_ID

FORWARD = "https://api.openai.com/v1"


def as_json(session_id: str, parent_id: str | None, root_id: str) -> str:
    return json.dumps({"session": session_id, "parent": parent_id, "root": root_id})


def of_sub_agents_only(session_id: str, parent_id: str | None, root_id: str) -> str | None:
    return None if parent_id is None else f"sub-of-{parent_id}"


def every_kind_at(server: Server) -> Gateway:
    return Gateway(
        server.origin,
        session_header="X-Session-Id",
        parent_header="X-Parent",
        session_headers={
            "x-affinity": "{session}",
            "X-Path": "/{root}/{session}",
            "X-Of-Parent": "child of {parent}",
            "X-Json": as_json,
            "X-Sub": of_sub_agents_only,
            "X-Fixed": "always",
        },
    )


class TestOnTheWire:
    def test_templates_and_functions_are_filled_in(self, transport: Transport, server: Server):
        sessions = session_scope("main"), session_scope("middle"), session_scope("leaf")
        with transport.open(every_kind_at(server)) as send, sessions[0], sessions[1], sessions[2]:
            send("GET", server.origin)
        (arrived,) = server.arrived
        names = ["X-Session-Id", "X-Parent", "x-affinity", "X-Path", "X-Of-Parent", "X-Sub"]
        assert [arrived.get(name) for name in names] == [
            *("leaf", "middle", "leaf", "/main/leaf", "child of middle", "sub-of-middle")
        ]
        assert json.loads(arrived.get("X-Json") or "") == {
            "session": "leaf",
            "parent": "middle",
            "root": "main",
        }
        assert arrived.get("X-Fixed") == "always"

    def test_a_header_without_a_value_is_left_out_and_the_callers_taken_off(
        self, transport: Transport, server: Server
    ):
        callers = {"X-Of-Parent": "mine", "X-Sub": "mine", "X-Parent": "mine", "X-Path": "mine"}
        with transport.open(every_kind_at(server)) as send, session_scope("only"):
            send("GET", server.origin, callers)
        (arrived,) = server.arrived
        assert [arrived.get(name) for name in callers] == [None, None, None, "/only/only"]

    def test_outside_every_session_the_callers_stay(self, transport: Transport, server: Server):
        with transport.open(every_kind_at(server)) as send, no_session():
            send("GET", server.origin, {"X-Affinity": "mine"})
        (arrived,) = server.arrived
        assert arrived.get("x-affinity") == "mine"
        assert arrived.get("X-Fixed") is None

    def test_the_session_comes_first_then_its_parent_then_the_others_in_order(
        self, transport: Transport, server: Server
    ):
        mine = {"X-Parent": "mine", "X-Fixed": "mine", "X-Session-Id": "mine"}
        sub = session_scope("sub", parent="main")
        with transport.open(every_kind_at(server)) as send, sub:
            send("GET", server.origin)
            send("GET", server.origin, mine)
        order = ["x-session-id", "x-parent", "x-affinity", "x-path", "x-of-parent", "x-json"]
        for arrived in server.arrived:
            names = [name.lower() for name, _ in arrived.headers]
            assert [name for name in names if name in order] == order
            assert names.index("x-fixed") > names.index("x-json")

    def test_a_gateway_with_session_headers_alone_sends_no_other(
        self, transport: Transport, server: Server
    ):
        gateway = Gateway(server.origin, session_headers={"session-id": "{session}"})
        with transport.open(gateway) as send, session_scope("s1"):
            send("GET", server.origin)
        (arrived,) = server.arrived
        assert arrived.get("session-id") == "s1"
        assert arrived.identifiers == {}

    def test_docker_agents_name_beside_another_session_header(self, server: Server):
        gateway = Gateway(
            server.origin,
            forward=FORWARD,
            session_header="X-Team",
            session_headers={SESSION_ID: "{session}"},
        )
        with session_scope("s1"):
            headers = gateway.headers_for(server.origin)
        assert (headers["X-Team"], headers[SESSION_ID]) == ("s1", "s1")

    @pytest.mark.parametrize("status", [302, 307])
    def test_none_goes_to_a_stranger(self, transport: Transport, server: Server, status: int):
        with Server() as stranger:
            server.respond = lambda request: redirect(status, stranger.at("localhost"))
            callers = {"X-Affinity": "mine", "X-Json": "{}"}
            with transport.open(every_kind_at(server)) as send:
                with session_scope("main"), session_scope("sub"):
                    send("GET", server.origin, callers)
                with no_session():
                    send("GET", server.origin, callers)
            for arrived in stranger.arrived:
                names = {name.lower() for name, _ in arrived.headers}
                assert not names & {"x-session-id", "x-parent", "x-affinity", "x-path", "x-json"}
                assert not names & {"x-of-parent", "x-sub", "x-fixed"}
            assert len(stranger.arrived) == 2

    def test_they_stay_within_the_origin(self, transport: Transport, server: Server):
        server.respond = lambda r: redirect(307, "/b") if r.path == "/" else response()
        with transport.open(every_kind_at(server)) as send, session_scope("s1"):
            send("GET", server.origin)
        assert [arrived.get("X-Path") for arrived in server.arrived] == ["/s1/s1"] * 2


class TestFunctions:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ("", ValueError, "is empty: return None"),
            ("line\nbreak", ValueError, "characters other than printable ASCII"),
            ("é", ValueError, "characters other than printable ASCII"),
            (" x", ValueError, "a space at an end"),
            (7, TypeError, "must be a str, not int"),
        ],
    )
    def test_a_value_that_cannot_be_sent_is_an_error_that_names_the_header(
        self, transport: Transport, server: Server, given, error, message
    ):
        gateway = Gateway(server.origin, session_headers={"X-Mine": lambda s, p, r: given})
        raises = pytest.raises(error, match="X-Mine")
        with transport.open(gateway) as send, session_scope("s1"), raises as caught:
            send("GET", server.origin)
        assert message in str(caught.value)
        assert server.arrived == []

    def test_an_exception_reaches_the_caller(self, transport: Transport, server: Server):
        def failing(session_id: str, parent_id: str | None, root_id: str) -> str:
            raise LookupError("no tenant for this session")

        gateway = Gateway(server.origin, session_headers={"X-Mine": failing})
        raises = pytest.raises(LookupError, match="no tenant")
        with transport.open(gateway) as send, session_scope("s1"), raises:
            send("GET", server.origin)
        assert server.arrived == []

    def test_each_is_called_once_per_request(self, transport: Transport, server: Server):
        calls: list[tuple[str, str | None, str]] = []

        def counting(*of: str | None) -> str:
            calls.append(of)  # type: ignore[arg-type]
            return "x"

        gateway = Gateway(server.origin, session_headers={"X-Mine": counting})
        with transport.open(gateway) as send, session_scope("main"), session_scope("sub"):
            send("GET", server.origin)
            assert calls == [("sub", "main", "main")]
        gateway.headers_for(server.origin)
        assert len(calls) == 1

    def test_none_is_called_outside_every_session(self, transport: Transport, server: Server):
        gateway = Gateway(server.origin, session_headers={"X-Mine": pytest.fail})
        with transport.open(gateway) as send, no_session():
            send("GET", server.origin)
        assert server.arrived[0].get("X-Mine") is None


class TestRequireSession:
    @pytest.mark.parametrize("name", ["X-Session-Id", "x-AFFINITY", "X-Json"])
    def test_any_header_of_the_session_counts_as_one_of_the_callers_own(
        self, transport: Transport, server: Server, name: str
    ):
        gateway = dataclasses.replace(every_kind_at(server), require_session=True)
        with transport.open(gateway) as send:
            send("GET", server.origin, {name: "mine"})
            for headers in (None, {name: ""}, {"X-Parent": "mine"}):
                with pytest.raises(SessionRequired):
                    send("GET", server.origin, headers)
        assert len(server.arrived) == 1


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"X-A": "{user}"}, ValueError, "write a function"),
            ({"X-A": "{session"}, ValueError, "write a function"),
            ({"X-A": "{{session}}"}, ValueError, "write a function"),
            ({"X-A": "{session!r}"}, ValueError, "write a function"),
            ({"X-A": "{}"}, ValueError, "write a function"),
            ({"X-A": "é{session}"}, ValueError, "write a function"),
            ({"X-A": "{session}\n"}, ValueError, "write a function"),
            ({"X-A": " {session}"}, ValueError, "write a function"),
            ({"X-A": ""}, ValueError, "is empty"),
            ({"X-A": None}, TypeError, r"must be a template such as '\{session\}' or a function"),
            ({"X-A": b"{session}"}, TypeError, "not bytes"),
            ({"Host": "{session}"}, ValueError, "the HTTP library sets it"),
            ({"traceparent": "{session}"}, ValueError, "tracing sets it"),
            ({"Tracestate": "{session}"}, ValueError, "tracing sets it"),
            ({"BAGGAGE": "{session}"}, ValueError, "tracing sets it"),
            ({"Authorization": "{session}"}, ValueError, "it carries credentials"),
            ({"X-Cagent-Model": "{session}"}, ValueError, "only X-Cagent-Session-Id carries"),
            ({"X-Cagent-Session-Id": "{session}"}, ValueError, "another header of the session"),
            ({"x-parent": "{parent}"}, ValueError, "another header of the session"),
            ({"X-A": "{root}", "x-a": "{session}"}, ValueError, "another header of the session"),
            ({"X-Cagent-Root-Session-Id": "{root}"}, ValueError, "messages of queues carry it"),
            ({"X-Cagent-Id": "{root}"}, ValueError, "identifies the installation"),
            ({"X A": "{root}"}, ValueError, "not a valid header name"),
            ({7: "{root}"}, TypeError, "must be a str, not int"),
            ("{session}", TypeError, "must be a dict of names and values"),
            (["X-A"], TypeError, "must be a dict of names and values"),
        ],
    )
    def test_with_the_remedy(self, given, error, message):
        with pytest.raises(error, match=message):
            Gateway(
                "https://gateway.example",
                forward=FORWARD,
                parent_header="X-Parent",
                session_headers=given,
            )

    @pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage", "X-Cagent-Id"])
    @pytest.mark.parametrize("parameter", ["session_header", "parent_header"])
    def test_names_of_tracing_and_of_the_installation(self, name: str, parameter: str):
        with pytest.raises(ValueError, match="cannot be"):
            Gateway("https://gateway.example", forward=FORWARD, **{parameter: name})

    def test_a_gateway_header_of_the_same_name(self):
        with pytest.raises(ValueError, match="made from the session"):
            Gateway(
                "https://gateway.example", headers={"X-A": "1"}, session_headers={"x-a": "{root}"}
            )

    def test_docker_agents_names_without_a_forward(self):
        for given in ({"session_headers": {SESSION_ID: "{session}"}}, {}):
            with pytest.raises(ValueError, match="never travels without X-Cagent-Forward"):
                Gateway("https://gateway.example", **given)

    def test_the_installations_id_is_a_gateway_header_with_a_forward(self):
        headers = {"X-Cagent-Id": "5f1c0b1e"}
        gateway = Gateway("https://gateway.example", forward=FORWARD, headers=headers)
        with no_session():
            assert gateway.headers_for(gateway.url)["X-Cagent-Id"] == "5f1c0b1e"
        with pytest.raises(ValueError, match="never travels without"):
            Gateway("https://gateway.example", session_header="X-S", headers=headers)


class TestAsAValue:
    GATEWAY = Gateway(
        "https://gateway.example", session_headers={"X-A": "{root}", "X-Json": as_json}
    )

    def test_survives_pickling(self):
        twin = pickle.loads(pickle.dumps(self.GATEWAY))
        assert twin == self.GATEWAY
        with session_scope("s1"):
            assert twin.headers_for(twin.url) == self.GATEWAY.headers_for(twin.url)

    def test_equal_if_the_functions_are(self):
        assert dataclasses.replace(self.GATEWAY) == self.GATEWAY
        other = dataclasses.replace(self.GATEWAY, session_headers={"X-A": "{root}"})
        assert other != self.GATEWAY
        assert hash(other) == hash(self.GATEWAY)

    def test_repr_shows_names_and_no_values(self):
        assert "session_headers=['X-A', 'X-Json']" in repr(self.GATEWAY)
        assert "root" not in repr(self.GATEWAY)

    def test_cannot_be_changed_by_the_dict_that_was_given(self):
        given = {"X-A": "{session}"}
        gateway = Gateway("https://gateway.example", session_headers=given)
        given["X-B"] = "{session}"
        with session_scope("s1"):
            assert set(gateway.headers_for(gateway.url)) == {"X-A"}
