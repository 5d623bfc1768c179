"""``cagent-session probe``: the request that it sends, and its report of the answer."""

from __future__ import annotations

import base64
import gc
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from support.commands import command
from support.wire import Server, redirect, response

from cagent_session.__main__ import main
from cagent_session.testing import RecordingGateway

FORWARD = "https://api.openai.com/v1"
MOVED = ": if the gateway listens there, write that URL"
SERVED = "answered 200 OK"


def probe(*arguments: str) -> int:
    return main(["probe", *arguments])


class TestProbe:
    def test_report_has_the_request_and_the_answer(self, capsys, recording_gateway):
        url = recording_gateway.url + "/p?key=hunter2"
        header = "Authorization: Bearer hunter2"
        status = probe(url, "--forward", FORWARD, "--session-id", "s1", "--header", header)
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        assert f"> GET {recording_gateway.url}/p?key=...\n" in out
        assert "> X-Cagent-Session-Id: s1\n" in out
        assert f"> X-Cagent-Forward: {FORWARD}\n" in out
        assert "> Authorization: ***\n" in out
        assert "< 200 OK\n" in out
        assert '"path": "/p", "query": "key=***"' in out
        assert "hunter2" not in out
        (arrived,) = recording_gateway.requests
        assert arrived.session_id == "s1"
        assert arrived.query == "key=hunter2"
        assert arrived.headers["Authorization"] == "Bearer hunter2"

    def test_session_id_is_made_up_if_none_is_given(self, capsys, recording_gateway):
        assert probe(recording_gateway.url, "--forward", FORWARD) == 0
        assert recording_gateway.requests[0].session_id in capsys.readouterr().out

    def test_error_status_is_status_1(self, capsys):
        with Server(lambda request: response(503)) as server:
            assert probe(server.origin, "--forward", FORWARD) == 1
        assert capsys.readouterr().err == "cagent-session: the gateway answered 503 Status\n"

    @pytest.mark.parametrize("header", ["Authorization: Bearer hunter2", "X-Key: hunter2"])
    def test_refused_connection_is_one_line_and_status_1(self, capsys, header):
        with Server() as server:
            url = server.origin + "/?key=hunter2"
        assert probe(url, "--forward", FORWARD, "--header", header) == 1
        out, err = capsys.readouterr()
        assert err == (
            f"cagent-session: no answer from {server.origin}/?key=...: Connection refused\n"
        )
        assert "hunter2" not in out

    def test_answer_that_is_not_http_is_one_line_and_status_1(self, capsys):
        with Server(lambda request: b"nonsense\r\n\r\n") as server:
            assert probe(server.origin, "--forward", FORWARD) == 1
        err = capsys.readouterr().err
        assert err.endswith(": ConnectionError, BadStatusLine\n")
        assert err.count("\n") == 1

    def test_silent_gateway_times_out(self, capsys, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("cagent_session._cli.probe.TIMEOUT", 0.05)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            assert probe(url, "--forward", FORWARD) == 1
        assert "timed out after 0.05 s" in capsys.readouterr().err

    def test_untrusted_certificate_is_one_line_and_status_1(self, capsys, tls):
        with Server(tls=tls.context) as server:
            assert probe(server.at("localhost"), "--forward", FORWARD) == 1
        err = capsys.readouterr().err
        assert "certificate verify failed" in err
        assert err.count("\n") == 1

    def test_port_without_tls_is_named(self, capsys, recording_gateway):
        url = recording_gateway.url.replace("http://", "https://")
        assert probe(url, "--forward", FORWARD) == 1
        err = capsys.readouterr().err
        assert err.endswith("; does it speak http:// ?\n")
        assert err.count("\n") == 1


class TestGatewaysOfOtherMakes:
    def test_session_header_alone_sends_no_identifier_of_docker_agent(self, capsys):
        with RecordingGateway(session_header="X-Session-Id") as recording:
            arguments = ["--session-header", "X-Session-Id", "--session-id", "s1"]
            assert probe(recording.url, *arguments) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "> X-Session-Id: s1\n" in out
        assert out.endswith(f"stamped with session s1; {SERVED}\n")
        assert recording.requests[0].session_id == "s1"
        names = [name.lower() for name in recording.requests[0].headers]
        assert not [name for name in names if name.startswith("x-cagent-")]

    def test_parent_is_sent_and_shown(self, capsys):
        names = {"session_header": "X-Session-Id", "parent_header": "X-Secret-Parent"}
        with RecordingGateway(**names) as recording:
            arguments = ["--session-header", "X-Session-Id", "--session-id", "sub-agent"]
            arguments += ["--parent-header", "X-Secret-Parent", "--parent-id", "main-agent"]
            assert probe(recording.url, *arguments) == 0
            (request,) = recording.requests
        assert (request.session_id, request.parent_session_id) == ("sub-agent", "main-agent")
        assert "> X-Secret-Parent: main-agent\n" in capsys.readouterr().out

    def test_parent_header_without_a_parent_sends_none(self, capsys, recording_gateway):
        arguments = ["--forward", FORWARD, "--parent-header", "X-Cagent-Parent-Session-Id"]
        assert probe(recording_gateway.url, *arguments) == 0
        assert recording_gateway.requests[0].parent_session_id is None
        out = capsys.readouterr().out
        assert "\n(no X-Cagent-Parent-Session-Id was sent: --parent-id sets it)\nstamped" in out

    def test_forward_and_session_header_go_together(self, capsys):
        with RecordingGateway(session_header="X-Session-Id") as recording:
            arguments = ["--forward", FORWARD, "--session-header", "X-Session-Id"]
            assert probe(recording.url, *arguments, "--session-id", "s1") == 0
        assert recording.requests[0].forward == FORWARD
        assert last_line(capsys) == f"stamped with session s1; {SERVED}"

    def test_session_header_whose_name_sounds_like_a_secret_is_shown(self, capsys):
        with RecordingGateway(session_header="X-Auth-Session") as recording:
            arguments = ["--session-header", "X-Auth-Session", "--session-id", "session-1"]
            assert probe(recording.url, *arguments) == 0
        out = capsys.readouterr().out
        assert "> X-Auth-Session: session-1\n" in out
        assert '"session_id": "session-1"' in out


class TestKeys:
    def test_header_of_an_environment_variable_is_sent_and_masked(
        self, capsys, monkeypatch, recording_gateway
    ):
        monkeypatch.setenv("KEY_FOR_TEST", "Bearer hunter2\n")
        recording_gateway.respond = lambda request: {"saw": request.headers["Authorization"]}
        arguments = ["--forward", FORWARD, "--header-env", "Authorization=KEY_FOR_TEST"]
        assert probe(recording_gateway.url, *arguments) == 0
        assert recording_gateway.requests[0].headers["Authorization"] == "Bearer hunter2"
        out = capsys.readouterr().out
        assert "> Authorization: ***\n" in out
        assert "hunter2" not in out

    @pytest.mark.parametrize(
        ("more", "advice"),
        [
            ([], "pass a key with"),
            (["--header", "X-Other: hunter2"], "pass a key with"),
            (
                ["--header", "authorization: Bearer hunter2"],
                "it refused the Authorization that was given: pass another with",
            ),
        ],
    )
    @pytest.mark.parametrize(("status", "has_hint"), [(401, True), (403, True), (404, False)])
    def test_401_and_403_say_how_to_pass_a_key(self, capsys, status, has_hint, more, advice):
        with Server(lambda request: response(status)) as server:
            assert probe(server.origin, "--forward", FORWARD, *more) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"cagent-session: the gateway answered {status} Status")
        assert err.count("\n") == 1
        assert (f"; {advice} --header-env Authorization=VARIABLE" in err) == has_hint


