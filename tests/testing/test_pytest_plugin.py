"""The pytest plugin: the fixture ``recording_gateway`` in a user's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
