"""The command ``cagent-session`` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def command(
    *arguments: str, stdout=subprocess.PIPE, unbuffered: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``cagent-session`` with these arguments, and end it with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "cagent_session", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    ) as process:
        try:
            yield process
        finally:
            process.kill()
