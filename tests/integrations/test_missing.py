"""Each integration says which extra to install when its library is missing."""

from __future__ import annotations

import builtins
import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("httpx", "httpx", "httpx"),
        ("httpx2", "httpx2", "httpx2"),
        ("opentelemetry", "opentelemetry.context", "otel"),
        ("celery", "celery", "celery"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(module, library, extra, monkeypatch):
    name = f"cagent_session.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    real_import = builtins.__import__

    def no_such_library(wanted, *args, **options):
        if wanted == library:
            raise ImportError(wanted)
        return real_import(wanted, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_such_library)
    with pytest.raises(ImportError, match=rf"pip install 'cagent-session\[{extra}\]'"):
        importlib.import_module(name)


def test_the_package_imports_no_library_of_an_extra():
    check = (
        "import sys, cagent_session, cagent_session.integrations.logging, "
        "cagent_session.integrations.structlog, cagent_session.integrations.wsgi, "
        "cagent_session.integrations.asgi\n"
        "extras = {'httpx', 'httpx2', 'opentelemetry', 'celery', 'structlog', 'pytest'}\n"
        "sys.exit(str(extras & set(sys.modules)) if extras & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
