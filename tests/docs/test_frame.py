"""The files that every checkout and source distribution has."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    [
        *("setup.cfg", "setup.py", "pyproject.toml", "tox.ini", "MANIFEST.in"),
        *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
        *("cagent_session/__init__.py", "cagent_session/py.typed", "tests/conftest.py"),
        *(".ci/run", ".ci/interpreters", "docs/index.md", "benchmarks/run.py"),
    ],
)
def test_file_exists(name):
    assert (ROOT / name).is_file()


def test_setup_py_is_a_shim():
    assert (ROOT / "setup.py").read_text() == "from setuptools import setup\n\nsetup()\n"


def test_pyproject_toml_has_the_build_system_alone():
    tables = re.findall(r"^\[.*", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert tables == ["[build-system]"]


def test_ci_runs_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    (pip install tox.*)", readme, flags=re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_contributing_names_every_environment_that_tox_runs():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    names = set(re.findall(r"[\w-]+", tox["tox"]["env_list"]))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "py314" in names
    assert names <= set(re.findall(r"`([\w-]+)`", contributing))
