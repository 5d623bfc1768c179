from __future__ import annotations

import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from support import services
from support.transports import TRANSPORTS, Transport
from support.wire import Server

import cagent_session
from cagent_session._gate.routes import BARE


def pytest_configure() -> None:
    # A package that was installed some time ago is not to be tested in place of this one.
    imported = Path(cagent_session.__file__).parent
    here = Path(__file__).parent.parent / "cagent_session"
    # An installed copy may have more, from a folder "build" that is older than the checkout.
    if not sources(here).items() <= sources(imported).items():
        raise pytest.UsageError(f"{imported} is not the same as {here}: pip install -e '.[test]'")
    # A shell has Ctrl-C ignored by what it starts in the background, and so by what tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def sources(package: Path) -> dict[str, bytes]:
    return {
        path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*.py")
    }


class TLS(NamedTuple):
    context: ssl.SSLContext
    ca: str


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost", "127.0.0.1", "127.0.0.2", "::1").configure_cert(context)
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return TLS(context, str(path))


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis of the tests' own."""
    with services.redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(autouse=True)
def _bare_gate_has_not_warned_yet() -> None:
    """Let every test see the warnings that the gate without a gateway gives once per process."""
    BARE.warned.clear()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(params=TRANSPORTS, ids=str)
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param


@pytest.fixture
def spans() -> Iterator[Any]:
    """What has been traced, each span with the session that it started in."""
    # Imported here, as most environments do without it.
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from cagent_session.integrations.opentelemetry import SessionSpanProcessor

    exporter: Any = InMemorySpanExporter()
    exporter.provider = TracerProvider()
    exporter.provider.add_span_processor(SessionSpanProcessor())
    exporter.provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.provider.shutdown()
