"""The recording gateway: its records, its answers, its start and end."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests
from support.calls import PROMPT, call

from cagent_session import Gateway, session_scope
from cagent_session.testing import RecordingGateway, _server

FORWARD = "https://api.openai.com/v1"


@pytest.fixture
def agent(recording_gateway):
    """A session that is mounted on the recording gateway."""
    with requests.Session() as session:
        session.trust_env = False
        Gateway(recording_gateway.url, forward=FORWARD, provider="openai").mount(session)
        yield session


class TestRecords:
    def test_request_is_recorded_as_it_arrived(self, recording_gateway, agent):
        with session_scope("s1"):
            agent.post(recording_gateway.url + "/p/a?b=c", data=b"body", headers={"X-A": "b"})
        (request,) = recording_gateway.requests
        assert request.method == "POST"
        assert request.path == "/p/a"
        assert request.query == "b=c"
        assert request.body == b"body"
        assert request.json == {}
        assert request.headers["x-a"] == "b"
        assert request.session_id == "s1"
        assert request.forward == FORWARD
        assert request.provider == "openai"
        assert request.model is None

    def test_repr_shows_no_secrets(self, recording_gateway):
        """pytest prints it where an assertion about a request fails."""
        gateway = Gateway(
            f"{recording_gateway.url}?key=secret-q",
            forward="https://api.openai.com/v1?key=secret-f",
            headers={"X-Api-Key": "secret-h"},
        )
        with requests.Session() as agent, session_scope("s1"):
            gateway.mount(agent)
            agent.get(gateway.endpoint("v1/models"), headers={"Authorization": "Bearer secret-a"})
        (request,) = recording_gateway.requests
        assert (request.query, request.headers["x-api-key"]) == ("key=secret-q", "secret-h")
        assert "session_id='s1'" in repr(request)
        assert "secret" not in repr(request)

    def test_several_slashes_stay(self, recording_gateway, agent):
        """They make a URL nobody's, so a test has to see them."""
        agent.get(f"{recording_gateway.url}//v1/models")
        assert recording_gateway.requests[0].path == "//v1/models"

    def test_white_space_around_a_value_is_no_part_of_it(self, recording_gateway, agent):
        agent.get(f"{recording_gateway.url}/v1/models", headers={"X-Cagent-Session-Id": "s1 "})
        assert recording_gateway.requests[0].session_id == "s1"

    def test_model_of_the_header_wins_over_that_of_the_body(self, recording_gateway):
        headers = {"X-Cagent-Model": "of-the-header"}
        requests.post(recording_gateway.url, json=PROMPT, headers=headers, timeout=5)
        assert recording_gateway.requests[0].model == "of-the-header"

    def test_sessions_are_billed_apart(self, recording_gateway, agent):
        url = recording_gateway.url + "/v1/chat/completions"
        for session_id, times in (("s1", 2), ("s2", 1)):
            for _ in range(times):
                with session_scope(session_id):
                    agent.post(url, json=PROMPT)
        agent.post(url, json=PROMPT)
        one, two = recording_gateway.sessions["s1"], recording_gateway.sessions["s2"]
        assert (one.requests, one.prompt_tokens, one.completion_tokens) == (2, 10, 10)
        assert two == {"requests": 1, "prompt_tokens": 5, "completion_tokens": 5}
        assert set(recording_gateway.sessions) == {"s1", "s2"}
        with pytest.raises(AttributeError):
            _ = one.euros

    def test_audit_log_has_a_json_ready_entry_per_call(self, recording_gateway, agent):
        with session_scope("s1"):
            agent.post(recording_gateway.url + "/v1/messages", json=PROMPT)
        (entry,) = json.loads(json.dumps(recording_gateway.audit_log))
        assert entry.pop("time").endswith("+00:00")
        assert entry == {
            "session_id": "s1",
            "parent_session_id": None,
            "forward": FORWARD,
            "provider": "openai",
            "model": "gpt-x",
            "method": "POST",
            "path": "/v1/messages",
            "status": 200,
            "prompt_tokens": 5,
            "completion_tokens": 5,
        }

    def test_changing_what_it_returns_changes_nothing(self, recording_gateway, agent):
        with session_scope("s1"):
            agent.get(recording_gateway.url)
        recording_gateway.requests.clear()
        recording_gateway.audit_log[0]["status"] = 0
        recording_gateway.sessions["s1"]["requests"] = 0
        assert len(recording_gateway.requests) == 1
        assert recording_gateway.audit_log[0]["status"] == 200
        assert recording_gateway.sessions["s1"].requests == 1

    def test_clear_forgets_calls_bills_and_limits(self):
        with RecordingGateway(requests_per_minute=1) as recording:
            assert [call(recording, "s1", parent="main") for _ in range(2)] == [200, 429]
            recording.clear()
            assert (recording.requests, recording.audit_log, recording.sessions) == ([], [], {})
            assert recording.family("main").requests == 0
            assert call(recording, "s1") == 200
            assert recording.sessions["s1"].requests == 1

    def test_clear_forgets_the_call_that_is_being_answered(self, recording_gateway):
        def respond(request):
            recording_gateway.clear()
            return {"usage": {"prompt_tokens": 3}}

        recording_gateway.respond = respond
        assert call(recording_gateway, "s1") == 200
        assert (recording_gateway.requests, recording_gateway.audit_log) == ([], [])
        assert recording_gateway.sessions == {}


