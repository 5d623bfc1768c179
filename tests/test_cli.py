"""The command line: what a newcomer sees first, and every way to hold it wrong."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import pytest
import requests
from support.wire import Server, response

from cagent_session import __version__
from cagent_session.__main__ import main
from cagent_session.testing import RecordingGateway

FORWARD = "https://api.openai.com/v1"


def probe(*arguments: str) -> int:
    return main(["probe", *arguments])


class TestProbe:
    def test_shows_what_was_sent_and_what_came_back(self, capsys, recording_gateway):
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

    def test_secrets_that_come_back_are_masked(self, capsys):
        def respond(request):
            return response(body=b"you said hunter2 \x1b[2J", headers={"X-You-Said": "hunter2"})

        with Server(respond) as server:
            assert probe(server.origin, "--forward", FORWARD, "--header", "X-Any: hunter2") == 0
        out = capsys.readouterr().out
        assert "hunter2" not in out
        assert "\x1b" not in out
        assert "< X-You-Said: ***\n" in out

    def test_a_short_value_is_masked_without_spoiling_the_rest(self, capsys, recording_gateway):
        assert probe(recording_gateway.url, "--forward", FORWARD, "--header", "X-A: 0") == 0
        out = capsys.readouterr().out
        assert "> X-A: ***\n" in out
        assert "127.0.0.1" in out

    def test_without_a_session_id_it_makes_one(self, capsys, recording_gateway):
        assert probe(recording_gateway.url, "--forward", FORWARD) == 0
        assert recording_gateway.requests[0].session_id in capsys.readouterr().out

    def test_an_error_status(self, capsys):
        with Server(lambda request: response(503)) as server:
            assert probe(server.origin, "--forward", FORWARD) == 1
        assert capsys.readouterr().err == "cagent-session: the gateway answered 503 Status\n"

    @pytest.mark.parametrize("header", ["Authorization: Bearer hunter2", "X-Key: hunter2"])
    def test_no_answer(self, capsys, header):
        with Server() as server:
            url = server.origin + "/?key=hunter2"
        assert probe(url, "--forward", FORWARD, "--header", header) == 1
        out, err = capsys.readouterr()
        assert err == (
            f"cagent-session: no answer from {server.origin}/?key=...: Connection refused\n"
        )
        assert "hunter2" not in out

    def test_an_answer_that_is_none(self, capsys):
        with Server(lambda request: b"nonsense\r\n\r\n") as server:
            assert probe(server.origin, "--forward", FORWARD) == 1
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_time_out(self, capsys, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("cagent_session.__main__.TIMEOUT", 0.05)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            assert probe(url, "--forward", FORWARD) == 1
        assert "timed out after 0.05 s" in capsys.readouterr().err

    def test_tls_that_nobody_vouches_for(self, capsys, tls):
        with Server(tls=tls.context) as server:
            assert probe(server.at("localhost"), "--forward", FORWARD) == 1
        err = capsys.readouterr().err
        assert "certificate verify failed" in err
        assert err.count("\n") == 1


class TestBadArguments:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "required: command"),
            (["nonsense"], "invalid choice: 'nonsense'"),
            (["demo", "--nonsense"], "unrecognized arguments: --nonsense"),
            (["gateway", "--port", "x"], "argument --port: not a port from 0 to 65535: 'x'"),
            (["gateway", "--port", "65536"], "not a port from 0 to 65535"),
            (["gateway", "--requests-per-minute", "0"], "not a whole number from 1 on: '0'"),
            (["gateway", "--requests-per-minute", "1.5"], "not a whole number from 1 on"),
            (["probe"], "required: URL, --forward"),
            (["probe", "https://g.example"], "required: --forward"),
            (["probe", "g.example", "--forward", FORWARD], "gateway URL is not absolute"),
            (["probe", "https://g.example", "--forward", "x"], "forward URL is not absolute"),
            (
                ["probe", "https://u:hunter2@g.example", "--forward", FORWARD],
                "contains credentials",
            ),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--session-id", "a b"],
                "argument --session-id: session ID has ' ' at position 1",
            ),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--header", "hunter2"],
                "argument --header: a header must be given as 'Name: value'",
            ),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--header", ": hunter2"],
                "argument --header: a header must be given",
            ),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--header", "A: hun\nter2"],
                "argument --header: a header must be given",
            ),
        ],
    )
    def test_are_one_line_and_status_2(self, capsys, arguments, says):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        last = err.splitlines()[-1]
        assert out == ""
        assert err.startswith("usage: cagent-session")
        assert last.startswith("cagent-session")
        assert says in last
        assert "ter2" not in err


class TestGateway:
    def test_runs_until_ctrl_c(self):
        command = [sys.executable, "-m", "cagent_session", "gateway", "--requests-per-minute", "1"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        ) as process:
            url = re.search(r"http://\S+(?=,)", process.stdout.readline())[0]
            headers = {"X-Cagent-Session-Id": "s1", "X-Cagent-Model": "\x1b[2J"}
            statuses = [
                requests.get(f"{url}/x", headers=headers, timeout=5).status_code for _ in range(2)
            ]
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        assert statuses == [200, 429]
        first, second = out.splitlines()
        assert "  200  session=s1  GET /x  forward=-  model=?[2J  tokens=0+0" in first
        assert "  429  session=s1  GET /x" in second
        assert (process.returncode, err) == (0, "")

    def test_a_port_that_is_taken(self, capsys):
        with RecordingGateway() as recording:
            port = recording.url.rpartition(":")[2]
            assert main(["gateway", "--port", port]) == 1
        err = capsys.readouterr().err
        assert err == f"cagent-session: cannot listen on port {port}: Address already in use\n"


def test_ctrl_c_is_no_traceback(capsys, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(requests.Session, "send", interrupted)
    assert probe("https://gateway.example", "--forward", FORWARD) == 130
    assert capsys.readouterr() == ("", "")


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"cagent-session {__version__}\n"
