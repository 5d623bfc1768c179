"""Output of the commands that nobody reads, that cannot be written, or that Ctrl-C ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support.commands import command

from cagent_session.__main__ import main

FORWARD = "https://api.openai.com/v1"


@pytest.mark.parametrize("unbuffered", ["", "1"])
class TestOutput:
    """Python looks different when it flushes at the end and when it writes at once."""

    @pytest.mark.parametrize("arguments", [["demo"], ["--help"], ["probe", "--help"]], ids=" ".join)
    def test_reader_that_goes_away_is_no_error(self, arguments, unbuffered):
        with command(*arguments, unbuffered=unbuffered) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(20) in (0, 141)

    @pytest.mark.parametrize("arguments", [["demo"], ["probe"]], ids=" ".join)
    def test_full_disk_is_one_line_and_status_1(self, arguments, unbuffered, recording_gateway):
        if arguments == ["probe"]:
            arguments = ["probe", recording_gateway.url, "--forward", FORWARD]
        with (
            Path("/dev/full").open("wb") as full,
            command(*arguments, stdout=full, unbuffered=unbuffered) as process,
        ):
            _, err = process.communicate(timeout=20)
        assert err == b"cagent-session: cannot write: No space left on device\n"
        assert process.returncode == 1

    def test_full_disk_does_not_matter_where_nothing_is_written(self, unbuffered):
        with (
            Path("/dev/full").open("wb") as full,
            command("nonsense", stdout=full, unbuffered=unbuffered) as process,
        ):
            _, err = process.communicate(timeout=20)
        assert err.splitlines()[-1].startswith(b"cagent-session: error: ")
        assert process.returncode == 2


@pytest.mark.parametrize("arguments", [["demo"], ["probe"]], ids=" ".join)
def test_closed_stdout_is_one_line_and_status_1(arguments, recording_gateway):
    if arguments == ["probe"]:
        arguments = ["probe", recording_gateway.url, "--forward", FORWARD]
    ran = subprocess.run(
        ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-m", "cagent_session", *arguments],
        stderr=subprocess.PIPE,
        timeout=30,
    )
    assert ran.stderr == b"cagent-session: cannot write: stdout is closed\n"
    assert ran.returncode == 1


def test_ctrl_c_leaves_no_traceback(capsys, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(requests.Session, "send", interrupted)
    assert main(["probe", "https://gateway.example", "--forward", FORWARD]) == 130
    assert capsys.readouterr() == ("", "")