class TestAnswers:
    def test_chat_completion_has_openais_shape(self, recording_gateway, agent):
        answer = agent.post(recording_gateway.url + "/v1/chat/completions", json=PROMPT).json()
        assert answer["object"] == "chat.completion"
        assert answer["model"] == "gpt-x"
        assert answer["choices"][0]["message"]["content"] == recording_gateway.reply
        assert answer["choices"][0]["index"] == 0
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}

    @pytest.mark.parametrize("with_usage", [True, False])
    def test_streamed_chat_completion_has_openais_events(
        self, recording_gateway, agent, with_usage
    ):
        prompt = PROMPT | {"stream": True, "stream_options": {"include_usage": with_usage}}
        url = recording_gateway.url + "/prefix/v1/chat/completions"
        with session_scope("s1"), agent.post(url, json=prompt, stream=True) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"] == "text/event-stream"
            assert answer.headers["Transfer-Encoding"] == "chunked"
            lines = [line.decode() for line in answer.iter_lines() if line]
        assert lines.pop() == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        if with_usage:
            assert events.pop()["usage"]["total_tokens"] == 10
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert text == recording_gateway.reply
        assert {event["choices"][0]["index"] for event in events} == {0}
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        assert recording_gateway.sessions["s1"].completion_tokens == 5
        assert recording_gateway.requests[0].json == prompt

    def test_prompt_without_a_model_is_answered(self, recording_gateway, agent):
        prompt = {"messages": PROMPT["messages"]}
        answer = agent.post(recording_gateway.url + "/v1/chat/completions", json=prompt).json()
        assert isinstance(answer["model"], str)
        assert recording_gateway.requests[0].model is None

    def test_message_has_anthropics_shape(self, recording_gateway, agent):
        prompt = PROMPT | {"system": "a b"}
        answer = agent.post(recording_gateway.url + "/v1/messages", json=prompt).json()
        assert answer["type"] == "message"
        assert answer["content"] == [{"type": "text", "text": recording_gateway.reply}]
        assert answer["stop_reason"] == "end_turn"
        assert answer["usage"] == {"input_tokens": 7, "output_tokens": 5}

    def test_streamed_message_has_anthropics_events(self, recording_gateway, agent):
        prompt = PROMPT | {"stream": True}
        answer = agent.post(recording_gateway.url + "/v1/messages", json=prompt).text
        lines = answer.splitlines()
        kinds = [line.split()[1] for line in lines if line.startswith("event:")]
        events = [json.loads(line.removeprefix("data:")) for line in lines if "data:" in line]
        assert [event["type"] for event in events] == kinds
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert {event["index"] for event in events if "index" in event} == {0}
        assert events[0]["message"]["usage"] == {"input_tokens": 5, "output_tokens": 0}
        assert events[-2]["usage"] == {"output_tokens": 5}
        assert events[-2]["delta"]["stop_reason"] == "end_turn"

    def test_other_paths_are_echoed(self, recording_gateway, agent):
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
            with session_scope("s1"):
                answer = agent.request(method, recording_gateway.url + "/a?b=c")
            assert answer.json() == {
                "method": method,
                "path": "/a",
                "query": "b=c",
                "session_id": "s1",
                "forward": FORWARD,
            }
        assert agent.head(recording_gateway.url).text == ""

    def test_paths_that_resemble_an_endpoint_are_echoed(self, recording_gateway, agent):
        for path in ("/v1/threads/1/messages", "/chat/completions", "/v1/messages/batches"):
            answer = agent.post(recording_gateway.url + path, json=PROMPT | {"model": 5})
            assert answer.json()["path"] == path
        assert {request.model for request in recording_gateway.requests} == {None}

    def test_reply_is_what_the_model_answers(self):
        with RecordingGateway(reply="No.") as recording:
            url = recording.url + "/v1/chat/completions"
            answer = requests.post(url, json=PROMPT, timeout=5).json()
        assert answer["choices"][0]["message"]["content"] == "No."

    def test_chunked_upload_is_read(self, recording_gateway, agent):
        agent.post(recording_gateway.url, data=iter([b"one", b"two"]))
        assert recording_gateway.requests[0].body == b"onetwo"


