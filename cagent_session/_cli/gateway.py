"""``cagent-session gateway``: the recording gateway in the foreground, a line per call."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import MutableSequence
from datetime import datetime, timezone
from typing import Any

from ..testing import RecordedRequest, RecordingGateway
from ..testing._bills import forward_of
from .console import discard_output, fail, printable

_SHOWN = 200  # characters of a value in a line


class ForegroundGateway(RecordingGateway):
    """A recording gateway that can run for days: only its page keeps calls, without bodies."""

    def __init__(
        self,
        *,
        port: int,
        requests_per_minute: int | None,
        session_header: str,
        parent_header: str,
    ) -> None:
        super().__init__(
            port=port,
            requests_per_minute=requests_per_minute,
            session_header=session_header,
            parent_header=parent_header,
            on_call=_print_call,
            page=True,
        )

    def _new_records(
        self,
    ) -> tuple[MutableSequence[RecordedRequest], MutableSequence[dict[str, Any]]]:
        return deque(maxlen=0), deque(maxlen=0)

    def _note_refusal(self, request: str, status: int, reason: str) -> None:
        now = datetime.now(timezone.utc).isoformat()
        _print(f"{now:.19}  {status}  {_shown(request)}  {_shown(reason)}")


def main(recording: ForegroundGateway, port: int) -> int:
    """Serve until Ctrl-C; return the exit status."""
    try:
        with recording, contextlib.suppress(KeyboardInterrupt):
            _print(f"listening on {recording.url}, Ctrl-C ends it")
            _print(f"sessions at  {recording.url}/_sessions")
            threading.Event().wait()
    except OSError as error:
        return fail(
            f"cannot listen on port {port}: {error.strerror}; choose another with --port N, or "
            "leave --port out"
        )
    return 0


def _print_call(entry: dict[str, Any]) -> None:
    values = entry | {"forward": forward_of(entry)}
    line = (
        "{time:.19}  {status}  session={session_id}  {method} {path}  forward={forward}  "
        "model={model}  tokens={prompt_tokens}+{completion_tokens}"
    ).format(**{key: _shown(value) for key, value in values.items()})
    if entry["parent_session_id"] is not None:
        line += f"  parent={_shown(entry['parent_session_id'])}"
    _print(line)


def _shown(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _print(line: str) -> None:
    """Print a line if that is possible: the caller of the gateway gets its answer in any case."""
    try:
        # One write, so that the lines of two calls do not mix.
        print(printable(line) + "\n", end="", flush=True)
    except BrokenPipeError:
        discard_output()
    except OSError:
        pass  # a disk that is full today may have room for the next line
