"""The rate limit of the recording gateway, per session."""

from __future__ import annotations

import pytest
import requests

from cagent_session import Gateway, session_scope
from cagent_session.testing import RecordingGateway
from cagent_session.testing._limits import RateLimit

FORWARD = "https://api.openai.com/v1"


class TestLimit:
    def test_limit_counts_each_session_apart(self):
        with RecordingGateway(requests_per_minute=2) as recording, requests.Session() as http:
            Gateway(recording.url, forward=FORWARD).mount(http)

            def call(session_id):
                with session_scope(session_id):
                    return http.get(recording.url)

            assert [call(name).status_code for name in "aaabab"] == [200, 200, 429, 200, 429, 200]
            limited = call("a")
            assert 1 <= int(limited.headers["Retry-After"]) <= 60
            assert limited.json()["error"]["type"] == "rate_limit_error"
            assert [http.get(recording.url).status_code for _ in range(5)] == [200] * 5
            assert recording.sessions["a"].requests == 2
            assert [entry["status"] for entry in recording.audit_log].count(429) == 3

    def test_request_counts_for_60_seconds(self, monkeypatch: pytest.MonkeyPatch):
        now = 1000.0
        monkeypatch.setattr("cagent_session.testing._limits.time.monotonic", lambda: now)
        with RecordingGateway(requests_per_minute=1) as recording:
            headers = {"X-Cagent-Session-Id": "a"}
            seen = []
            for step in (0, 58.75, 59.5, 60):
                now = 1000.0 + step
                answer = requests.get(recording.url, headers=headers, timeout=5)
                seen.append((answer.status_code, answer.headers.get("Retry-After")))
        assert seen == [(200, None), (429, "2"), (429, "1"), (200, None)]

    @pytest.mark.parametrize("limit", [0, -1])
    def test_limit_below_1_is_a_value_error(self, limit):
        with pytest.raises(ValueError, match="at least 1"):
            RecordingGateway(requests_per_minute=limit)


class TestMemory:
    def test_sessions_whose_minute_is_over_are_forgotten(self, monkeypatch: pytest.MonkeyPatch):
        now = 0.0
        monkeypatch.setattr("cagent_session.testing._limits.time.monotonic", lambda: now)
        limit = RateLimit(2)
        for number in range(1000):
            now += 1
            assert limit.seconds_to_wait(f"s{number}") is None
        assert len(limit._served_at) == 60

    def test_session_in_use_is_remembered(self, monkeypatch: pytest.MonkeyPatch):
        now = 0.0
        monkeypatch.setattr("cagent_session.testing._limits.time.monotonic", lambda: now)
        limit = RateLimit(2)
        seen = []
        for now in (0.0, 30.0, 59.0, 60.0, 61.0, 90.0):
            limit.seconds_to_wait(f"other-at-{now}")
            seen.append(limit.seconds_to_wait("s1"))
        assert seen == [None, None, 1, None, 29, None]

    def test_refused_requests_take_no_memory(self):
        limit = RateLimit(1)
        for _ in range(100):
            limit.seconds_to_wait("s1")
        assert len(limit._served_at["s1"]) == 1
