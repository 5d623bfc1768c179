"""What `import cagent_session` loads, what it shows, and where it says that other names are."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import cagent_session


def run(code: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HTTP_LIBRARIES = {"requests", "urllib3", "ssl", "httpx", "httpx2", "aiohttp"}


@pytest.mark.parametrize(
    "code",
    [
        "import cagent_session",
        "import cagent_session.pytest_plugin",
        "import cagent_session.headers",
        "from cagent_session import session_scope\nwith session_scope('s1'): pass",
        "from cagent_session import session_from, no_session, received_session, bind_session",
        "from cagent_session import Gateway; Gateway('http://g', session_header='X-S')",
        "import cagent_session; dir(cagent_session)",
    ],
)
def test_no_http_library_is_loaded_by(code: str):
    loaded = run(f"{code}\nimport sys\nprint(*sys.modules)").split()
    assert HTTP_LIBRARIES.isdisjoint(loaded)


def test_gevent_can_still_patch_after_the_import():
    pytest.importorskip("gevent")
    code = """
        import cagent_session.pytest_plugin
        from gevent import monkey
        monkey.patch_all()
    """
    run(code, "-W", "error")


def test_every_public_name_can_be_loaded_and_is_shown():
    for name in cagent_session.__all__:
        assert getattr(cagent_session, name) is not None
        assert name in dir(cagent_session)
    assert {"headers", "integrations", "testing"} <= set(dir(cagent_session))
    assert not [name for name in dir(cagent_session) if name.startswith("_") and name[:2] != "__"]


def test_two_threads_load_requests_at_once():
    """Python breaks a deadlock of its import locks with modules that are half loaded."""
    code = """
        import importlib, threading
        from concurrent.futures import ThreadPoolExecutor
        import cagent_session

        def load_requests():
            start.wait()
            importlib.import_module("requests")

        def load_instrument():
            start.wait()
            cagent_session.instrument

        start = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            for ended in [pool.submit(load_requests), pool.submit(load_instrument)]:
                ended.result()
    """
    for _ in range(5):
        run(code)


def test_submodules_are_attributes():
    code = """
        import cagent_session
        print(cagent_session.headers.SESSION_ID, cagent_session.testing.RecordingGateway.__name__)
    """
    assert run(code) == "X-Cagent-Session-Id RecordingGateway"


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("GatewayTransport", "cagent_session.integrations.httpx"),
        ("AsyncGatewayTransport", "cagent_session.integrations.httpx2"),
        ("GatewayMiddleware", "cagent_session.integrations.aiohttp"),
        ("RecordingGateway", "cagent_session.testing"),
        ("carry_session", "cagent_session.integrations.threads"),
        ("SessionMiddleware", "cagent_session.integrations.asgi"),
        ("SessionIDFilter", "cagent_session.integrations.logging"),
        ("SessionSpanProcessor", "cagent_session.integrations.opentelemetry"),
        ("add_session_id", "cagent_session.integrations.structlog"),
    ],
)
def test_a_name_that_is_elsewhere_is_an_import_error_that_says_where(name: str, where: str):
    with pytest.raises(ImportError, match=where):
        getattr(cagent_session, name)


@pytest.mark.parametrize("name", ["NoSuchName", "_gate_", "urls"])
def test_any_other_name_is_an_attribute_error(name: str):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(cagent_session, name)


def test_a_gateway_shows_nothing_but_public_names():
    gateway = cagent_session.Gateway("http://gateway.example", session_header="X-S")
    shown = {name for name in dir(gateway) if not name.startswith("_")}
    assert shown == {
        *("url", "forward", "provider", "model", "model_name", "headers"),
        *("session_header", "parent_header", "session_headers", "require_session"),
        *("endpoint", "owns", "mount", "headers_for", "from_env"),
    }


def test_tracebacks_show_the_public_names_of_errors():
    assert cagent_session.SessionRequired.__module__ == "cagent_session"
    assert cagent_session.InvalidSessionID.__module__ == "cagent_session"