class TestLongHeaders:
    """The report takes a time that is linear in what was given and in what came back."""

    # With a pass over the text for every word, and a prefix of every length, these took minutes.
    @pytest.mark.parametrize(
        "value",
        [
            "x" * 60_000,
            " ".join(f"word-{number}" for number in range(6000)),
            " ".join(f"{number:06}" for number in range(8000)),
        ],
        ids=["one word", "words with one beginning", "short words"],
    )
    def test_long_headers_are_reported_in_seconds(self, capsys, value):
        def respond(request):
            headers = {f"X-Echo-{number}": value for number in range(20)}
            return response(body=value.encode(), headers=headers)

        with Server(respond) as server:
            start = time.process_time()
            assert probe(server.origin, "--forward", FORWARD, "--header", f"X-Any: {value}") == 0
            seconds = time.process_time() - start
        out = capsys.readouterr().out
        assert value[-10:] not in out
        assert seconds < 4


def last_line(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


class TestLastLine:
    def test_last_line_says_stamped_and_answered(self, capsys, recording_gateway):
        arguments = ["--forward", FORWARD, "--session-id", "s1"]
        assert probe(recording_gateway.url, *arguments) == 0
        assert last_line(capsys) == f"stamped with session s1; {SERVED}"

    def test_last_line_if_a_given_session_header_is_replaced(self, capsys, recording_gateway):
        arguments = ["--forward", FORWARD, "--session-id", "s1"]
        header = "x-cagent-session-id: another"
        assert probe(recording_gateway.url, *arguments, "--header", header) == 0
        out = capsys.readouterr().out
        assert re.search("^> x-cagent-session-id: s1$", out, re.MULTILINE | re.IGNORECASE)
        assert (
            "\n(the X-Cagent-Session-Id that was given was not sent: --session-id sets it)\n" in out
        )
        assert out.splitlines()[-1] == f"stamped with session s1; {SERVED}"

    def test_session_given_as_a_header_too_is_not_masked(self, capsys, recording_gateway):
        arguments = ["--forward", FORWARD, "--session-id", "session-1"]
        header = "X-Cagent-Session-Id: session-1"
        assert probe(recording_gateway.url, *arguments, "--header", header) == 0
        *_, body, last = capsys.readouterr().out.splitlines()  # no line between the two
        assert '"session_id": "session-1"' in body
        assert last == f"stamped with session session-1; {SERVED}"

    @pytest.mark.parametrize("more", [[], ["--header", "X-Cagent-Session-Id: s1"]])
    def test_last_line_if_the_request_opted_out(self, capsys, recording_gateway, more):
        arguments = ["--forward", FORWARD, "--session-id", "s1", "--header", "X-Cagent-Forward:"]
        assert probe(recording_gateway.url, *arguments, *more) == 0
        out = capsys.readouterr().out
        assert "> X-Cagent-Forward: \n" in out
        assert out.splitlines()[-1] == (
            "not stamped, as an empty X-Cagent-Forward opts out of it; answered 200 OK"
        )

    @pytest.mark.parametrize(
        ("location", "target", "advice"),
        [
            ("https://login.example/in?code=hunter2#hunter3", "https://login.example/in", MOVED),
            ("https://u:hunter2@login.example/in", "https://login.example/in", MOVED),
            ("../in?code=1", "{origin}/in", ""),
            ("http://[", "a URL that is not clear", ""),
        ],
    )
    def test_redirect_is_reported_and_not_followed(self, capsys, location, target, advice):
        with Server(lambda request: redirect(302, location)) as server:
            arguments = ["--forward", FORWARD, "--session-id", "s1"]
            assert probe(f"{server.origin}/a/b", *arguments) == 0
        out = capsys.readouterr().out
        target = target.format(origin=server.origin)
        assert out.splitlines()[-1] == (
            f"stamped with session s1; answered 302 Status, which leads to {target} "
            f"and was not followed{advice}"
        )
        assert "hunter" not in out
        assert len(server.arrived) == 1

    def test_redirect_to_tls_is_reported_once(self):
        with Server() as server:
            server.respond = lambda request: redirect(308, server.origin.replace("http:", "https:"))
            with command("probe", server.origin, "--forward", FORWARD) as process:
                out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, b"")
        assert out.decode().endswith(f"{MOVED}\n")

    @pytest.mark.parametrize(
        ("status", "leads"), [(201, False), (300, True), (399, True), (400, False)]
    )
    def test_location_of_other_answers_is_not_a_redirect(self, capsys, status, leads):
        with Server(lambda request: redirect(status, "https://g.example/")) as server:
            assert probe(server.origin, "--forward", FORWARD) == int(status >= 400)
        assert ("which leads to https://g.example/" in last_line(capsys)) == leads

    def test_last_line_of_an_error_status(self, capsys):
        with Server(lambda request: response(404)) as server:
            assert probe(server.origin, "--forward", FORWARD, "--session-id", "s1") == 1
        assert last_line(capsys) == "stamped with session s1; answered 404 Status"


