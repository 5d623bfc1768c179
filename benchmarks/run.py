"""All benchmarks, one after the other. A few minutes.

python benchmarks/run.py                       prints the tables
python benchmarks/run.py --page docs           puts them and the chart into docs/performance.md
python benchmarks/run.py --scale 0.1           a quick look
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
import log
import memory
import on_httpx
import on_loopback
import on_requests
import on_urllib3
import scopes
from harness import Table, show

SCRIPTS = (
    *(on_loopback, on_requests, on_urllib3, on_httpx),
    *(log, scopes, growth, memory, imports),
)
PACKAGES = ("requests", "urllib3", "httpx", "httpx2", "opentelemetry-sdk", "structlog")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run all benchmarks.")
    parser.add_argument("--page", type=Path, metavar="DIRECTORY", help="where performance.md is")
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for a quick look")
    options = parser.parse_args()
    harness.scale = options.scale
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


def write(tables: Mapping[str, Table], docs: Path) -> None:
    import chart  # matplotlib is needed for the page alone

    page = docs / "performance.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    chart.draw(tables, docs / "performance.svg")


def fill(text: str, tables: Mapping[str, Table]) -> str:
    """``text`` with each table in the place that is marked with its name."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{tables[match[2]]}\n\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
