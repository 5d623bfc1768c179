"""Each integration says how to install its library when that is missing."""

from __future__ import annotations

import builtins
import importlib
import importlib.metadata
import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "imported", "library", "extra"),
    [
        ("httpx", "httpx", "httpx", "httpx"),
        ("httpx2", "httpx2", "httpx2", "httpx2"),
        ("opentelemetry", "opentelemetry.context", "opentelemetry-sdk", "otel"),
        ("celery", "celery", "celery", "celery"),
    ],
)
def test_a_missing_library_is_named_with_the_line_that_installs_it(
    module, imported, library, extra, monkeypatch
):
    name = f"cagent_session.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    real_import = builtins.__import__

    def no_such_library(wanted, *args, **options):
        if wanted == imported:
            raise ImportError(wanted)
        return real_import(wanted, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_such_library)
    with pytest.raises(ImportError) as raised:
        importlib.import_module(name)
    # The extra can be installed only from an index; the library itself always.
    lines = re.findall(r"pip install (.*?)(?: \(|\))", str(raised.value))
    assert lines == [f"--upgrade {library}", f"'cagent-session[{extra}]'"]
    installed = [
        requirement
        for requirement in importlib.metadata.requires("cagent-session")
        if f'extra == "{extra}"' in requirement.replace("'", '"')
    ]
    assert [re.split(r"[<>=;]", requirement)[0].strip() for requirement in installed] == [library]


def test_the_package_imports_no_library_of_an_extra():
    check = (
        "import sys, cagent_session, cagent_session.integrations.logging, "
        "cagent_session.integrations.structlog, cagent_session.integrations.wsgi, "
        "cagent_session.integrations.asgi\n"
        "extras = {'httpx', 'httpx2', 'opentelemetry', 'celery', 'structlog', 'pytest'}\n"
        "sys.exit(str(extras & set(sys.modules)) if extras & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
