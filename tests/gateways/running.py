"""Gateways that nobody here wrote, run as docs/gateways.md says, on loopback."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import ssl
import string
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import requests
from support.wire import Server, response

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
    """Return the command line of the page that starts like that."""
    lines = from_the_page("sh", start).replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if line.startswith(start)]
    program, *arguments = shlex.split(line)
    return [find_program(program), *arguments]


def find_program(name: str) -> str:
    """Return the path of a program of this environment or of the system.

    Without the program the test is skipped; in CI it fails.
    """
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"]
    executable = shutil.which(name, path=os.pathsep.join(folders))
    if executable is None:
        missing(name)
    return executable


def missing(name: str) -> NoReturn:
    """Skip the test, as it needs ``name``; in CI let it fail."""
    assert "CI" not in os.environ, f"{name} is missing"
    pytest.skip(f"{name} is missing; docs/gateways.md says how to install it")


def probe(option: str, url: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the page's ``cagent-session probe`` with that option against a gateway here."""
    on_paper = "http://127.0.0.1:8080"
    command = command_of_the_page(f"cagent-session probe {on_paper}/v1/models {option}")
    return subprocess.run(
        [argument.replace(on_paper, url) for argument in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


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


def refused(answer: requests.Response, status: int) -> str:
    """Check that this is a refusal in JSON with that status, and return its message."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"].partition(";")[0] == "application/json"
    return answer.json()["error"]["message"]


class Provider(Server):
    """A provider whose ``/v1/stream`` sends its last event when the client has the first one."""

    patience = 10  # seconds that it waits for that

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(
            lambda request: None if request.path == "/v1/stream" else response(), tls=tls
        )
        self.first_arrived = threading.Event()
        self.waited_in_vain = True

    def handle(self, connection):
        super().handle(connection)
        if not self.arrived or self.arrived[-1].path != "/v1/stream":
            return
        chunked = b"chunked" in self.arrived[-1].body
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        head += b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Connection: close\r\n\r\n"
        framed = chunk if chunked else bytes
        connection.sendall(head + framed(b"data: first\n\n"))
        self.waited_in_vain = not self.first_arrived.wait(self.patience)
        connection.sendall(framed(b"data: last\n\n") + framed(b""))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
