"""Which session a call was for, by whatever header, and who pays for the sub-agents."""

from __future__ import annotations

import pytest
import requests
from support.calls import call

from cagent_session import Gateway, session_scope
from cagent_session.testing import RecordingGateway, Usage


class TestFamily:
    def test_is_billed_together(self, recording_gateway):
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

    def test_the_last_parent_counts(self, recording_gateway):
        call(recording_gateway, "sub", parent="first")
        call(recording_gateway, "sub", parent="second")
        assert recording_gateway.family("first").requests == 0
        assert recording_gateway.family("second").requests == 2

    def test_a_cycle_ends(self, recording_gateway):
        for session_id, parent in (("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")):
            call(recording_gateway, session_id, parent=parent)
        assert recording_gateway.family("a").requests == 3
        assert recording_gateway.family("self").requests == 1

    def test_an_unknown_session_has_zeros(self, recording_gateway):
        nobody = recording_gateway.family("nobody")
        assert (nobody.requests, nobody.prompt_tokens, nobody.completion_tokens) == (0, 0, 0)
        assert type(nobody) is type(recording_gateway.family("main")) is Usage

    def test_a_parent_without_a_session_has_no_child(self, recording_gateway):
        headers = {"X-Cagent-Parent-Session-Id": "main"}
        requests.get(recording_gateway.url, headers=headers, timeout=5)
        assert recording_gateway.requests[0].parent_session_id == "main"
        assert recording_gateway.family("main").requests == 0


class TestHeaderNames:
    def test_are_read(self):
        names = {"session_header": "X-Session-ID", "parent_header": "X-Parent"}
        with RecordingGateway(**names) as recording, requests.Session() as http:
            Gateway(recording.url, **names).mount(http)
            with session_scope("main"), session_scope("sub"):
                http.get(recording.url, headers={"X-Cagent-Session-Id": "other"})
            (request,) = recording.requests
        assert (request.session_id, request.parent_session_id) == ("sub", "main")

    def test_no_parent(self):
        with RecordingGateway(parent_header=None) as recording:
            assert call(recording, "sub", parent="main") == 200
            assert call(recording, "sub", parent="not an ID") == 200
            assert recording.requests[0].parent_session_id is None

    def test_that_have_a_meaning_of_their_own(self):
        for names in (
            {"session_header": "Host"},
            {"session_header": "X-Cagent-Model"},
            {"parent_header": "X-Cagent-Forward"},
            {"parent_header": "Bad name"},
            {"session_header": "X-Id", "parent_header": "x-id"},
        ):
            with pytest.raises(ValueError, match="_header"):
                RecordingGateway(**names)
