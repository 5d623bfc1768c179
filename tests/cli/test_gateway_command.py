"""``cagent-session gateway``: its lines, its page, its memory, and how it ends."""

from __future__ import annotations

import contextlib
import gc
import io
import re
import signal
import socket
import subprocess
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.commands import command

from cagent_session.__main__ import main
from cagent_session._cli import gateway as gateway_command
from cagent_session.testing import RecordedRequest, RecordingGateway


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run the command; gives its process and its URL, with the lines of its start read."""
    with command("gateway", *arguments) as process:
        url = re.fullmatch(r"listening on (\S+), Ctrl-C ends it\n", read_line(process))[1]
        assert read_line(process) == f"sessions at  {url}/_sessions\n"
        yield process, url


def read_line(process: subprocess.Popen[bytes]) -> str:
    return process.stdout.readline().decode()


def interrupt(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """Press Ctrl-C; gives what the command has still written to stdout and stderr."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    return out.decode(), err.decode()


class TestLines:
    def test_one_line_per_call_until_ctrl_c(self):
        with running("--requests-per-minute", "1") as (process, url):
            headers = {"X-Cagent-Session-Id": "s1", "X-Cagent-Model": "\x1b[2J"}
            statuses = [
                requests.get(f"{url}/x", headers=headers, timeout=5).status_code for _ in range(2)
            ]
            out, err = interrupt(process)
        assert statuses == [200, 429]
        first, second = out.splitlines()
        assert "  200  session=s1  GET /x  forward=-  model=?[2J  tokens=0+0" in first
        assert "  429  session=s1  GET /x" in second
        assert (process.returncode, err) == (0, "")

    def test_a_key_in_the_forward_is_not_shown(self):
        with running() as (process, url):
            forward = "https://me:hunter2@api.example/v1?key=hunter2"
            requests.get(url, headers={"X-Cagent-Forward": forward}, timeout=5)
            calls = requests.get(f"{url}/_sessions/calls", timeout=5).json()
            out, _ = interrupt(process)
        assert "forward=https://api.example/v1  " in out
        assert "hunter2" not in f"{out}{calls}"

    def test_refused_call_has_a_line_with_the_reason(self):
        with running() as (process, url):
            headers = {"X-Cagent-Session-Id": "two words"}
            assert (
                requests.get(f"{url}/x?key=hunter2", headers=headers, timeout=5).status_code == 400
            )
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as twice:
                twice.sendall(b"GET /y HTTP/1.1\r\n" + b"X-Cagent-Session-Id: s1\r\n" * 2 + b"\r\n")
                assert b" 400 " in twice.recv(65536)
            assert requests.post(f"{url}/_sessions", timeout=5).status_code == 405
            out, _ = interrupt(process)
        first, second = out.splitlines()
        assert re.match(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d  400  GET /x  X-Cagent-Session-Id has ' '", first
        )
        assert second.endswith("  400  GET /y  X-Cagent-Session-Id came more than once")

    def test_session_and_parent_are_read_from_the_named_headers(self):
        names = ("--session-header", "X-Session-Id", "--parent-header", "X-Parent")
        with running(*names) as (process, url):
            headers = {"X-Session-Id": "sub", "X-Parent": "main", "X-Cagent-Session-Id": "other"}
            requests.get(url, headers=headers, timeout=5)
            line = read_line(process)
        assert "  session=sub  " in line
        assert line.endswith("  parent=main\n")

    def test_long_values_in_a_line_are_cut(self, capsys):
        with RecordingGateway(on_call=gateway_command._print_call) as recording:
            requests.post(f"{recording.url}/{'x' * 1000}", json={"model": "y" * 1000}, timeout=5)
        assert len(capsys.readouterr().out) < 600

    def test_port_that_is_taken_is_one_line_on_stderr(self, capsys):
        with RecordingGateway() as recording:
            port = recording.url.rpartition(":")[2]
            assert main(["gateway", "--port", port]) == 1
        err = capsys.readouterr().err
        assert err == (
            f"cagent-session: cannot listen on port {port}: Address already in use; choose another "
            "with --port N, or leave --port out\n"
        )

    def test_parent_comes_last_and_control_characters_are_replaced(self, capsys):
        with RecordingGateway(on_call=gateway_command._print_call) as recording:
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
    def test_serves_on_when_the_reader_of_its_lines_goes_away(self, port):
        arguments = []
        if port == "given":
            with socket.create_server(("127.0.0.1", 0)) as taken:
                arguments = ["--port", str(taken.getsockname()[1])]
        with running(*arguments) as (process, url):
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


class TestPage:
    def test_page_shows_the_calls_and_has_no_lines_itself(self):
        with running() as (process, url):
            requests.get(url, headers={"X-Cagent-Session-Id": "s1"}, timeout=5)
            assert "<title>Sessions</title>" in requests.get(f"{url}/_sessions", timeout=5).text
            calls = requests.get(f"{url}/_sessions/calls?session=s1", timeout=5).json()
            out, _ = interrupt(process)
        assert [call["status"] for call in calls] == [200]
        assert len(out.splitlines()) == 1  # the page's own requests have no line

    def test_ctrl_c_ends_the_gateway_while_browsers_watch(self):
        with running() as (process, url):
            events = f"{url}/_sessions/events"
            answers = [requests.get(events, stream=True, timeout=20) for _ in range(3)]
            for answer in answers:
                next(answer.iter_lines())
            start = time.monotonic()
            assert interrupt(process) == ("", "")
            assert time.monotonic() - start < 5
        assert process.returncode == 0
        for answer in answers:
            answer.close()


def test_memory_of_calls_and_sessions_is_bounded():
    """The gateway of the command itself, as it would be after days."""
    recording = gateway_command.ForegroundGateway(
        port=0, requests_per_minute=5, session_header="X-Id", parent_header="X-Parent"
    )
    with recording, contextlib.redirect_stdout(io.StringIO()), requests.Session() as http:
        for number in range(50):
            body = b"x" * 1_000_000
            http.post(recording.url, data=body, headers={"X-Id": f"s{number}"}, timeout=5)
        # All that it refers to, but not the server's threads that are still busy.
        kept = reachable([recording._requests, recording._audit_log, recording._page])
    assert recording._page._total == 50
    assert not [each for each in kept if isinstance(each, RecordedRequest | bytes)]


def reachable(todo: list[object]) -> list[object]:
    found = {id(each): each for each in todo}
    while todo:
        for each in gc.get_referents(todo.pop()):
            if id(each) not in found and not isinstance(each, type | types.ModuleType):
                found[id(each)] = each
                todo.append(each)
    return list(found.values())
