"""The page of the recording gateway: the sessions of its last calls, live in a browser."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import ipaddress
import json
import re
import threading
from collections import deque
from collections.abc import Generator
from functools import cache
from typing import Any
from urllib.parse import parse_qs

from ._answers import error, json_answer
from ._bills import forward_of, is_served
from ._messages import Answer

PATH = "/_sessions"
KEPT = 10_000  # calls

_SHOWN = 200  # calls of one session; characters of a value in a call
_HEARTBEAT = 10.0  # seconds; finds browsers that went away
_PAUSE = 0.1  # seconds between two messages to a browser, however many calls arrive

_SHOWN_OF_A_CALL = ("time", "method", "path", "status", "model", "provider")
_PROTECTED = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_host = re.compile(r"(\[::1\]|[^:\[\]]+)(?::[0-9]{0,5})?").fullmatch


class _Watcher:
    """A browser that shows the page, and the sessions that changed since its last message."""

    def __init__(self) -> None:
        self.needs_all = True
        self.changed = set[str | None]()

    @property
    def has_news(self) -> bool:
        return self.needs_all or bool(self.changed)


class Page:
    """Keep the last calls, their sums per session, and tell the browsers that watch.

    :param session_header: the name of the header that the page tells its reader to send.
    """

    def __init__(self, session_header: str) -> None:
        self._session_header = session_header
        self._news = threading.Condition()
        self._is_closed = False
        self._watchers = set[_Watcher]()
        self._forget()

    def _forget(self) -> None:
        self._calls = deque[dict[str, Any]]()
        self._sessions = dict[str | None, dict[str, Any]]()
        self._total = 0

    def open(self) -> None:
        """Let browsers watch."""
        self._is_closed = False

    def close(self) -> None:
        """End the streams of all browsers, whose threads would keep the server from closing."""
        with self._news:
            self._is_closed = True
            self._news.notify_all()

    def clear(self) -> None:
        """Forget all calls."""
        with self._news:
            self._forget()
            for watcher in self._watchers:
                watcher.needs_all = True
            self._news.notify_all()

    def add(self, entry: dict[str, Any]) -> None:
        """Show a call.

        :param entry: the call as the audit log has it.
        """
        call = _call(entry)
        session_id: str | None = entry["session_id"]
        with self._news:
            self._total += 1
            self._calls.append(call)
            changed = {session_id}
            session = self._count(call, 1)
            session |= {"last": call["time"], "status": call["status"]}
            session["parent"] = entry["parent_session_id"] or session["parent"]
            if len(self._calls) > KEPT:
                oldest = self._calls.popleft()
                changed.add(oldest["session_id"])
                if self._count(oldest, -1)["calls"] == 0:
                    del self._sessions[oldest["session_id"]]
            for watcher in self._watchers:
                watcher.changed |= changed
            self._news.notify_all()

    def _count(self, call: dict[str, Any], sign: int) -> dict[str, Any]:
        session = self._sessions.setdefault(
            call["session_id"],
            {"parent": None, "first": self._total, "calls": 0, "errors": 0, "in": 0, "out": 0},
        )
        session["calls"] += sign
        session["errors"] += sign * call["is_error"]
        session["in"] += sign * call["in"]
        session["out"] += sign * call["out"]
        return session

    def answer(self, path: str, query: str, host: str | None) -> Answer:
        """Answer a GET of the page, or of what it loads.

        :param host: the request's ``Host``. Another name than this machine's own may be a page
            on the internet that made its own name lead here (DNS rebinding), and is refused.
        """
        if host is None or not _is_loopback(host):
            message = "this page is served to names of this machine only, such as 127.0.0.1"
            return error(403, message, "forbidden")
        if path in (PATH, f"{PATH}/"):
            headers = {"Content-Type": "text/html; charset=utf-8"}
            headers["Content-Security-Policy"] = _policy()
            return Answer(200, headers | _PROTECTED, [_html()])
        if path == f"{PATH}/calls":
            answer = json_answer(200, self._calls_of(query))
            answer.headers |= _PROTECTED
            return answer
        if path == f"{PATH}/events":
            headers = {"Content-Type": "text/event-stream"}
            return Answer(200, headers | _PROTECTED, self._messages(), streamed=True)
        return error(404, f"there is no such page; the sessions are at {PATH}", "not_found")

    def _calls_of(self, query: str) -> list[dict[str, Any]]:
        """Return the newest calls of one session, or of none if the query names no session."""
        session_id = parse_qs(query, keep_blank_values=True).get("session", [None])[0]
        with self._news:
            calls = [call for call in self._calls if call["session_id"] == session_id]
        return calls[: -_SHOWN - 1 : -1]

    def _messages(self) -> Generator[bytes, None, None]:
        watcher = _Watcher()
        with self._news:
            self._watchers.add(watcher)
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._is_closed or watcher.has_news, _HEARTBEAT)
                    if self._is_closed:
                        return
                    message = self._message(watcher)
                yield message
                with self._news:
                    self._news.wait_for(lambda: self._is_closed, _PAUSE)
        finally:
            with self._news:
                self._watchers.discard(watcher)

    def _message(self, watcher: _Watcher) -> bytes:
        if not watcher.has_news:
            return b": still here\n\n"
        keys = list(self._sessions) if watcher.needs_all else watcher.changed
        state = {
            "all": watcher.needs_all,
            "total": self._total,
            "kept": len(self._calls),
            "session_header": self._session_header,
            "sessions": [[key, self._sessions.get(key)] for key in keys],
        }
        watcher.needs_all, watcher.changed = False, set()
        return f"data: {json.dumps(state)}\n\n".encode()


def _call(entry: dict[str, Any]) -> dict[str, Any]:
    """Return what the page keeps of a call; long values are cut, so that memory is bounded."""
    served = is_served(entry)
    return {
        **{key: _cut(entry[key]) for key in _SHOWN_OF_A_CALL},
        "forward": _cut(forward_of(entry)),
        "session_id": entry["session_id"],
        "is_error": not served,
        "in": entry["prompt_tokens"] if served else 0,
        "out": entry["completion_tokens"] if served else 0,
    }


def _cut(value: Any) -> Any:
    return f"{value[:_SHOWN]}…" if isinstance(value, str) and len(value) > _SHOWN else value


def _is_loopback(host: str) -> bool:
    name = _host(host)
    if name is None:
        return False
    if name[1].lower() in ("localhost", "[::1]"):
        return True
    try:
        return ipaddress.IPv4Address(name[1]).is_loopback
    except ValueError:
        return False


@cache
def _html() -> bytes:
    # Not by __file__: the package may be in a zip.
    return importlib.resources.files(__package__).joinpath("page.html").read_bytes()


@cache
def _policy() -> str:
    """Allow the page its own script and style, by their hashes, and requests to this server."""
    hashes = {
        tag: base64.b64encode(hashlib.sha256(text).digest()).decode()
        for tag, text in re.findall(rb"<(script|style)>(.*?)</", _html(), re.DOTALL)
    }
    return (
        f"default-src 'none'; connect-src 'self'; script-src 'sha256-{hashes[b'script']}'; "
        f"style-src 'sha256-{hashes[b'style']}'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
