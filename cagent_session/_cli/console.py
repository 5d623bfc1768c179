"""What the commands share: they speak in lines, to readers who may go away."""

from __future__ import annotations

import os
import re
import sys

_SIGPIPE = 141  # what a shell reports of a command whose reader has gone away


def show(text: str) -> int:
    """Print ``text`` as it is, at once; gives the exit status: not 0 if that was not possible."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        return unwritable(error)
    return 0


def unwritable(error: OSError) -> int:
    """Give up stdout, as a shell's tools do: in silence if its reader has gone away."""
    discard_output()
    if isinstance(error, BrokenPipeError):
        return _SIGPIPE
    return fail(f"cannot write: {error.strerror}")


def fail(message: str) -> int:
    """Say in one line on stderr what went wrong; gives the exit status for it."""
    print(f"cagent-session: {message}", file=sys.stderr)
    return 1


def printable(text: str) -> str:
    """``text`` without what would tell the terminal what to do, a new line included."""
    return re.sub(r"[^ -~]", "?", text)


def discard_output() -> None:
    """Write nothing to stdout from now on: when Python ends, it would try once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
