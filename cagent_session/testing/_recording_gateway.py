"""The recording gateway as its users see it."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable, MutableSequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .._gate.validation import check_parent_header, check_session_header
from ..headers import PARENT_SESSION_ID, SESSION_ID
from ._answers import error, given_answer, model_answer
from ._bills import Sessions, Usage, bills, calls_per_session, seen, total, with_descendants
from ._limits import RateLimit
from ._messages import Answer, Given, RecordedRequest

if TYPE_CHECKING:
    from ._page import Page
    from ._server import Server


def _check_limit(requests_per_minute: object) -> None:
    if requests_per_minute is None:
        return
    if not isinstance(requests_per_minute, int):
        kind = type(requests_per_minute).__name__
        raise TypeError(f"requests_per_minute must be an int, or None for no limit, not {kind}")
    if requests_per_minute < 1:
        raise ValueError("requests_per_minute must be at least 1, or None for no limit")


def _check_function(name: str, value: object, example: str) -> None:
    if value is not None and not callable(value):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a function, not {kind}: {name}={example}")


class RecordingGateway:
    """A models gateway on loopback that records every request, bills it and limits it.

    It answers ``/v1/chat/completions`` and ``/v1/messages``, below any prefix, as the providers
    do, streamed or not. Everything else gets a small JSON echo. A "token" is a word. ::

        with RecordingGateway() as recording:
            gateway = Gateway(recording.url, forward="https://api.openai.com/v1")
            ...
        assert recording.requests[0].session_id == "s1"
        assert recording.sessions["s1"].prompt_tokens == 12

    :param requests_per_minute: how many requests of one session it serves in any 60 seconds;
        further ones get a 429 with ``Retry-After`` in seconds. Without it, there is no limit.
    :param reply: what the model always answers.
    :param respond: called with each request within the limit, for an answer of your own: a
        ``dict`` or ``list`` is sent as JSON, ``(status, dict)`` with that status, and ``None``
        leaves the request to the gateway. The bill takes the tokens from the answer's ``usage``.
    :param port: where to listen on 127.0.0.1; 0 for a free port.
    :param on_call: called with each new entry of the audit log.
    :param session_header: the name of the header that the session is read from: the
        ``session_header`` of your ``Gateway``, or a name of its ``session_headers``.
    :param parent_header: the name of the header that the session's parent is read from; ``None``
        to read none.
    :param page: whether to serve a page for the browser, at ``/_sessions`` below ``url``, that
        shows the sessions of the last 10,000 calls as they arrive.
    :raises ValueError: for a ``requests_per_minute`` below 1, a ``port`` that there is not, or a
        header's name that a ``Gateway`` would refuse.
    :raises TypeError: for arguments of another type, such as the answer itself as ``respond``.

    ``reply`` and ``respond`` are attributes as well, and can be set at any time. An exception in
    ``respond`` or ``on_call`` is printed on stderr, and the request answered with status 500. The
    end of the ``with`` block waits for answers that are being made, for 5 seconds at most.
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
        page: bool = False,
    ) -> None:
        _check_limit(requests_per_minute)
        if not isinstance(reply, str):
            raise TypeError(
                f"reply must be a str, not {type(reply).__name__}: for another answer, "
                "respond=lambda request: {...}"
            )
        _check_function("respond", respond, "lambda request: {...}")
        _check_function("on_call", on_call, "print")
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0, for a free one, to 65535, not {port}")
        check_session_header(session_header)
        if parent_header is not None:
            check_parent_header(parent_header, [session_header.lower()])
        self.reply = reply
        self.respond = respond
        self._headers = session_header, parent_header
        self._limit = RateLimit(requests_per_minute)
        self._on_call = on_call
        self._port = port
        self._page = _new_page(session_header) if page else None
        self._server: Server | None = None
        self._lock = threading.Lock()
        self._requests, self._audit_log = self._new_records()

    def _new_records(
        self,
    ) -> tuple[MutableSequence[RecordedRequest], MutableSequence[dict[str, Any]]]:
        return [], []

    def __enter__(self) -> RecordingGateway:
        # Imported here, as http.server imports ssl: gevent has to patch that before it is loaded.
        from ._server import Server

        self._server = Server(
            self._port, self._answer, self._note_refusal, *self._headers, self._page
        )
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __repr__(self) -> str:
        where = f"at {self.url}" if self._port else "not entered yet"
        return f"<RecordingGateway {where}: {seen(calls_per_session(self.audit_log))}>"

    @property
    def url(self) -> str:
        """Where it listens, such as ``http://127.0.0.1:41234``."""
        if not self._port:
            raise RuntimeError("a RecordingGateway has a URL once it is entered: with ... as ...")
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests so far, in the order in which they arrived; those over the limit, too.

        Requests that were not proper HTTP, or had a malformed session ID, are not among them.
        """
        with self._lock:
            return list(self._requests)

    @property
    def sessions(self) -> dict[str, Usage]:
        """Per session ID, what has been served: requests, prompt and completion tokens.

        Calls that were answered with an error have not been served. Asking for a session without
        a served call raises a :exc:`KeyError` that says which sessions were seen.
        """
        audit_log = self.audit_log
        usages = {key: bill for key, bill in bills(audit_log).items() if key is not None}
        return Sessions(usages, calls_per_session(audit_log))

    @property
    def unattributed(self) -> Usage:
        """What has been served to calls without a session."""
        return total([bills(self.audit_log).get(None)])

    @property
    def audit_log(self) -> list[dict[str, Any]]:
        """An entry per request, ready for JSON: when, which session, what, and its outcome."""
        with self._lock:
            return [entry.copy() for entry in self._audit_log]

    def family(self, session_id: str) -> Usage:
        """Return what a session has used together with all its descendants.

        Descendants are known from the calls that have arrived; of a session's calls, the last one
        with a parent counts. A session that never called has used nothing. Parents arrive only from
        a ``Gateway`` with a ``parent_header``.

        :param session_id: the session at the top of the family.
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
            # New lists, so that a call that is being answered now is recorded in the old ones.
            self._requests, self._audit_log = self._new_records()
            self._limit.clear()
            if self._page is not None:
                self._page.clear()

    def _note_refusal(self, request: str, status: int, reason: str) -> None:
        """Take note of a request that is answered with an error, and not recorded."""

    def _answer(self, request: RecordedRequest) -> Answer:
        with self._lock:
            self._requests.append(request)
            audit_log = self._audit_log
            retry_after = self._limit.seconds_to_wait(request.session_id)
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
        with self._lock:
            if self._page is not None and audit_log is self._audit_log:
                self._page.add(entry)
        return answer

    def _unlimited_answer(self, request: RecordedRequest) -> Answer:
        try:
            given = None if self.respond is None else given_answer(self.respond(request))
        except BaseException as failure:  # pytest.fail() raises no Exception
            return _failed("respond", failure)
        return model_answer(request, self.reply) if given is None else given


def _new_page(session_header: str) -> Page:
    from ._page import Page  # most gateways have no page

    return Page(session_header)


def _limited(retry_after: int) -> Answer:
    answer = error(429, "rate limit of this session exceeded", "rate_limit_error")
    answer.headers["Retry-After"] = str(retry_after)
    return answer


def _failed(what: str, failure: BaseException) -> Answer:
    with contextlib.suppress(OSError, ValueError):  # a stderr that is closed
        traceback.print_exception(failure, file=sys.stderr)
    reason = "".join(traceback.format_exception_only(failure)).strip()
    return error(500, f"{what} failed: {reason}", "api_error")
