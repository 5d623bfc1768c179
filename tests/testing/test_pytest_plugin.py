"""The pytest plugin: the fixture in a user's tests, and what every other test run pays for it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# gevent has to patch these before they are loaded, or it warns.
PATCHED = ("ssl", "urllib3", "requests", "http.client", "concurrent.futures")


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, *arguments, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-p", "cagent_session.pytest_plugin"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def loaded_by(statement: str) -> set[str]:
    """The modules in memory after a statement in a new interpreter."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(ran.stdout.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def test_failing_test_says_what_the_gateway_has_seen_as_the_docs_show_it(folder):
    (folder / "test_agent.py").write_text(
        "import requests\n\n"
        "def test_agent(recording_gateway):\n"
        "    requests.get(recording_gateway.url)\n"
        "    assert recording_gateway.sessions['session-1'].requests == 1\n"
    )
    ran = run_pytest(folder)
    assert ran.returncode == 1
    (says,) = (line[1:].strip() for line in ran.stdout.splitlines() if "E  " in line)
    assert f"\n{says}\n" in (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")


def test_each_test_has_a_gateway_of_its_own(folder):
    (folder / "test_agent.py").write_text(
        "import pytest, requests\n\n"
        "@pytest.mark.parametrize('number', [1, 2])\n"
        "def test_agent(recording_gateway, number):\n"
        "    requests.get(recording_gateway.url)\n"
        "    assert len(recording_gateway.requests) == 1\n"
    )
    ran = run_pytest(folder)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("module", ["cagent_session.pytest_plugin", "cagent_session.testing"])
def test_import_loads_no_http_library(module):
    assert not loaded_by(f"import {module}").intersection(PATCHED) - loaded_by("import pytest")


def test_conftest_may_call_monkey_patch_all_of_gevent(folder):
    if importlib.util.find_spec("gevent") is None:
        if os.environ.get("CI"):
            pytest.fail("gevent is not installed: pip install gevent")
        pytest.skip("gevent is not installed")
    (folder / "conftest.py").write_text("from gevent import monkey\nmonkey.patch_all()\n")
    (folder / "test_agent.py").write_text(
        "import requests\n\n"
        "def test_agent(recording_gateway):\n"
        "    assert requests.get(recording_gateway.url).json()['path'] == '/'\n"
        "    assert len(recording_gateway.requests) == 1\n"
    )
    ran = run_pytest(folder, "-W", "error")
    assert ran.returncode == 0, ran.stdout + ran.stderr
