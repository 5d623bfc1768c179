"""SDKs leave open what they make, and warn of each other, which is no failure of these tests."""

from __future__ import annotations

import warnings

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "default")
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")


def pytest_unconfigure() -> None:
    warnings.simplefilter("ignore", ResourceWarning)  # of those that live as long as the process
