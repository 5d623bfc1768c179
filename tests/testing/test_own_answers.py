"""Answers of one's own from the recording gateway, and what happens when they fail."""

from __future__ import annotations

import io
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import pytest
import requests
from support.calls import PROMPT, call

from cagent_session.testing import RecordingGateway


class TestRespond:
    def test_respond_is_asked_before_the_gateway_answers(self):
        def respond(request):
            assert recording.requests[-1] is request
            return {"to": request.json["model"]} if request.method == "POST" else None

        with RecordingGateway(respond=respond) as recording:
            url = recording.url + "/v1/chat/completions"
            answer = requests.post(url, json=PROMPT, timeout=5)
            assert (answer.status_code, answer.json()) == (200, {"to": "gpt-x"})
            assert answer.headers["Content-Type"] == "application/json"
            assert requests.get(url, timeout=5).json()["method"] == "GET"
            recording.respond = None
            assert requests.post(url, json=PROMPT, timeout=5).json()["object"] == "chat.completion"

    @pytest.mark.parametrize(
        ("given", "status", "body"),
        [
            ([], 200, "[]"),
            ([{"a": 1}], 200, '[{"a": 1}]'),
            ((201, {"a": 1}), 201, '{"a": 1}'),
            ((503, []), 503, "[]"),
            ((HTTPStatus.TOO_MANY_REQUESTS, {}), 429, "{}"),
            ((200, {}), 200, "{}"),
            ((599, {}), 599, "{}"),
            ((204, {"a": 1}), 204, ""),
            ((304, {"a": 1}), 304, ""),
        ],
    )
    def test_json_with_or_without_a_status_is_sent(self, recording_gateway, given, status, body):
        recording_gateway.respond = lambda request: given
        with requests.Session() as http:
            for _ in range(2):  # the connection is fit for another request
                answer = http.get(recording_gateway.url, timeout=5)
                assert (answer.status_code, answer.text) == (status, body)
                assert ("Content-Length" in answer.headers) == (body != "")
            assert http.head(recording_gateway.url, timeout=5).status_code == status
        assert recording_gateway.audit_log[0]["status"] == status

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ("text", "TypeError: respond must give a dict or a list .* not str"),
            (b"bytes", "not bytes"),
            (7, "not int"),
            (("200", {}), r"not \(str, dict\)"),
            ((200, "text"), r"not \(int, str\)"),
            ((200, {}, {}), r"not \(int, dict, dict\)"),
            ((), r"not \(\)"),
            ((199, {}), "ValueError: respond must give a status from 200 to 599, not 199"),
            ((600, {}), "not 600"),
            ({"a": {1}}, "TypeError: Object of type set is not JSON serializable"),
        ],
    )
    def test_value_that_cannot_be_sent_is_printed_and_answered_with_500(
        self, recording_gateway, capsys, given, says
    ):
        recording_gateway.respond = lambda request: given
        answer = requests.get(recording_gateway.url, timeout=5)
        assert answer.status_code == 500
        assert re.search(says, answer.json()["error"]["message"])
        assert re.search(says, capsys.readouterr().err)

    def test_exception_in_respond_is_printed_and_answered_with_500(self, recording_gateway, capsys):
        def respond(request):
            assert request.session_id == "s2", "whose call is this?"
            pytest.fail("not expected")

        recording_gateway.respond = respond
        for session_id, says in (
            ("s1", "AssertionError: whose call is this?"),
            ("s2", "Failed: not expected"),
        ):
            assert call(recording_gateway, session_id) == 500
            err = capsys.readouterr().err
            assert "Traceback" in err
            assert says in err
        assert [entry["status"] for entry in recording_gateway.audit_log] == [500, 500]
        assert recording_gateway.sessions == {}

    @pytest.mark.parametrize("problem", [OSError, ValueError])
    def test_exception_in_respond_is_answered_even_if_stderr_is_closed(
        self, recording_gateway, monkeypatch, problem
    ):
        class Unwritable(io.StringIO):
            def write(self, text):
                raise problem

        recording_gateway.respond = lambda request: {}["tool"]
        monkeypatch.setattr("sys.stderr", Unwritable())
        assert call(recording_gateway, "s1") == 500

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="notes are newer")
    def test_notes_of_an_exception_are_in_the_answer(self, recording_gateway):
        def respond(request):
            error = LookupError("no such tool")
            error.add_note("of the weather")
            raise error

        recording_gateway.respond = respond
        message = requests.get(recording_gateway.url, timeout=5).json()["error"]["message"]
        assert message == "respond failed: LookupError: no such tool\nof the weather"

    @pytest.mark.parametrize(
        ("usage", "tokens"),
        [
            ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, (3, 4)),
            ({"input_tokens": 3, "output_tokens": 4}, (3, 4)),
            ({"prompt_tokens": 1, "total_tokens": 1}, (1, 0)),
            ({"prompt_tokens": "3", "completion_tokens": -4}, (0, 0)),
            ({"prompt_tokens": True, "completion_tokens": 1.5}, (0, 0)),
            ([], (0, 0)),
            (None, (0, 0)),
        ],
    )
    def test_usage_in_the_answer_is_billed(self, recording_gateway, usage, tokens):
        recording_gateway.respond = lambda request: {"usage": usage}
        assert call(recording_gateway, "s1") == 200
        bill = recording_gateway.sessions["s1"]
        assert (bill.requests, bill.prompt_tokens, bill.completion_tokens) == (1, *tokens)

    @pytest.mark.parametrize(("status", "served"), [(204, 1), (399, 1), (400, 0), (503, 0)])
    def test_answers_with_an_error_status_are_not_billed(self, recording_gateway, status, served):
        recording_gateway.respond = lambda request: (status, {"usage": {"prompt_tokens": 3}})
        call(recording_gateway, "s1")
        assert recording_gateway.family("s1").requests == served
        assert recording_gateway.family("s1").prompt_tokens == 3 * served

    def test_respond_is_not_asked_over_the_limit(self):
        seen = []
        with RecordingGateway(requests_per_minute=1, respond=seen.append) as recording:
            assert [call(recording, "s1") for _ in range(2)] == [200, 429]
        assert len(seen) == 1

    def test_respond_may_wait_for_another_request(self):
        both = threading.Barrier(2, timeout=5)
        waiting = RecordingGateway(respond=lambda request: {"index": both.wait()})
        with waiting as recording, ThreadPoolExecutor() as pool:
            assert list(pool.map(call, [recording] * 2, ["s1", "s2"])) == [200, 200]


class TestOnCall:
    def test_on_call_may_read_the_audit_log(self):
        def on_call(entry):
            assert recording.audit_log[-1] == entry
            entry["status"] = 0

        with RecordingGateway(on_call=on_call) as recording:
            assert call(recording, "s1") == 200
        assert recording.audit_log[0]["status"] == 200

    @pytest.mark.parametrize("failure", [LookupError, KeyboardInterrupt])
    def test_exception_in_on_call_is_printed_and_answered_with_500(self, capsys, failure):
        seen = []

        def on_call(entry):
            raise failure("where is the ledger?")

        with RecordingGateway(on_call=on_call, respond=seen.append) as recording:
            assert call(recording, "s1") == 500
        assert f"{failure.__name__}: where is the ledger?" in capsys.readouterr().err
        assert len(seen) == 1
        assert recording.audit_log[0]["status"] == 500
        (entry,) = recording.audit_log
        assert (entry["prompt_tokens"], entry["completion_tokens"]) == (0, 0)
        assert recording.sessions == {}
