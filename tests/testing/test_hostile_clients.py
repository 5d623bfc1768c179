"""The recording gateway's server: clients that speak no HTTP, speak it badly, or vanish."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import pytest
import requests
from support.calls import PROMPT

from cagent_session.testing import RecordingGateway

HEAD = b"POST / HTTP/1.1\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MAX_BODY = 16 * 1024 * 1024


def talk(url: str, data: bytes) -> bytes:
    """Send bytes as they are, and read until the server closes."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while more := connection.recv(65536):
            answer += more
        return answer


class TestHostileClients:
    @pytest.mark.parametrize(
        ("answered", "data"),
        [
            (400, b"\r\n"),
            *((400, bytes([white]) + b"\r\n") for white in b"\t\x0b\x0c\x1c\x1d\x1e\x1f \x85\xa0"),
            (400, b"\x1c"),
            (400, b"GET\x1c/ HTTP/1.1\r\n\r\n"),
            (400, b"GET\xa0/ HTTP/1.1\r\n\r\n"),
            (400, b"GET /\x85HTTP/1.1\r\n\r\n"),
            (400, b"  GET / HTTP/1.1\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\r\n\r\n"),
            (400, b"GET /\0 HTTP/1.1\r\n\r\n"),
            (400, b"NONSENSE\r\n\r\n"),
            (400, b"GET /\r\n\r\n"),
            (400, b"BREW / HTTP/1.1\r\n\r\n"),
            (400, b"GET / HTTP/9.9\r\n\r\n"),
            (400, b"GET / FTP/1.1\r\n\r\n"),
            (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 / x\r\n\r\n"),
            (414, b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n"),
            (431, HEAD + b"X: " + b"x" * 70000 + b"\r\n\r\n"),
            (431, HEAD + b"X: y\r\n" * 200 + b"\r\n"),
            (400, HEAD + b"Content-Length: x\r\n\r\n"),
            (400, HEAD + b"Content-Length: -1\r\n\r\n"),
            (400, HEAD + b"Content-Length: 5\r\n\r\nabc"),
            (413, HEAD + b"Content-Length: 99999999999\r\n\r\n"),
            (400, HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
            (400, HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (400, HEAD + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n"),
            (400, CHUNKED + b"xyz\r\n"),
            (400, CHUNKED + b"-fffff\r\n"),
            (413, CHUNKED + b"fffffffff\r\n"),
            (400, CHUNKED + b"3\r\nabcdef\r\n"),
            (400, CHUNKED + b"3\r\nabcde0\r\n\r\n"),
            (400, CHUNKED + b"3\r\nab"),
            (400, CHUNKED + b"2;" + b"x" * 1022 + b"ok\r\n0\r\n\r\n"),
            (400, CHUNKED),
            (431, CHUNKED + b"0\r\n" + b"X: y\r\n" * 200),
            (400, HEAD + b"X-Cagent-Session-Id: a b\r\n\r\n"),
            (400, HEAD + b"X-Cagent-Session-Id:\r\n\r\n"),
            (400, HEAD + b"X-Cagent-Session-Id: \xc3\xbc\r\n\r\n"),
            (400, HEAD + b"X-Cagent-Session-Id: a\r\nX-Cagent-Session-Id: b\r\n\r\n"),
            (400, HEAD + b"X-Cagent-Parent-Session-Id: a b\r\n\r\n"),
            (400, HEAD + b"X-Cagent-Parent-Session-Id: a\r\n" * 2 + b"\r\n"),
            (400, HEAD + b"X-Cagent-Forward: a\r\nX-Cagent-Forward: b\r\n\r\n"),
            (400, HEAD + b"Content-Length:\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
            (400, CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n"),
            (400, CHUNKED + b"\x1c2\r\nok\r\n0\r\n\r\n"),
            (400, CHUNKED + b"\r2\r\nok\r\n0\r\n\r\n"),
            (400, CHUNKED + b" 2\r\nok\r\n0\r\n\r\n"),
            (400, CHUNKED + b"2\r\r\nok\r\n0\r\n\r\n"),
            (400, CHUNKED + b"2;x\ry\r\nok\r\n0\r\n\r\n"),
            (400, CHUNKED + b"0\r\n"),
            (400, CHUNKED + b"0\r\nX-Trailer: x"),
            (400, CHUNKED + b"0\r\nX-Trailer: x\r\n"),
            (400, CHUNKED + b"0\r\nno colon\r\n\r\n"),
            (431, CHUNKED + b"0\r\nX-Trailer: " + b"x" * 70000 + b"\r\n\r\n"),
            (400, HEAD + b"no colon\r\nX-Cagent-Session-Id: s1\r\n\r\n"),
            (400, HEAD + b"Content-Length : 18\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
            (400, HEAD + b" X-Cagent-Session-Id: s1\r\n\r\n"),
            (400, HEAD + b"X: y\r\n folded\r\n\r\n"),
            (400, HEAD + b": y\r\n\r\n"),
            (400, HEAD + b"X: y\rX-Cagent-Session-Id: s1\r\n\r\n"),
            (400, HEAD + b"X: \0\r\n\r\n"),
            (400, HEAD + b"X-Cagent-Session-Id: the-end-is-miss"),
            (400, HEAD + b"X-Cagent-Session-Id: s1\r\n"),
        ],
    )
    def test_malformed_request_gets_a_4xx(self, recording_gateway, answered: int, data: bytes):
        first, *lines = talk(recording_gateway.url, data).split(b"\r\n")
        assert first.startswith(b"HTTP/1.1 %d " % answered), first
        assert b"Connection: close" in lines
        assert recording_gateway.requests == []
        assert requests.get(recording_gateway.url, timeout=5).status_code == 200

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
    @pytest.mark.parametrize("body", [b"", b"{{{", b"[]", b"{}", b'{"messages": 1}', b"[" * 100000])
    def test_body_that_is_no_prompt_gets_a_400(self, recording_gateway, path, body):
        answer = requests.post(recording_gateway.url + path, data=body, timeout=5)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert recording_gateway.audit_log[0]["status"] == 400

    def test_client_that_vanishes_does_no_harm(self, recording_gateway, capfd):
        address = ("127.0.0.1", urlsplit(recording_gateway.url).port)
        for data in (b"", b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc", b"GET / HT"):
            with socket.create_connection(address, timeout=5) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(data)
        assert requests.get(recording_gateway.url, timeout=5).status_code == 200
        assert capfd.readouterr() == ("", "")

    def test_client_that_sends_on_when_refused_sees_the_answer(self, recording_gateway):
        address = ("127.0.0.1", urlsplit(recording_gateway.url).port)
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
            for _ in range(5):
                time.sleep(0.02)
                connection.sendall(b"x" * 100_000)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")

    def test_head_request_gets_no_body(self, recording_gateway):
        answer = talk(recording_gateway.url, b"HEAD / HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")

    def test_trailers_are_read_and_ignored(self, recording_gateway):
        body = b"3\r\nabc\r\n0\r\nX-Trailer: x\r\n\r\n"
        head = b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n"
        assert talk(recording_gateway.url, head + body).startswith(b"HTTP/1.1 200")
        assert recording_gateway.requests[0].body == b"abc"

    def test_expect_continue_and_http_1_0_are_served(self, recording_gateway):
        body = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok"
        assert b"100 Continue" in talk(recording_gateway.url, body)
        prompt = json.dumps(PROMPT | {"stream": True}).encode()
        head = b"POST /v1/messages HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n"
        answer = talk(recording_gateway.url, head % len(prompt) + prompt)
        assert b"Transfer-Encoding" not in answer
        assert b"Connection: close" in answer
        assert answer.endswith(b'{"type": "message_stop"}\n\n')


def status(recording: RecordingGateway, head: str, body: bytes = b"") -> int:
    data = f"POST /v1/x HTTP/1.1\r\n{head}\r\n\r\n".encode() + body
    return int(talk(recording.url, data).split(b" ")[1])


class TestSizes:
    """Each at its last value that is served, and at the first that is not."""

    @pytest.mark.parametrize(("more", "answered"), [(0, 200), (1, 413)])
    def test_body_is_limited_to_16_mib(self, recording_gateway, more, answered):
        body = b"x" * (MAX_BODY + more)
        assert requests.post(recording_gateway.url, data=body, timeout=20).status_code == answered
        assert [len(request.body) for request in recording_gateway.requests] == (
            [MAX_BODY] if answered == 200 else []
        )

    @pytest.mark.parametrize(("more", "answered"), [(0, 200), (1, 413)])
    @pytest.mark.parametrize("chunks", [1, 2])
    def test_chunked_body_is_limited_to_16_mib(self, recording_gateway, chunks, more, answered):
        first = b"x" * (MAX_BODY // chunks)
        last = b"x" * (MAX_BODY - len(first) + more)
        sent = iter(filter(None, [first, last]))
        assert requests.post(recording_gateway.url, data=sent, timeout=20).status_code == answered

    @pytest.mark.parametrize(("length", "answered"), [(256, 200), (257, 400)])
    @pytest.mark.parametrize("name", ["X-Cagent-Session-Id", "X-Cagent-Parent-Session-Id"])
    def test_session_id_is_limited_to_256_characters(
        self, recording_gateway, name, length, answered
    ):
        assert status(recording_gateway, f"{name}: {'x' * length}") == answered

    @pytest.mark.parametrize(("digits", "answered"), [(16, 200), (17, 400)])
    def test_content_length_is_limited_to_16_digits(self, recording_gateway, digits, answered):
        assert status(recording_gateway, f"Content-Length: {'2':0>{digits}}", b"ok") == answered

    @pytest.mark.parametrize(("length", "answered"), [(1024, 200), (1025, 400)])
    def test_line_before_a_chunk_is_limited_to_1024_bytes(
        self, recording_gateway, length, answered
    ):
        line = b"2;" + b"x" * (length - 4) + b"\r\n"
        body = line + b"ok\r\n0\r\n\r\n"
        assert status(recording_gateway, "Transfer-Encoding: chunked", body) == answered

    @pytest.mark.parametrize(("number", "answered"), [(100, 200), (101, 431)])
    def test_trailers_are_limited_to_100(self, recording_gateway, number, answered):
        body = b"0\r\n" + b"X: y\r\n" * number + b"\r\n"
        assert status(recording_gateway, "Transfer-Encoding: chunked", body) == answered

    def test_body_that_does_not_come_in_time_gets_a_408(self, recording_gateway, monkeypatch):
        monkeypatch.setattr("cagent_session.testing._server._Handler.timeout", 0.05)
        monkeypatch.setattr("cagent_session.testing._server.LINGER", 0.05)
        address = ("127.0.0.1", urlsplit(recording_gateway.url).port)
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab")
            answer = b""
            while more := connection.recv(65536):
                answer += more
        assert answer.startswith(b"HTTP/1.1 408 ")
