"""Other people's servers and workers, started for a test and ended after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest


def wait_until(condition: Callable[[], object], process: subprocess.Popen, log: Path) -> None:
    """Until ``condition`` holds, as long as ``process`` lives; else what it has logged."""
    deadline = time.monotonic() + 60
    while not condition():
        said = log.read_text("utf-8", "replace") if log.exists() else "nothing"
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, **options: object) -> Iterator[subprocess.Popen]:
    """A process, with all that it says in ``log``."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The URL of a Redis of our own, without persistence."""
    executable = shutil.which("redis-server")
    if executable is None:
        assert "CI" not in os.environ, "redis-server is missing"
        pytest.skip("redis-server is missing; on Debian: apt-get install redis-server")
    port = free_port()
    command = [executable, "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    with running(command, folder / "redis.log") as process:
        wait_until(lambda: answers(port), process, folder / "redis.log")
        yield f"redis://127.0.0.1:{port}/0"
