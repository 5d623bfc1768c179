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
BLOCK = re.compile(r"<!-- measured: (\w+) -->\n\n(.*?)\n\n<!-- end -->", re.DOTALL)
PACKAGES = (
    *("requests", "urllib3", "httpx", "httpx2", "aiohttp", "opentelemetry-sdk", "structlog"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run all benchmarks.")
    parser.add_argument("scripts", nargs="*", help="names of scripts, if not all are to run")
    parser.add_argument("--page", type=Path, metavar="DIRECTORY", help="where performance.md is")
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for a quick look")
    parser.add_argument("--clock", action="store_true", help="do not count instructions")
    options = parser.parse_args()
    harness.scale = options.scale
    instructions.wanted = not options.clock
    tables = {"versions": versions()}
    for script in SCRIPTS:
        if not options.scripts or script.__name__ in options.scripts:
            for table in script.tables():
                show([table])
                tables[table.name] = table
    if options.page:
        write(tables, options.page)


def versions() -> Table:
    named = [["Python", f"{platform.python_version()}, {platform.machine()}"]]
    return Table("versions", ["", "version"], named + [[name, version(name)] for name in PACKAGES])


def write(tables: Mapping[str, Table], docs: Path) -> None:
    """Put ``tables`` into docs/performance.md, and make the rest of it from those that it has."""
    import chart  # matplotlib is needed for the page alone

    page = docs / "performance.md"
    text = fill(page.read_text(encoding="utf-8"), tables)
    found = {name: Table.read(name, block) for name, block in BLOCK.findall(text)}
    page.write_text(fill(text, {"summary": summary(found["loopback"])}), encoding="utf-8")
    chart.draw(found, docs / "performance.svg")


def summary(loopback: Table) -> str:
    """Return the sentence that the page begins with."""
    shares = [
        float(share) for case, _, share, *_ in loopback.rows if case.endswith(on_loopback.TRANSPORT)
    ]
    low, high = (f"{share:.0%}"[:-1] for share in (min(shares), max(shares)))
    return (
        "By the processor's clock, a client with a transport of this package sends "
        f"{low} to {high} % of the requests\nthat a plain client sends in the same time."
    )


def fill(text: str, blocks: Mapping[str, object]) -> str:
    """Return ``text`` with each of ``blocks`` between the comments that name it."""

    def block(match: re.Match[str]) -> str:
        name, before = match.groups()
        return f"<!-- measured: {name} -->\n\n{blocks.get(name, before)}\n\n<!-- end -->"

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    main()
