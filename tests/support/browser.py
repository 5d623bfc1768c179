"""A headless Chromium, driven over a pipe with the DevTools protocol.

with browser() as chromium:
    page = chromium.page(width=390, dark=True)
    page.open("http://127.0.0.1:8080/")
    assert page.evaluate("document.title") == "..."
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

OPTIONS = [
    "--headless",
    "--no-sandbox",  # the tests may run as root, in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-first-run",
    # Names other than loopback do not resolve: a page that asks for another host gets an error.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
    "--remote-debugging-pipe",
]


@contextmanager
def browser() -> Iterator[Browser]:
    """Run Chromium with a fresh profile; skip the test without it, or fail where ``CI`` is set."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed: apt-get install chromium")
        pytest.skip("chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = Browser(CHROMIUM, profile)
        try:
            yield chromium
        finally:
            chromium.close()


class Browser:
    """A Chromium that is running."""

    def __init__(self, program: str, profile: str) -> None:
        # Chromium reads commands on its file descriptor 3, and answers on 4.
        commands_out, self._commands = os.pipe()
        self._answers, answers_in = os.pipe()
        # The shell moves the pipes to 3 and 4, whatever numbers they have here.
        moved = f'exec "$@" 3<&{commands_out} 4>&{answers_in}'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "bash", program, *OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=[commands_out, answers_in],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(answers_in)
        self._ids = itertools.count(1)
        self._waiting: dict[int, Queue[dict[str, Any]]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def page(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> Page:
        """Open an empty page of this size, in CSS pixels."""
        target = self.command("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.command("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, attached["sessionId"])
        page.resize(width, height)
        page.prefer("dark" if dark else "light")
        return page

    def command(
        self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """Send a command of the DevTools protocol; gives back its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session
        answer: Queue[dict[str, Any]] = Queue()
        self._waiting[number] = answer
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        try:
            result = answer.get(timeout=60)
        except Empty:
            raise TimeoutError(f"Chromium does not answer {method}") from None
        if "error" in result:
            raise RuntimeError(f"{method}: {result['error']['message']}")
        return result["result"]

    def _read(self) -> None:
        rest = b""
        while part := os.read(self._answers, 1 << 16):
            *messages, rest = (rest + part).split(b"\0")
            for message in map(json.loads, messages):
                if answer := self._waiting.pop(message.get("id"), None):
                    answer.put(message)
        for answer in self._waiting.values():
            answer.put({"error": {"message": "Chromium has ended"}})

    def close(self) -> None:
        os.close(self._commands)  # tells Chromium to end
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=10)
        os.close(self._answers)


class Page:
    """A tab."""

    def __init__(self, chromium: Browser, session: str) -> None:
        self._chromium = chromium
        self._session = session
        self.command("Page.enable")

    def command(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._chromium.command(method, parameters, self._session)

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page this size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """Set the colour scheme that the reader prefers, ``light`` or ``dark``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", {"features": [feature]})

    def open(self, url: str) -> None:
        """Open ``url``, and wait until it is loaded."""
        # A name on the old document tells it from the new one.
        self.evaluate("window.left = true")
        error = self.command("Page.navigate", {"url": url}).get("errorText")
        if error:
            raise RuntimeError(f"{url}: {error}")
        self.wait_for("!window.left && document.readyState == 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, a promise's result if it is one."""
        parameters = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.command("Runtime.evaluate", parameters)
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"]
            raise RuntimeError(thrown.get("exception", {}).get("description", thrown["text"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"!!({expression})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {seconds} s: {expression}")
            time.sleep(0.05)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of what is visible, or of the whole page."""
        parameters: dict[str, Any] = {"format": "png"}
        if whole:
            content = self.command("Page.getLayoutMetrics")["cssContentSize"]
            parameters |= {"captureBeyondViewport": True, "clip": content | {"scale": 1}}
        picture = self.command("Page.captureScreenshot", parameters)["data"]
        path.write_bytes(base64.b64decode(picture))
