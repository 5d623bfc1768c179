"""Output of the commands: lines, to readers who may go away."""

from __future__ import annotations

import os
import re
import sys

_SIGPIPE = 141  # what a shell reports of a command whose reader has gone away


def show(text: str) -> int:
    """Print ``text`` as it is, at once; return the exit status, not 0 if that was impossible."""
    if text and sys.stdout is None:
        return fail("cannot write: stdout is closed")
    try:
        print(text, end="", flush=True)
    except OSError as error:
        return unwritable(error)
    return 0


def unwritable(error: OSError) -> int:
    """Give up stdout as a shell's tools do: silently if its reader has gone away."""
    discard_output()
    if isinstance(error, BrokenPipeError):
        return _SIGPIPE
    return fail(f"cannot write: {error.strerror}")


def fail(message: str) -> int:
    """Print one line on stderr about what went wrong; return the exit status for it."""
    print(f"cagent-session: {message}", file=sys.stderr)
    return 1


def printable(text: str) -> str:
    """Replace control characters and non-ASCII characters, newlines included, with ``?``."""
    return re.sub(r"[^ -~]", "?", text)


def discard_output() -> None:
    """Send stdout nowhere from now on: Python would try to write the rest when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
