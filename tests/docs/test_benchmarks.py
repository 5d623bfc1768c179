"""Each benchmark runs, and docs/performance.md shows its tables. No test looks at a time."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
from pathlib import Path

import pytest
from support.wire import Server

from cagent_session import session_scope

for needed in ("aiohttp", "httpx", "httpx2", "structlog", "opentelemetry.instrumentation.httpx"):
    pytest.importorskip(needed, reason="tox -e py312 and its like have all that is compared with")

# One process of pytest-xdist runs them all, so that the scripts run once.
pytestmark = pytest.mark.xdist_group("benchmarks")

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if "\ndef tables(" in path.read_text(encoding="utf-8")
)
PAGE = ROOT / "docs" / "performance.md"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setattr(importlib.import_module("harness"), "scale", 0.001)
        patch.setattr(importlib.import_module("instructions"), "wanted", False)
        yield


@pytest.fixture(scope="module")
def found(scripts):
    """What the scripts have found, by the tables' names."""
    return {
        table.name: table
        for script in SCRIPTS
        for table in importlib.import_module(script).tables()
    }


def first_cells(lines: list[str]) -> list[str]:
    return [re.sub(r"[\d,]+", "#", line.split(" | ")[0]) for line in lines]


def test_the_page_shows_the_tables_that_the_scripts_make(found):
    blocks = re.findall(
        r"<!-- measured: (\w+) -->\n\n(.*?)\n\n<!-- end -->", PAGE.read_text(), re.DOTALL
    )
    shown = {name: block.splitlines() for name, block in blocks}
    assert shown.keys() - {"summary", "versions"} == found.keys()
    for name, table in found.items():
        made = str(table).splitlines()
        assert shown[name][0] == made[0]
        assert first_cells(shown[name]) == first_cells(made)
        assert len({line.count(" | ") for line in made}) == 1


def test_the_page_and_its_chart_are_written_from_the_tables(found, tmp_path):
    pytest.importorskip("matplotlib", reason="tox -e bench has it")
    run = importlib.import_module("run")
    tables = found | {"versions": run.versions()}
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    run.write(tables, tmp_path)
    written = page.read_text()
    assert all(str(table) in written for table in tables.values())
    run.write(tables, tmp_path)
    assert page.read_text() == written
    assert "<svg" in (tmp_path / "performance.svg").read_text()


def test_end_to_end_all_but_opentelemetry_send_the_same_bytes():
    loopback = importlib.import_module("on_loopback")
    with Server() as server, contextlib.ExitStack() as opened, session_scope(loopback.SESSION):
        for cases in loopback.clients(server.origin, opened).values():
            del cases[loopback.OPENTELEMETRY]
            server.arrived.clear()
            for case in cases.values():
                inside = case.state() if hasattr(case, "state") else contextlib.nullcontext()
                with inside:
                    getattr(case, "call", case)()
            plain, *others = (sorted(each.raw.lower().splitlines()) for each in server.arrived)
            assert others == [plain, plain]


@pytest.mark.skipif(
    shutil.which("valgrind") is None and "CI" not in os.environ, reason="valgrind is missing"
)
def test_stamping_a_request_takes_fewer_instructions_than_copying_it(monkeypatch):
    instructions, on_requests = map(importlib.import_module, ("instructions", "on_requests"))
    stamped = "`GatewayAdapter()`, gateway-bound by header"
    # Python's cache of attributes depends on the addresses of objects, and these on the size of the
    # environment. That changes a count by up to two hundredths, which is all that the two differ
    # by with the oldest versions. So it has to be less in one of four environments.
    for number in range(4):
        for each in range(10 * number):
            monkeypatch.setenv(f"PADDING_{each}", "x" * 40 * each)
        counts = instructions.count("on_requests", [stamped])["requests"]
        plain, copy, ours = (counts[case][0] for case in ("plain", on_requests.UNIT, stamped))
        assert plain < ours
        if ours < copy:
            break
    assert ours < copy
