"""Count the instructions of each case: a figure that no other load on the machine changes.

    python benchmarks/instructions.py requests              all cases of on_requests.py
    python benchmarks/instructions.py requests "by header"  those with "by header" in their names
    python benchmarks/instructions.py loopback httpx        one comparison of several

The first argument is the name of a script, without its ``on_``. The output is what each case adds
to a plain request, and its ratio to the unit of the script's table. valgrind has to be installed.
A few cases take about 20 seconds, all of a script a minute or two.

valgrind's callgrind counts only while ``ascii()`` runs, and writes the sum down each time that it
returns. So a case is run by an object whose ``repr`` is asked for. The hash seed is fixed: with
the same versions of Python and the libraries, the same code takes the same number of instructions,
to a thousandth. What the kernel does is not counted.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import harness

if TYPE_CHECKING:
    from comparison import Comparison

#: False for a quick look at the clock alone.
wanted = True

#: The C function behind ``ascii()``, by which callgrind knows when to count.
FUNCTION = "PyObject_ASCII"
CALLS = 50
#: Calls before those that count, in which Python specializes the code and libraries fill caches.
WARM_UP = 50


class Repeated:
    """Calls ``call`` a number of times when its ``repr`` is asked for."""

    def __init__(self, call: Callable[[], object], calls: int) -> None:
        self._call = call
        self._repeat = range(calls)

    def __repr__(self) -> str:
        call = self._call
        for _ in self._repeat:
            call()
        return ""


def count(script: str, only: Sequence[str] = ()) -> dict[str, dict[str, harness.Samples]]:
    """Return the instructions per call of each case, by the names of its comparison and its own.

    :param script: the name of a script that has a function ``comparisons``.
    :param only: names of comparisons, or parts of names of cases; others are left out.
    :raises SystemExit: without valgrind, or if the script fails.
    """
    if shutil.which("valgrind") is None:
        raise SystemExit("instructions are counted by valgrind: install it (apt install valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={folder}/out"),
            *(f"--toggle-collect={FUNCTION}", f"--dump-after={FUNCTION}"),
            *(sys.executable, __file__, script, *only, "--counted"),
        ]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if run.returncode != 0:
            raise SystemExit(f"{script} failed under valgrind, see above")
        found: dict[str, dict[str, harness.Samples]] = {}
        for number, line in enumerate(run.stdout.splitlines(), start=1):
            comparison, case = json.loads(line)
            dump = Path(folder, f"out.{number}").read_text(encoding="utf-8", errors="replace")
            total = re.search(r"^totals: (\d+)$", dump, re.MULTILINE)
            if total is None or total[1] == "0":
                raise SystemExit(f"callgrind does not see {FUNCTION} in {sys.executable}")
            found.setdefault(comparison, {})[case] = [int(total[1]) / CALLS]
        return found


def run_counted(script: str, only: Sequence[str]) -> None:
    """Run the cases of ``script`` under callgrind, in this process, and print their names."""
    gc.disable()
    for comparison in comparisons(script, only):
        for name, case in comparison.cases.items():
            with harness.ready(case) as call:
                repr(Repeated(call, WARM_UP))
                gc.collect()
                ascii(Repeated(call, CALLS))
            print(json.dumps([comparison.name, name]), flush=True)


def comparisons(script: str, only: Sequence[str]) -> Iterator[Comparison]:
    for comparison in importlib.import_module(script).comparisons():
        chosen = comparison.only(only) if only else comparison
        if chosen.cases:
            yield chosen


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the instructions of each case.")
    parser.add_argument("script", help="requests, urllib3, httpx, ...")
    parser.add_argument("only", nargs="*", help="parts of the names of the cases to count")
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.counted:
        run_counted(options.script, options.only)
        return
    is_short = Path(__file__).with_name(f"on_{options.script}.py").exists()
    script = f"on_{options.script}" if is_short else options.script
    counts = count(script, options.only)
    for comparison in comparisons(script, options.only):
        harness.show([comparison.table({}, counts[comparison.name])])


if __name__ == "__main__":
    main()