class Endless(Server):
    """Answers with a head, and then more and more, for as long as anybody listens."""

    def __init__(self, head: bytes, more: bytes, pause: float) -> None:
        super().__init__()
        self._head, self._more, self._pause = head, more, pause
        self.sent = 0

    def handle(self, connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(self._head)
        while self.sent < 300_000_000:
            connection.sendall(self._more)
            self.sent += len(self._more)
            time.sleep(self._pause)


class TestBody:
    @pytest.mark.parametrize("size", [8192, 8193])
    def test_body_is_cut_after_8192_bytes(self, capsys, size):
        with Server(lambda request: response(body=b"x" * size)) as server:
            assert probe(server.origin, "--forward", FORWARD) == 0
        out = capsys.readouterr().out
        assert ("\n" + "x" * 8192 + "\n") in out
        assert ("(cut off after 8192 bytes)" in out) == (size > 8192)

    def test_body_keeps_its_lines(self, capsys):
        with Server(lambda request: response(body=b"a\r\nb\nc\rd")) as server:
            assert probe(server.origin, "--forward", FORWARD) == 0
        assert "\na\nb\nc?d\n" in capsys.readouterr().out

    @pytest.mark.parametrize("status", ["200 OK", "302 Found\r\nLocation: /"])
    def test_rest_of_a_huge_body_is_not_read(self, capsys, status):
        head = f"HTTP/1.1 {status}\r\nContent-Length: 300000000\r\n\r\n".encode()
        with Endless(head, b"x" * 100_000, 0) as server:
            assert probe(server.origin, "--forward", FORWARD) == 0
        assert server.sent < 30_000_000
        assert "answered " + status[:3] in last_line(capsys)

    @pytest.mark.parametrize("encoding", ["no-such", "idna", "hex", "utf-16", "undefined"])
    def test_body_in_an_unknown_encoding_is_shown(self, capsys, encoding):
        def respond(request):
            return response(body=b"odd", headers={"Content-Type": f"text/x; charset={encoding}"})

        with Server(respond) as server:
            assert probe(server.origin, "--forward", FORWARD) == 0

    def test_password_of_a_proxy_is_masked_where_it_comes_back(self, capsys, monkeypatch):
        basic = base64.b64encode(b"user:proxy-password").decode()
        with Server(lambda request: response(body=request.raw + b" proxy-password")) as server:
            proxy = server.origin.replace("//", "//user:proxy-password@")
            monkeypatch.setenv("http_proxy", proxy)
            assert probe("http://gateway.example", "--forward", FORWARD) == 0
        out = capsys.readouterr().out
        assert "Proxy-Authorization: Basic ***" in out
        assert basic not in out
        assert "password" not in out

    # urllib3 1.26 leaves the connection open, in a reference cycle.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_password_that_a_proxy_repeats_in_its_refusal_is_masked(self, capsys, monkeypatch):
        refusal = b"HTTP/1.1 407 who is user:proxy-password?\r\nContent-Length: 0\r\n\r\n"
        with Server(lambda request: refusal) as server:
            proxy = server.origin.replace("//", "//user:proxy-password@")
            monkeypatch.setenv("https_proxy", proxy)
            assert probe("https://gateway.example", "--forward", FORWARD) == 1
        assert "by the proxy: Tunnel connection failed: 407 who is ***?" in capsys.readouterr().err
        gc.collect()

    @pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
    @pytest.mark.parametrize("password", ["xyzzy-4711", "pässwörd-größe"])
    def test_password_that_the_gateway_decodes_is_masked(
        self, capsys, monkeypatch, encoding: str, password: str
    ):
        basic = base64.b64encode(f"user:{password}".encode(encoding)).decode()
        monkeypatch.setenv("KEY_FOR_TEST", f"Basic {basic}")
        with Server(
            lambda request: response(body=f"wrong password: {password}".encode())
        ) as server:
            arguments = ["--forward", FORWARD, "--header-env", "Authorization=KEY_FOR_TEST"]
            assert probe(server.origin, *arguments) == 0
        assert "wrong password: ***" in capsys.readouterr().out

    def test_body_that_cannot_be_decompressed_is_status_1(self, capsys):
        def respond(request):
            return response(body=b"odd", headers={"Content-Encoding": "gzip"})

        with Server(respond) as server:
            assert probe(server.origin, "--forward", FORWARD) == 1
        err = capsys.readouterr().err
        assert err == "cagent-session: the answer is not complete: ContentDecodingError, error\n"

    def test_body_that_breaks_off_is_status_1(self, capsys):
        broken = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"

        class Breaking(Server):
            def handle(self, connection):
                connection.recv(65536)
                connection.sendall(broken)

        with Breaking() as server:
            assert probe(server.origin, "--forward", FORWARD) == 1
        out, err = capsys.readouterr()
        assert "\n12345\n" in out
        assert "answered 200 OK, but not completely: " in out.splitlines()[-1]
        assert err.startswith("cagent-session: the answer is not complete: ")

    def test_body_that_drips_times_out(self, capsys, monkeypatch):
        monkeypatch.setattr("cagent_session._cli.probe.TIMEOUT", 0.5)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
        with Endless(head, b"x", 0.02) as server:
            assert probe(server.origin, "--forward", FORWARD) == 1
        out, err = capsys.readouterr()
        assert "\nxxx" in out
        assert out.endswith("answered 200 OK, but not completely: timed out after 0.5 s\n")
        assert err == "cagent-session: the answer is not complete: timed out after 0.5 s\n"


class TestNoAnswer:
    def test_headers_that_drip_time_out(self, capsys, monkeypatch):
        monkeypatch.setattr("cagent_session._cli.probe.TIMEOUT", 0.5)
        with Endless(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.02) as server:
            assert probe(server.origin, "--forward", FORWARD) == 1
        assert "timed out after 0.5 s" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("variable", "value", "says"),
        [
            ("REQUESTS_CA_BUNDLE", "/nonexistent", "invalid path: /nonexistent"),
            ("HTTPS_PROXY", "http://127.0.0.1:9999999", "no answer from https://gateway.example: "),
            ("HTTPS_PROXY", "http://u:pw@127.0.0.1:9", "example: by the proxy: Connection refused"),
            ("HTTPS_PROXY", "nonsense://u:pw@proxy.example", "ProxySchemeUnknown"),
        ],
    )
    def test_wrong_environment_variables_are_one_line_and_status_1(
        self, capsys, monkeypatch, variable, value, says
    ):
        monkeypatch.setenv(variable, value)
        assert probe("https://gateway.example", "--forward", FORWARD) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert says in err
        assert "pw" not in err
        assert err.count("\n") == 1

    def test_ctrl_c_ends_a_probe_that_waits(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            command = [sys.executable, "-m", "cagent_session", "probe", url, "--forward", FORWARD]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                connection, _ = silent.accept()
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=10) == (b"", b"")
                connection.close()
        assert process.returncode == 130
