"""What the tests of all frameworks share: the gateway, both ways to it, and no way out of here."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

# Before any framework is imported: nothing that reports home, and no models from a hub.
os.environ.update(
    ANONYMIZED_TELEMETRY="false",
    AWS_EC2_METADATA_DISABLED="true",
    CREWAI_DISABLE_TELEMETRY="true",
    CREWAI_TRACING_ENABLED="false",
    DO_NOT_TRACK="1",
    HAYSTACK_TELEMETRY_ENABLED="false",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    LANGSMITH_TRACING="false",
    LITELLM_LOCAL_MODEL_COST_MAP="true",
    OPENAI_AGENTS_DISABLE_TRACING="1",
    OTEL_SDK_DISABLED="true",
)

import page
import pytest
from mock_model import FORWARD, PARENT_HEADER, Model

from cagent_session import Gateway, instrument, uninstrument
from cagent_session.testing import RecordingGateway

_refused: list[str] = []


def _refuse_strangers(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook, which sees what any library of this process connects to or looks up."""
    if event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        _refused.append(f"{event} {host}")
        raise ConnectionRefusedError(f"{host} is not this machine")


sys.addaudithook(_refuse_strangers)


def pytest_configure(config: pytest.Config) -> None:
    """Frameworks warn of each other, and leave open the clients that they make."""
    config.addinivalue_line("filterwarnings", "default")
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")


def pytest_unconfigure() -> None:
    warnings.simplefilter("ignore", ResourceWarning)  # of those that live as long as the process


@pytest.fixture(autouse=True)
def _stays_on_loopback() -> Iterator[None]:
    """Libraries swallow what the hook raises, and so the test fails by what it has noted."""
    yield
    refused = _refused.copy()
    _refused.clear()
    assert refused == []


@pytest.fixture(scope="session")
def run() -> Iterator[Callable[..., Any]]:
    """``asyncio.run`` in one loop, as frameworks keep a client for all the time of a process."""
    with asyncio.Runner() as runner:
        # A runner's own context is the one in which it was made.
        yield lambda coroutine: runner.run(coroutine, context=copy_context())


@pytest.fixture
def unchecked_model() -> Iterator[Model]:
    """For tests of what a careless setup loses."""
    with Model() as model:
        yield model


@pytest.fixture
def model(unchecked_model: Model) -> Iterator[Model]:
    """Checks in the end that every call came in the session that it was made for."""
    yield unchecked_model
    assert unchecked_model.wrong == []


@pytest.fixture
def gateway(unchecked_model: Model) -> Gateway:
    return Gateway(unchecked_model.origin, forward=FORWARD, parent_header=PARENT_HEADER)


@pytest.fixture
def run_section() -> Iterator[Callable[[str], RecordingGateway]]:
    """Runs a section of the page, without ``instrument`` but where that is in the snippets."""
    uninstrument()
    yield page.run
    uninstrument()


@pytest.fixture(params=["instrument", "by hand"])
def is_instrumented(
    request: pytest.FixtureRequest, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> Iterator[bool]:
    """Whether a framework's own clients go to the gateway, or the test's way is to wire them."""
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-gateway")
    if request.param == "by hand":
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        yield False
        return
    monkeypatch.setenv("OPENAI_BASE_URL", gateway.endpoint("v1"))
    with instrument(gateway):
        yield True
