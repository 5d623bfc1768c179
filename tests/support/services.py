"""Other people's servers and workers, started for a test and ended after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen, log: Path, seconds: float = 60
) -> None:
    """Wait until ``condition`` holds. Fail with the log if ``process`` ends, or it takes longer."""
    deadline = time.monotonic() + seconds
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


@contextlib.contextmanager
def uvicorn(app: Any, **options: Any) -> Iterator[int]:
    """The port of a uvicorn that serves ``app`` with asyncio's loop and h11, in a thread."""
    from uvicorn import Config, Server

    defaults: dict[str, Any] = {"loop": "asyncio", "http": "h11", "log_level": "critical"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(Config(app, **defaults | options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "uvicorn has not started"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextlib.contextmanager
def waitress(app: Any) -> Iterator[int]:
    """The port of a waitress that serves ``app`` with two threads."""
    from waitress import create_server, wasyncore

    # server.run() cannot be ended from another thread, so its loop is driven here.
    watched: dict[int, Any] = {}
    server = create_server(app, map=watched, host="127.0.0.1", port=0, threads=2)
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            wasyncore.loop(timeout=0.05, map=watched, count=1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        ended.set()
        thread.join(10)
        assert not thread.is_alive()
        server.task_dispatcher.shutdown()
        wasyncore.close_all(watched)
