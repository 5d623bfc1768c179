"""``cagent-session gateway``: the recording gateway in the foreground, a line per call."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from ..testing import RecordingGateway
from .console import discard_output, fail, printable


def main(port: int, requests_per_minute: int | None) -> int:
    """Serve until Ctrl-C; gives back the exit status."""
    recording = RecordingGateway(
        port=port, requests_per_minute=requests_per_minute, on_call=_print_call
    )
    try:
        with recording, contextlib.suppress(KeyboardInterrupt):
            _print(f"listening on {recording.url}, Ctrl-C ends it")
            threading.Event().wait()
    except OSError as error:
        return fail(f"cannot listen on port {port}: {error.strerror}")
    return 0


def _print_call(entry: dict[str, Any]) -> None:
    line = (
        "{time:.19}  {status}  session={session_id}  {method} {path}  forward={forward}  "
        "model={model}  tokens={prompt_tokens}+{completion_tokens}"
    ).format(**{key: "-" if value is None else value for key, value in entry.items()})
    if entry["parent_session_id"] is not None:
        line += f"  parent={entry['parent_session_id']}"
    _print(line)


def _print(line: str) -> None:
    """Print a line if it can be: whoever calls the gateway gets an answer in any case."""
    try:
        # One write, so that the lines of two calls do not mix.
        print(printable(line) + "\n", end="", flush=True)
    except BrokenPipeError:
        discard_output()
    except OSError:
        pass  # a disk that is full today may have room for the next line
