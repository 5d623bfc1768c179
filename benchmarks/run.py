"""Run all benchmarks, one after the other, which takes a quarter of an hour.

python benchmarks/run.py                       print the tables
python benchmarks/run.py --page docs           write them and the chart to docs/performance.md
python benchmarks/run.py --clock --scale 0.1   a quick look, without counting instructions
"""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import growth
import harness
import imports
import instructions
import log
import memory
import on_aiohttp
import on_httpx
import on_loopback
import on_pools
import on_requests
import on_urllib3
import scopes
from harness import Table, show

SCRIPTS = (
    *(on_loopback, on_requests, on_urllib3, on_httpx, on_aiohttp),
    *(log, scopes, on_pools, growth, memory, imports),
)
PACKAGES = (
    *("requests", "urllib3", "httpx", "httpx2", "aiohttp", "opentelemetry-sdk", "structlog"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run all benchmarks.")
    parser.add_argument("--page", type=Path, metavar="DIRECTORY", help="where performance.md is")
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for a quick look")
    parser.add_argument("--clock", action="store_true", help="do not count instructions")
    options = parser.parse_args()
    harness.scale = options.scale
    instructions.wanted = not options.clock
    tables: dict[str, Table] = {}
    for script in SCRIPTS:
        for table in script.tables():
            show([table])
            tables[table.name] = table
    tables["versions"] = versions()
    show([tables["versions"]])
    if options.page:
        write(tables, options.page)


def versions() -> Table:
    named = [["Python", f"{platform.python_version()}, {platform.machine()}"]]
    return Table("versions", ["", "version"], named + [[name, version(name)] for name in PACKAGES])


def summary(loopback: Table) -> str:
    """Return the sentence that the page begins with."""
    shares = [
        share for case, share in loopback.figures.items() if case.endswith(on_loopback.TRANSPORT)
    ]
    low, high = (f"{share:.0%}"[:-1] for share in (min(shares), max(shares)))
    return (
        "By the processor's clock, a client with a transport of this package sends "
        f"{low} to {high} % of the requests\nthat a plain client sends in the same time."
    )


def write(tables: Mapping[str, Table], docs: Path) -> None:
    import chart  # matplotlib is needed for the page alone

    page = docs / "performance.md"
    blocks = {**tables, "summary": summary(tables["loopback"])}
    page.write_text(fill(page.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    chart.draw(tables, docs / "performance.svg")


def fill(text: str, blocks: Mapping[str, object]) -> str:
    """Return ``text`` with each block between the comments that name it."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{blocks[match[2]]}\n\n{match[3]}"

    return re.sub(r"(<!-- measured: (\w+) -->)\n.*?(<!-- end -->)", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
