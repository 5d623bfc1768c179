"""The usage per session, per family and outside every session, and the headers it is read from."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import requests
from support.calls import call

from cagent_session import Gateway, session_scope
from cagent_session.testing import RecordingGateway, Usage


class TestUsage:
    def test_session_without_a_call_is_a_key_error_that_names_the_sessions_seen(
        self, recording_gateway
    ):
        call(recording_gateway, "s1")
        call(recording_gateway, "s1")
        call(recording_gateway, "s2")
        call(recording_gateway)
        with pytest.raises(KeyError) as caught:
            recording_gateway.sessions["s3"]
        assert caught.value.args == (
            "session 's3' made no call; seen: 4 calls (2 of 's1', 1 of 's2', 1 without a session)",
        )

    def test_session_whose_calls_failed_is_a_key_error_that_says_so(self, recording_gateway):
        recording_gateway.respond = lambda request: (500, {})
        call(recording_gateway, "s1")
        with pytest.raises(KeyError, match="'s1' made 1 call, which was answered with an error"):
            recording_gateway.sessions["s1"]
        call(recording_gateway, "s1")
        with pytest.raises(KeyError, match="made 2 calls, all of them answered with errors"):
            recording_gateway.sessions["s1"]

    def test_key_error_without_any_call(self, recording_gateway):
        for key in ("s1", None, 1):
            with pytest.raises(KeyError, match=r"made no call; seen: no calls"):
                recording_gateway.sessions[key]

    def test_key_error_names_20_sessions_and_cuts_long_ones(self, recording_gateway):
        for number in range(22):
            call(recording_gateway, f"s{number}-{'x' * 100}")
        with pytest.raises(KeyError) as caught:
            recording_gateway.sessions["s3"]
        (message,) = caught.value.args
        assert "1 of 's19-xxx" in message
        assert message.endswith(", 2 of other sessions, 0 without a session)")
        assert len(message) < 2500

    def test_sessions_are_a_dict_in_every_other_way(self, recording_gateway):
        assert recording_gateway.sessions == {}
        call(recording_gateway, "s1")
        sessions = recording_gateway.sessions
        assert sessions.get("s2") is None
        assert "s2" not in sessions
        assert json.loads(json.dumps(sessions)) == sessions == {"s1": sessions["s1"]}
        assert copy.deepcopy(sessions) == pickle.loads(pickle.dumps(sessions)) == sessions

    def test_unattributed_is_the_usage_outside_every_session(self, recording_gateway):
        assert recording_gateway.unattributed == {
            "requests": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
        }
        call(recording_gateway)
        call(recording_gateway, "s1")
        recording_gateway.respond = lambda request: (500, {})
        call(recording_gateway)
        assert type(recording_gateway.unattributed) is Usage
        assert recording_gateway.unattributed.requests == 1
        assert recording_gateway.unattributed.prompt_tokens == 5

    def test_repr_says_where_it_listens_and_what_it_has_seen(self):
        recording = RecordingGateway()
        assert repr(recording) == "<RecordingGateway not entered yet: no calls>"
        with recording:
            call(recording, "s1")
            seen = "1 call (1 of 's1', 0 without a session)"
            assert repr(recording) == f"<RecordingGateway at {recording.url}: {seen}>"
            call(recording)
            assert repr(recording).endswith(": 2 calls (1 of 's1', 1 without a session)>")


class TestFamily:
    def test_family_is_billed_together(self, recording_gateway):
        for session_id, parent in (
            ("main", None),
            ("sub", "main"),
            ("sub-of-sub", "sub"),
            ("sub", None),  # a parent that is known stays
            ("other", None),
            ("other-sub", "other"),
        ):
            call(recording_gateway, session_id, parent=parent)
        assert recording_gateway.requests[1].parent_session_id == "main"
        assert recording_gateway.audit_log[1]["parent_session_id"] == "main"
        assert recording_gateway.family("main") == {
            "requests": 4,
            "prompt_tokens": 20,
            "completion_tokens": 20,
        }
        assert recording_gateway.family("sub").requests == 3
        assert recording_gateway.family("sub-of-sub").requests == 1
        assert recording_gateway.family("other").requests == 2

    def test_last_parent_of_a_session_counts(self, recording_gateway):
        call(recording_gateway, "sub", parent="first")
        call(recording_gateway, "sub", parent="second")
        assert recording_gateway.family("first").requests == 0
        assert recording_gateway.family("second").requests == 2

    def test_parents_in_a_circle_are_counted_once(self, recording_gateway):
        for session_id, parent in (("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")):
            call(recording_gateway, session_id, parent=parent)
        assert recording_gateway.family("a").requests == 3
        assert recording_gateway.family("self").requests == 1

    def test_family_of_an_unknown_session_has_zeros(self, recording_gateway):
        nobody = recording_gateway.family("nobody")
        assert (nobody.requests, nobody.prompt_tokens, nobody.completion_tokens) == (0, 0, 0)
        assert type(nobody) is type(recording_gateway.family("main")) is Usage

    def test_parent_of_a_call_without_a_session_has_no_child(self, recording_gateway):
        headers = {"X-Cagent-Parent-Session-Id": "main"}
        requests.get(recording_gateway.url, headers=headers, timeout=5)
        assert recording_gateway.requests[0].parent_session_id == "main"
        assert recording_gateway.family("main").requests == 0


class TestHeaderNames:
    @pytest.mark.parametrize(
        "value", ["/root/session", '{"session": "s1", "user": "u 1"}', "x" * 2048, "s"]
    )
    def test_value_under_a_name_of_its_own_may_have_any_shape(self, value):
        with RecordingGateway(session_header="X-Metadata") as recording:
            answer = requests.get(recording.url, headers={"X-Metadata": value}, timeout=5)
            assert answer.status_code == 200
            assert recording.requests[0].session_id == value
            assert recording.sessions[value].requests == 1

    @pytest.mark.parametrize("value", ["", "x" * 2049, "s\xe9", "s\t1"])
    def test_value_that_no_gateway_sends_is_400(self, value):
        with RecordingGateway(session_header="X-Metadata") as recording:
            headers = {"X-Metadata": value.encode("latin-1")}
            answer = requests.get(recording.url, headers=headers, timeout=5)
            assert answer.status_code == 400
            assert recording.requests == []

    def test_session_and_parent_are_read_from_the_named_headers(self):
        names = {"session_header": "X-Session-ID", "parent_header": "X-Parent"}
        with RecordingGateway(**names) as recording, requests.Session() as http:
            Gateway(recording.url, **names).mount(http)
            with session_scope("main"), session_scope("sub"):
                http.get(recording.url, headers={"X-Cagent-Session-Id": "other"})
            (request,) = recording.requests
        assert (request.session_id, request.parent_session_id) == ("sub", "main")

    def test_parent_header_none_reads_no_parent(self):
        with RecordingGateway(parent_header=None) as recording:
            assert call(recording, "sub", parent="main") == 200
            assert call(recording, "sub", parent="not an ID") == 200
            assert recording.requests[0].parent_session_id is None

    def test_reserved_header_name_is_a_value_error(self):
        for names in (
            {"session_header": "Host"},
            {"session_header": "X-Cagent-Model"},
            {"parent_header": "X-Cagent-Forward"},
            {"parent_header": "Bad name"},
            {"session_header": "X-Id", "parent_header": "x-id"},
        ):
            with pytest.raises(ValueError, match="_header"):
                RecordingGateway(**names)

    @pytest.mark.parametrize(
        ("name", "template", "value"),
        [
            ("X-Affinity", "{session}", "sub"),
            ("X-Parent", "{parent}", "main"),
            ("X-Path", "/{root}/{session}", "/main/sub"),
            ("X-Metadata", lambda *ids: json.dumps(ids), '["sub", "main", "main"]'),
        ],
    )
    def test_every_header_made_from_the_session_can_be_read(self, name, template, value):
        headers = {"X-Affinity": "{session}", "X-Parent": "{parent}", name: template}
        with RecordingGateway(session_header=name) as recording, requests.Session() as http:
            Gateway(recording.url, session_headers=headers).mount(http)
            with session_scope("main"), session_scope("sub"):
                http.get(recording.url)
            assert recording.requests[0].session_id == value
