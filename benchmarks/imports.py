"""What importing the package takes on top of requests."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from harness import Table, scaled, show

CODE = """
import time
begin = time.perf_counter()
import requests
between = time.perf_counter()
import cagent_session
print(between - begin, time.perf_counter() - between)
"""


def tables() -> Iterator[Table]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    shares, times = [], []
    with tempfile.TemporaryDirectory() as compiled:
        command = [sys.executable, "-X", f"pycache_prefix={compiled}", "-c", CODE]
        for number in range(scaled(41)):
            run = subprocess.run(command, capture_output=True, check=True, env=environment)
            of_requests, ours = map(float, run.stdout.split())
            if number:  # the first one compiles
                shares.append(ours / of_requests * 100)
                times.append(ours * 1000)
    share = statistics.median(shares)
    cells = [f"{statistics.median(times):.1f} ms", f"{share:.1f} %"]
    head = ["", "time", "of `import requests`"]
    yield Table("imports", head, [["`import cagent_session`", *cells]])


if __name__ == "__main__":
    show(tables())
