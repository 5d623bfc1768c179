"""Take the pictures of the recording gateway's page, light and dark.

tox -e pages
"""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import requests
from PIL import Image
from support.browser import browser

from cagent_session import Gateway, no_session, session_scope
from cagent_session.headers import PARENT_SESSION_ID
from cagent_session.testing import RecordingGateway

WIDTH, HEIGHT = 900, 640  # CSS pixels
SCALE = 2
COLORS = 128  # few enough for a small file, enough for smooth letters


def work(recording: RecordingGateway) -> None:
    """Make calls as a support team's agents might."""
    gateway = Gateway(
        recording.url, forward="https://api.openai.com/v1", parent_header=PARENT_SESSION_ID
    )
    http = requests.Session()
    gateway.mount(http)

    def ask(words: int) -> None:
        prompt = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": "word " * words}],
        }
        http.post(gateway.endpoint("v1/chat/completions"), json=prompt)

    with session_scope("report-week-48"):
        ask(2350)
        recording.respond = lambda request: (503, {"error": {"message": "overloaded"}})
        ask(2350)
        recording.respond = None
    with session_scope("ticket-88213"):
        ask(310)
        ask(742)
        with session_scope("ticket-88213/translate"):
            ask(185)
    with no_session():
        ask(96)
        ask(96)
    with session_scope("order-4711"):
        ask(420)
        for tool, words in (("stock", 130), ("weather", 88)):
            with session_scope(f"order-4711/{tool}"):
                ask(words)
        with session_scope("order-4711/research"):
            ask(654)
            with session_scope("order-4711/research/web"):
                ask(1210)
        ask(1088)
    http.close()


def main(folder: Path) -> None:
    with browser() as chromium:
        for scheme in ("light", "dark"):
            path = folder / f"sessions-{scheme}.png"
            page = chromium.page(dark=scheme == "dark")
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": True}
            page.command("Emulation.setDeviceMetricsOverride", size)
            page.command("Emulation.setScrollbarsHidden", {"hidden": True})
            with RecordingGateway(page=True, port=8080) as recording:
                recording.reply = "Your order left the warehouse this morning and arrives tomorrow."
                work(recording)
                page.open(f"{recording.url}/_sessions")
                page.wait_for("document.querySelectorAll('#tree .session').length == 8")
                page.screenshot(path, whole=True)
            save_small(path)
            logging.info("%s: %d bytes", path, path.stat().st_size)


def save_small(path: Path) -> None:
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        few = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]))
