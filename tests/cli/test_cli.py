"""The command line: what a newcomer sees first, and every way to hold it wrong."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from cagent_session import __version__
from cagent_session.__main__ import main
from cagent_session._cli import gateway as _foreground
from cagent_session.testing import RecordingGateway

FORWARD = "https://api.openai.com/v1"


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
            *(
                (
                    ["probe", "https://g.example", "--forward", FORWARD, "--header", header],
                    "argument --header: a header must be given",
                )
                for header in ("\xe9: b", "x: \u20ac", "x y: 1", "x: a\x7f", "x: \udc80")
            ),
            *(
                (
                    ["probe", "https://g.example", "--forward", FORWARD, *more],
                    f"unrecognized arguments: {shown}",
                )
                for more, shown in (
                    (["-H", "Authorization: Bearer hunter2"], "-H ..."),
                    (["-HAuthorization: Bearer hunter2"], "-H"),
                    (["--key=hunter2"], "--key"),
                    (["--he=A: hunter2"], "--he"),
                    (["https://g.example/?key=hunter2"], "..."),
                    (["two\nlines of hunter2"], "..."),
                )
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

    def test_a_parent_is_shown(self, capsys):
        with RecordingGateway(on_call=_foreground._print_call) as recording:
            headers = {"X-Cagent-Session-Id": "sub", "X-Cagent-Parent-Session-Id": "main"}
            requests.get(recording.url, headers=headers, timeout=5)
            requests.post(recording.url, json={"model": "two\nlines"}, timeout=5)
            recording.reply = "No."
            prompt = {"messages": ["one two"]}
            requests.post(f"{recording.url}/v1/messages", json=prompt, timeout=5)
        first, second, third = capsys.readouterr().out.splitlines()
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d  200  ", first)
        assert third.endswith("  tokens=2+1")
        assert first.endswith("session=sub  GET /  forward=-  model=-  tokens=0+0  parent=main")
        assert second.endswith("  model=two?lines  tokens=0+0")

    @pytest.mark.parametrize("port", ["free", "given"])
    def test_serves_on_when_nobody_reads_its_lines(self, port):
        arguments = []
        if port == "given":
            with socket.create_server(("127.0.0.1", 0)) as taken:
                arguments = ["--port", str(taken.getsockname()[1])]
        with command("gateway", *arguments) as process:
            url = re.search(r"http://\S+(?=,)", process.stdout.readline().decode())[0]
            process.stdout.close()
            for _ in range(5):
                assert requests.get(url, timeout=5).status_code == 200
            process.send_signal(signal.SIGINT)
            assert process.stderr.read() == b""
            assert process.wait(10) == 0

    def test_serves_on_when_its_lines_cannot_be_written(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with (
            Path("/dev/full").open("wb") as full,
            command("gateway", "--port", str(port), stdout=full) as process,
        ):
            answers = []
            end = time.monotonic() + 20
            while not answers and time.monotonic() < end:
                with contextlib.suppress(requests.ConnectionError):
                    answers.append(requests.get(url, timeout=5).status_code)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        assert answers == [200]
        assert b"Traceback" not in err


@contextlib.contextmanager
def command(*arguments: str, stdout=subprocess.PIPE, unbuffered: str = ""):
    with subprocess.Popen(
        [sys.executable, "-m", "cagent_session", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("unbuffered", ["", "1"])
class TestOutput:
    """Python looks different when it flushes at the end and when it writes at once."""

    @pytest.mark.parametrize("arguments", [["demo"], ["--help"], ["probe", "--help"]], ids=" ".join)
    def test_that_nobody_reads(self, arguments, unbuffered):
        with command(*arguments, unbuffered=unbuffered) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(20) in (0, 141)

    @pytest.mark.parametrize("arguments", [["demo"], ["probe"]], ids=" ".join)
    def test_that_cannot_be_written(self, arguments, unbuffered, recording_gateway):
        if arguments == ["probe"]:
            arguments = ["probe", recording_gateway.url, "--forward", FORWARD]
        with (
            Path("/dev/full").open("wb") as full,
            command(*arguments, stdout=full, unbuffered=unbuffered) as process,
        ):
            _, err = process.communicate(timeout=20)
        assert err == b"cagent-session: cannot write: No space left on device\n"
        assert process.returncode == 1

    def test_that_is_not_needed(self, unbuffered):
        with (
            Path("/dev/full").open("wb") as full,
            command("nonsense", stdout=full, unbuffered=unbuffered) as process,
        ):
            _, err = process.communicate(timeout=20)
        assert err.splitlines()[-1].startswith(b"cagent-session: error: ")
        assert process.returncode == 2


def test_ctrl_c_is_no_traceback(capsys, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(requests.Session, "send", interrupted)
    assert main(["probe", "https://gateway.example", "--forward", FORWARD]) == 130
    assert capsys.readouterr() == ("", "")


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"cagent-session {__version__}\n"


def test_help_names_the_pages(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    root = Path(__file__).parents[2]
    named = re.findall(r"\S+\.md", capsys.readouterr().out)
    pages = {f"docs/{page.name}" for page in (root / "docs").glob("*.md")}
    # These two make the README and the changelog pages of the site.
    pages -= {"docs/index.md", "docs/changelog.md"}
    assert sorted(named) == sorted({"README.md", *pages})