class TestLife:
    def test_url_before_it_is_entered_is_an_error(self):
        with pytest.raises(RuntimeError, match=r"with \.\.\. as"):
            _ = RecordingGateway().url

    def test_exit_ends_connections_that_clients_keep_open(self):
        with RecordingGateway() as recording:
            connection = http.client.HTTPConnection("127.0.0.1", urlsplit(recording.url).port)
            connection.request("GET", "/")
            connection.getresponse().read()
            threads = threading.active_count()
        assert threading.active_count() < threads
        connection.close()
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
            socket.create_connection(("127.0.0.1", urlsplit(recording.url).port), timeout=5)

    def test_exit_waits_for_the_answer_that_is_being_made(self):
        asked, may_end = threading.Event(), threading.Event()

        def respond(request):
            asked.set()
            return {"waited": may_end.wait(5)}

        with ThreadPoolExecutor() as pool:
            with RecordingGateway(respond=respond) as recording:
                calling = pool.submit(call, recording, "s1")
                assert asked.wait(5)
                threading.Timer(0.1, may_end.set).start()
            assert [entry["status"] for entry in recording.audit_log] == [200]
            assert calling.exception() is None

    def test_exit_does_not_wait_for_an_answer_that_never_comes(self, monkeypatch):
        monkeypatch.setattr(_server, "LINGER", 0.1)
        may_end = threading.Event()
        with RecordingGateway(respond=lambda request: may_end.wait(30)) as recording:
            with pytest.raises(requests.Timeout):
                requests.get(recording.url, timeout=0.1)
            start = time.monotonic()
        assert time.monotonic() - start < 10
        may_end.set()

    def test_process_ends_without_an_exit_though_a_client_is_connected(self):
        code = """
            import socket
            from urllib.parse import urlsplit
            from cagent_session.testing import RecordingGateway
            recording = RecordingGateway(page=True).__enter__()
            browser = socket.create_connection(("127.0.0.1", urlsplit(recording.url).port))
            browser.sendall(b"GET /_sessions/events HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
            assert browser.recv(100).startswith(b"HTTP/1.1 200")
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=20, check=True)

    def test_second_exit_is_a_no_op(self):
        recording = RecordingGateway()
        with recording:
            pass
        recording.__exit__(None, None, None)

    def test_on_call_is_called_with_every_call(self):
        calls = []
        with RecordingGateway(on_call=calls.append) as recording:
            requests.get(recording.url + "/x", timeout=5)
        assert [call["path"] for call in calls] == ["/x"]

    def test_many_clients_at_once_are_billed_apart(self, recording_gateway):
        def work(number):
            with requests.Session() as http, session_scope(f"s{number % 4}"):
                Gateway(recording_gateway.url, forward=FORWARD).mount(http)
                for _ in range(25):
                    assert http.get(recording_gateway.url).json()["session_id"] == f"s{number % 4}"

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {usage.requests for usage in recording_gateway.sessions.values()} == {100}
