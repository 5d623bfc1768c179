"""The page of the recording gateway as its server serves it: routes, hosts, limits, events."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests
from support.calls import PROMPT, audit_entry, call

import cagent_session
from cagent_session.testing import RecordingGateway
from cagent_session.testing._page import KEPT, Page


@pytest.fixture
def recording() -> Iterator[RecordingGateway]:
    with RecordingGateway(page=True) as recording:
        yield recording


def ask(
    recording: RecordingGateway,
    path: str,
    *,
    method: str = "GET",
    host: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send a request with any ``Host``; return status, headers and body of the answer."""
    port = urlsplit(recording.url).port
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.putrequest(method, path, skip_host=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{port}")
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_is_there_when_the_package_is_in_a_zip(tmp_path):
    folder = Path(cagent_session.__file__).parent
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", folder.parent, folder.name)
    code = """
        import requests
        from cagent_session import testing
        with testing.RecordingGateway(page=True) as recording:
            answer = requests.get(recording.url + "/_sessions")
            print(".zip" in testing.__file__, answer.status_code)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        # Without coverage, which would count the files in the zip beside those of the package.
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
        | {"PYTHONPATH": packed},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "True 200\n", ran.stderr


class Events:
    """The messages that a browser gets, one by one."""

    def __init__(self, answer: requests.Response) -> None:
        self._lines = answer.iter_lines()

    def next(self) -> dict:
        line = next(line for line in self._lines if line.startswith(b"data: "))
        return json.loads(line.removeprefix(b"data: "))

    def wait_for_calls(self, number: int) -> dict:
        while (state := self.next())["total"] < number:
            pass
        return state


@contextmanager
def watching(recording: RecordingGateway) -> Iterator[Events]:
    url = f"{recording.url}/_sessions/events"
    with requests.get(url, stream=True, timeout=20) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        yield Events(answer)


class TestRoutes:
    @pytest.mark.parametrize("path", ["/_sessions", "/_sessions/", "/_sessions?x=y"])
    def test_page_is_html_with_a_policy_that_allows_only_its_own_script(self, recording, path):
        status, headers, body = ask(recording, path)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; connect-src 'self'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        for tag in (b"script", b"style"):
            (text,) = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), body, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
            assert f"{tag.decode()}-src 'sha256-{digest}'" in policy

    def test_page_names_no_other_host_and_writes_no_html(self, recording):
        _, _, body = ask(recording, "/_sessions")
        addresses = set(re.findall(rb"https?://[^\s\"'`,)]+", body))
        # A namespace of the icon, and the forward URL of the example.
        assert addresses == {b"http://www.w3.org/2000/svg", b"https://api.openai.com/v1"}
        assert not re.search(
            rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", body
        )
        assert not re.search(rb"\s(?:style|on\w+)=\"", body)

    @pytest.mark.parametrize("path", ["/_sessions/x", "/_sessions/calls/x", "/_sessions/../v1"])
    def test_unknown_path_below_the_page_is_404(self, recording, path):
        assert ask(recording, path)[0] == 404

    @pytest.mark.parametrize("path", ["/_sessionsx", "/_session", "/v1/_sessions", "/"])
    def test_path_beside_the_page_is_recorded(self, recording, path):
        assert ask(recording, path)[0] == 200
        assert [request.path for request in recording.requests] == [path]

    @pytest.mark.parametrize("path", ["/_sessions", "/_sessions/calls", "/_sessions/events"])
    def test_head_has_no_body(self, recording, path):
        status, _, body = ask(recording, path, method="HEAD")
        assert (status, body) == (200, b"")

    @pytest.mark.parametrize("path", ["/_sessions", "/_sessions/events", "/_sessions/x"])
    @pytest.mark.parametrize(
        "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]
    )
    def test_method_other_than_get_and_head_is_405(self, recording, path, method):
        status, headers, _ = ask(recording, path, method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")

    def test_body_of_a_405_is_neither_recorded_nor_billed(self, recording):
        answer = requests.post(f"{recording.url}/_sessions", json=PROMPT, timeout=5)
        assert answer.status_code == 405
        assert (recording.requests, recording.audit_log) == ([], [])

    def test_get_with_a_body_is_400(self, recording):
        answer = requests.get(f"{recording.url}/_sessions", data=b"body", timeout=5)
        assert answer.status_code == 400

    def test_page_is_neither_recorded_nor_limited(self):
        with RecordingGateway(page=True, requests_per_minute=1) as recording:
            for path in ("", "/", "/calls", "/calls?session=s1", "/x"):
                headers = {"X-Cagent-Session-Id": "s1"}
                ask(recording, f"/_sessions{path}", headers=headers)
            assert (recording.requests, recording.audit_log) == ([], [])
            assert recording.unattributed.requests == 0
            assert call(recording, "s1") == 200

    def test_without_page_the_path_is_a_call_as_any_other(self, recording_gateway):
        answer = requests.post(f"{recording_gateway.url}/_sessions", timeout=5)
        assert answer.json()["path"] == "/_sessions"
        assert len(recording_gateway.requests) == 1


class TestHost:
    @pytest.mark.parametrize(
        "host",
        [
            *("localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "127.1.2.3:99999"),
            *("[::1]", "[::1]:8080", "localhost:"),
        ],
    )
    def test_loopback_name_is_served(self, recording, host):
        assert ask(recording, "/_sessions", host=host)[0] == 200

    @pytest.mark.parametrize(
        "host",
        [
            *("", "gateway.example", "gateway.example:8080", "127.0.0.1.gateway.example"),
            *(
                "localhost.gateway.example",
                "gateway.example:127.0.0.1",
                "127.0.0.1@gateway.example",
            ),
            *(
                "10.0.0.1",
                "0.0.0.0",
                "[::2]",
                "::1",
                "127.0.0",
                "127.0.0.256",
                "127.1",
                "2130706433",
            ),
            *(
                "localhost:x",
                "localhost, gateway.example",
                "xlocalhost",
                "localhost/gateway.example",
            ),
        ],
    )
    @pytest.mark.parametrize("path", ["/_sessions", "/_sessions/calls", "/_sessions/events"])
    def test_other_name_is_403(self, recording, path, host):
        status, _, body = ask(recording, path, host=host)
        assert status == 403
        assert "127.0.0.1" in json.loads(body)["error"]["message"]
        assert recording.requests == []

    def test_two_hosts_are_403(self, recording):
        status, _, _ = ask(recording, "/_sessions", host="localhost", headers={"HOST": "localhost"})
        assert status == 403

    def test_other_name_may_make_calls(self, recording):
        assert ask(recording, "/v1/x", host="gateway.example")[0] == 200


class TestEvents:
    def test_first_message_has_all_sessions_and_later_ones_what_changed(self, recording):
        call(recording, "main")
        call(recording, "sub", parent="main")
        with watching(recording) as events:
            first = events.next()
            assert first["all"] is True
            assert [key for key, _ in first["sessions"]] == ["main", "sub"]
            call(recording, "sub")
            second = events.wait_for_calls(3)
        assert second["all"] is False
        ((key, sums),) = second["sessions"]
        assert key == "sub"
        assert sums["parent"] == "main"
        assert (sums["calls"], sums["in"], sums["out"], sums["status"]) == (2, 10, 10, 200)

    def test_calls_outside_every_session_have_a_key_of_their_own(self, recording):
        requests.get(recording.url, timeout=5)
        call(recording, "null")
        with watching(recording) as events:
            keys = [key for key, _ in events.next()["sessions"]]
        assert keys == [None, "null"]

    def test_errors_count_and_their_tokens_do_not(self, recording):
        recording.respond = lambda request: (503, {"usage": {"prompt_tokens": 3}})
        call(recording, "s1")
        recording.respond = None
        call(recording, "s1")
        with watching(recording) as events:
            ((_, sums),) = events.next()["sessions"]
        usage = recording.sessions["s1"]
        assert (sums["calls"], sums["errors"]) == (2, 1)
        assert (sums["in"], sums["out"]) == (usage.prompt_tokens, usage.completion_tokens)

    def test_clear_empties_the_page(self, recording):
        call(recording, "s1")
        with watching(recording) as events:
            assert len(events.next()["sessions"]) == 1
            recording.clear()
            state = events.next()
        assert (state["all"], state["total"], state["sessions"]) == (True, 0, [])

    def test_call_that_was_cleared_while_it_was_answered_is_not_shown(self, recording):
        def respond(request):
            recording.clear()
            return {}

        recording.respond = respond
        call(recording, "s1")
        with watching(recording) as events:
            assert events.next()["sessions"] == []

    def test_many_calls_share_messages(self, recording):
        with watching(recording) as events:
            events.next()
            for number in range(100):
                call(recording, f"s{number}")
            messages = 1
            while events.next()["total"] < 100:
                messages += 1
        assert messages < 50

    def test_gateway_closes_at_once_while_browsers_watch(self):
        with RecordingGateway(page=True) as recording:
            answers = [
                requests.get(f"{recording.url}/_sessions/events", stream=True, timeout=20)
                for _ in range(5)
            ]
            for answer in answers:
                next(answer.iter_lines())
            start = time.monotonic()
        assert time.monotonic() - start < 2
        for answer in answers:
            answer.close()

    def test_gateway_that_is_entered_again_has_a_page_again(self):
        recording = RecordingGateway(page=True)
        with recording:
            call(recording, "s1")
        with recording, watching(recording) as events:
            assert [key for key, _ in events.next()["sessions"]] == ["s1"]

    def test_browser_that_went_away_is_forgotten(self, recording, monkeypatch):
        monkeypatch.setattr("cagent_session.testing._page._HEARTBEAT", 0.05)
        with watching(recording) as events:
            events.next()
            assert len(recording._page._watchers) == 1
        deadline = time.monotonic() + 10
        while recording._page._watchers and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not recording._page._watchers


class TestCallsOfASession:
    def test_newest_come_first(self, recording):
        for path in ("/a", "/b"):
            ask(recording, path, headers={"X-Cagent-Session-Id": "s1"})
        call(recording, "other")
        _, _, body = ask(recording, "/_sessions/calls?session=s1")
        assert [shown["path"] for shown in json.loads(body)] == ["/b", "/a"]

    def test_session_ids_are_decoded(self, recording):
        session_id = "a&b=c+d%41/#"
        call(recording, session_id)
        _, _, body = ask(recording, f"/_sessions/calls?session={quote(session_id, safe='')}")
        (shown,) = json.loads(body)
        assert (shown["session_id"], shown["method"]) == (session_id, "POST")

    def test_without_a_session_those_outside_every_session(self, recording):
        requests.get(recording.url + "/out", timeout=5)
        call(recording, "s1")
        _, _, body = ask(recording, "/_sessions/calls")
        assert [shown["path"] for shown in json.loads(body)] == ["/out"]

    def test_200_at_most(self):
        page = Page("X-Id")
        for number in range(201):
            page.add(audit_entry(path=f"/{number}"))
        shown = json.loads(page.answer("/_sessions/calls", "session=s1", "localhost").chunks[0])
        assert [each["path"] for each in (shown[0], shown[-1])] == ["/200", "/1"]


class TestMemory:
    def sums(self, page: Page) -> dict:
        events = page.answer("/_sessions/events", "", "localhost").chunks
        with closing(events):
            return json.loads(next(events).removeprefix(b"data: "))

    def test_last_10_000_calls_are_kept_and_summed(self):
        page = Page("X-Id")
        page.add(audit_entry(session_id="first", status=500))
        for _ in range(KEPT):
            page.add(audit_entry())
        state = self.sums(page)
        assert (KEPT, state["total"], state["kept"]) == (10_000, 10_001, 10_000)
        ((key, sums),) = state["sessions"]
        assert key == "s1"
        assert (sums["calls"], sums["errors"], sums["in"], sums["out"]) == (
            10_000,
            0,
            20_000,
            10_000,
        )

    def test_long_values_are_cut(self):
        page = Page("X-Id")
        page.add(audit_entry(path="/" + "x" * 100_000, model="y" * 100_000))
        body = page.answer("/_sessions/calls", "session=s1", "localhost").chunks[0]
        assert len(body) < 2000

    def test_threads_may_add_while_browsers_watch(self):
        page = Page("X-Id")

        def add() -> None:
            for number in range(3000):
                page.add(audit_entry(session_id=f"s{number % 50}"))

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.sums(page)
        state = self.sums(page)
        assert state["total"] == 12_000
        assert sum(sums["calls"] for _, sums in state["sessions"]) == KEPT
