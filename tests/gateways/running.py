"""Gateways that nobody here wrote, run as docs/gateways.md says, on loopback."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import string
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from cagent_session import Gateway

UUIDS = [str(uuid.uuid4()) for _ in range(12)]
# Every visible character that is no letter or digit, at the greatest length, turned 12 times.
ODD = [8 * (string.punctuation[turn:] + string.punctuation[:turn]) for turn in range(12)]

PAGE = Path(__file__).parent.parent.parent / "docs" / "gateways.md"


def from_the_page(language: str, containing: str) -> str:
    """The one block of the page in that language with that text in it."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if containing in block]
    return block


def gateway_of_the_page(address: str, url: str) -> Gateway:
    """The ``gateway`` that a snippet of the page makes for ``address``, listening at ``url``."""
    namespace: dict = {"Gateway": Gateway}
    exec(from_the_page("python", address).replace(address, url), namespace)
    gateway = namespace["gateway"]
    assert isinstance(gateway, Gateway)
    return gateway


def command_of_the_page(start: str) -> list[str]:
    """The command line of the page that starts like that, with a program of this environment."""
    lines = from_the_page("sh", start).replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if line.startswith(start)]
    program, *arguments = shlex.split(line)
    return [str(Path(sys.executable).parent / program), *arguments]


def system_program(name: str) -> str:
    """A server that Debian packages; without it the test is skipped, in CI it fails."""
    executable = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if executable is None:
        assert "CI" not in os.environ, f"{name} is missing"
        pytest.skip(f"{name} is missing; on Debian: apt-get install {name}")
    return executable


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def running(
    command: list[str],
    ready: Callable[[], object],
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen]:
    """The program, from when ``ready`` is true until the block ends; its output if that fails."""
    log = folder / f"output-{free_port()}.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            wait_until(ready, 120, alive=lambda: process.poll() is None)
            yield process
        except BaseException:
            print(log.read_text(encoding="utf-8", errors="replace")[-10_000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until(
    true: Callable[[], object], seconds: float = 30, alive: Callable[[], bool] = lambda: True
) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert alive(), "it has ended"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def answers(url: str, status: int | None = None) -> bool:
    """Whether somebody answers there, or answers with that status."""
    try:
        answer = requests.get(url, timeout=5)
    except requests.RequestException:
        return False
    return status is None or answer.status_code == status
