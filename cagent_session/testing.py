"""A models gateway on loopback, for tests and demos. It needs the standard library alone."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from . import _testing_models as models
from ._testing_http import RecordedRequest, Server

__all__ = ["RecordedRequest", "RecordingGateway", "Usage"]

_MINUTE = 60.0


class Usage(dict[str, int]):
    """What one session has used, ready for JSON; its keys are its attributes, too."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def __getattr__(self, name: str) -> int:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class RecordingGateway:
    """A models gateway on loopback that records every request, bills it and limits it.

    It answers ``/v1/chat/completions`` and ``/v1/messages``, below any prefix, as the providers
    do, streamed or not, and everything else with a small JSON echo. A "token" is a word.

    :param requests_per_minute: how many requests of one session it serves in any 60 seconds;
        further ones get a 429 with ``Retry-After`` in seconds. Without it, there is no limit.
    :param reply: what the model always answers.
    :param port: where to listen on 127.0.0.1; 0 for a free port.
    :param on_call: called with each new entry of the audit log.

    ::

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
        port: int = 0,
        on_call: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        if requests_per_minute is not None and requests_per_minute < 1:
            raise ValueError("requests_per_minute must be at least 1, or None for no limit")
        self.reply = reply
        self._limit = requests_per_minute
        self._on_call = on_call
        self._port = port
        self._server: Server | None = None
        self._lock = threading.Lock()
        self._requests: list[RecordedRequest] = []
        self._audit_log: list[dict[str, Any]] = []
        self._sessions: dict[str, Usage] = {}
        self._served_at: defaultdict[str, deque[float]] = defaultdict(deque)

    def __enter__(self) -> RecordingGateway:
        self._server = Server(("127.0.0.1", self._port), self)
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
        """Per session ID what has been served: requests, prompt and completion tokens."""
        with self._lock:
            return {session_id: Usage(usage) for session_id, usage in self._sessions.items()}

    @property
    def audit_log(self) -> list[dict[str, Any]]:
        """An entry per request, ready for JSON: when, which session, what, and its outcome."""
        with self._lock:
            return [entry.copy() for entry in self._audit_log]

    def _answer(self, request: RecordedRequest) -> models.Answer:
        with self._lock:
            retry_after = self._seconds_to_wait(request.session_id)
            if retry_after is None:
                answer = models.model_answer(request, self.reply)
            else:
                answer = models.error(
                    429, "rate limit of this session exceeded", "rate_limit_error"
                )
                answer.headers["Retry-After"] = str(retry_after)
            self._requests.append(request)
            if answer.status == 200 and request.session_id is not None:
                usage = self._sessions.setdefault(
                    request.session_id, Usage(requests=0, prompt_tokens=0, completion_tokens=0)
                )
                usage["requests"] += 1
                usage["prompt_tokens"] += answer.prompt_tokens
                usage["completion_tokens"] += answer.completion_tokens
            entry = {
                "time": datetime.now(timezone.utc).isoformat(),
                "session_id": request.session_id,
                "forward": request.forward,
                "provider": request.provider,
                "model": request.model,
                "method": request.method,
                "path": request.path,
                "status": answer.status,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
            }
            self._audit_log.append(entry)
            if self._on_call is not None:
                self._on_call(entry.copy())
        return answer

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
