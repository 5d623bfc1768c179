"""A models gateway on loopback, for tests and demos. It needs the standard library alone."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from ..headers import PARENT_SESSION_ID, SESSION_ID, check_parent_header, check_session_header
from ._answers import error, given_answer, model_answer
from ._bills import Usage, bills, total, with_descendants
from ._messages import Answer, Given, RecordedRequest
from ._server import Server

__all__ = ["RecordedRequest", "RecordingGateway", "Usage"]

_MINUTE = 60.0


class RecordingGateway:
    """A models gateway on loopback that records every request, bills it and limits it.

    It answers ``/v1/chat/completions`` and ``/v1/messages``, below any prefix, as the providers
    do, streamed or not, and everything else with a small JSON echo. A "token" is a word.

    :param requests_per_minute: how many requests of one session it serves in any 60 seconds;
        further ones get a 429 with ``Retry-After`` in seconds. Without it, there is no limit.
    :param reply: what the model always answers.
    :param respond: called with each request within the limit, for an answer of your own: a
        ``dict`` or ``list`` is sent as JSON, ``(status, dict)`` with that status, and ``None``
        leaves the request to the gateway. The bill takes the tokens from the answer's ``usage``.
    :param port: where to listen on 127.0.0.1; 0 for a free port.
    :param on_call: called with each new entry of the audit log.
    :param session_header: the name of the header that the session is read from.
    :param parent_header: that of its parent; ``None`` to read none.

    ``reply`` and ``respond`` are attributes as well, and can be set at any time. An exception in
    ``respond`` or ``on_call`` is shown on stderr, and the request answered with 500. ::

        with RecordingGateway() as recording:
            gateway = Gateway(recording.url, forward="https://api.openai.com/v1")
            ...
        assert recording.requests[0].session_id == "s1"
        assert recording.sessions["s1"].prompt_tokens == 12
    """

    def __init__(
        self,
        *,
        requests_per_minute: int | None = None,
        reply: str = "Hello from the recording gateway.",
        respond: Callable[[RecordedRequest], Given] | None = None,
        port: int = 0,
        on_call: Callable[[dict[str, Any]], object] | None = None,
        session_header: str = SESSION_ID,
        parent_header: str | None = PARENT_SESSION_ID,
    ) -> None:
        if requests_per_minute is not None and requests_per_minute < 1:
            raise ValueError("requests_per_minute must be at least 1, or None for no limit")
        check_session_header(session_header)
        if parent_header is not None:
            check_parent_header(parent_header, session_header)
        self.reply = reply
        self.respond = respond
        self._headers = session_header, parent_header
        self._limit = requests_per_minute
        self._on_call = on_call
        self._port = port
        self._server: Server | None = None
        self._lock = threading.Lock()
        self._requests: list[RecordedRequest] = []
        self._audit_log: list[dict[str, Any]] = []
        self._served_at: defaultdict[str, deque[float]] = defaultdict(deque)

    def __enter__(self) -> RecordingGateway:
        self._server = Server(self._port, self._answer, *self._headers)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def url(self) -> str:
        """Where it listens, such as ``http://127.0.0.1:41234``."""
        if not self._port:
            raise RuntimeError("a RecordingGateway has a URL once it is entered: with ... as ...")
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests so far, in the order in which they arrived; those over the limit, too.

        What was not proper HTTP, or had a malformed session ID, is not among them.
        """
        with self._lock:
            return self._requests.copy()

    @property
    def sessions(self) -> dict[str, Usage]:
        """Per session ID what has been served: requests, prompt and completion tokens.

        What was answered with an error has not been served.
        """
        return {key: bill for key, bill in bills(self.audit_log).items() if key is not None}

    @property
    def audit_log(self) -> list[dict[str, Any]]:
        """An entry per request, ready for JSON: when, which session, what, and its outcome."""
        with self._lock:
            return [entry.copy() for entry in self._audit_log]

    def family(self, session_id: str) -> Usage:
        """What a session has used together with all its descendants.

        They are known as far as calls of theirs have arrived, by the last parent that came with
        one. A session that never called has used nothing.
        """
        parents = {
            request.session_id: request.parent_session_id
            for request in self.requests
            if request.session_id is not None and request.parent_session_id is not None
        }
        sessions = self.sessions
        return total(sessions.get(member) for member in with_descendants(session_id, parents))

    def clear(self) -> None:
        """Forget all requests so far, with their bills and what the limits have counted."""
        with self._lock:
            # New ones: what is being answered now is to end up in the old.
            self._requests, self._audit_log = [], []
            self._served_at.clear()

    def _answer(self, request: RecordedRequest) -> Answer:
        with self._lock:
            self._requests.append(request)
            audit_log = self._audit_log
            retry_after = self._seconds_to_wait(request.session_id)
        answer = self._unlimited_answer(request) if retry_after is None else _limited(retry_after)
        entry = {
            "time": datetime.now(timezone.utc).isoformat(),
            "session_id": request.session_id,
            "parent_session_id": request.parent_session_id,
            "forward": request.forward,
            "provider": request.provider,
            "model": request.model,
            "method": request.method,
            "path": request.path,
            "status": answer.status,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }
        with self._lock:
            audit_log.append(entry)
            told = entry.copy()
        try:
            if self._on_call is not None:
                self._on_call(told)
        except BaseException as failure:
            answer = _failed("on_call", failure)
            with self._lock:
                entry.update(status=answer.status, prompt_tokens=0, completion_tokens=0)
        return answer

    def _unlimited_answer(self, request: RecordedRequest) -> Answer:
        try:
            given = None if self.respond is None else given_answer(self.respond(request))
        except BaseException as failure:  # pytest.fail() raises no Exception
            return _failed("respond", failure)
        return model_answer(request, self.reply) if given is None else given

    def _seconds_to_wait(self, session_id: str | None) -> int | None:
        if self._limit is None or session_id is None:
            return None
        now = time.monotonic()
        served_at = self._served_at[session_id]
        while served_at and now - served_at[0] >= _MINUTE:
            served_at.popleft()
        if len(served_at) >= self._limit:
            return max(1, math.ceil(_MINUTE - (now - served_at[0])))
        served_at.append(now)
        return None


def _limited(retry_after: int) -> Answer:
    answer = error(429, "rate limit of this session exceeded", "rate_limit_error")
    answer.headers["Retry-After"] = str(retry_after)
    return answer


def _failed(what: str, failure: BaseException) -> Answer:
    with contextlib.suppress(OSError, ValueError):  # a stderr that is closed
        traceback.print_exception(failure, file=sys.stderr)
    reason = "".join(traceback.format_exception_only(failure)).strip()
    return error(500, f"{what} failed: {reason}", "api_error")
