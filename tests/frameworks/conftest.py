"""What the tests of all frameworks share: the gateway, both ways to it, and no way out of here."""

from __future__ import annotations

import asyncio
import collections
import datetime
import importlib.metadata
import ipaddress
import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

# Before any framework is imported: nothing that reports home, and no models from a hub.
os.environ.update(
    AGNO_TELEMETRY="false",
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

from cagent_session import Gateway, instrument, session_scope, uninstrument
from cagent_session.integrations import threads
from cagent_session.integrations.threads import carry_session
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


#: By test module, how many of the model's calls were right, in a wrong session, and in none.
_counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
_failed: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.add(Path(report.location[0]).stem)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("calls of the model, without the tests of what is lost")
    for module, count in sorted(_counts.items()):
        total = sum(count.values())
        terminalreporter.line(
            f"{module:24}{total:6} calls{count['right']:6} right"
            f"{count['wrong']:6} wrong{count['unattributed']:6} unattributed"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write into the page what was tested with which version, if tox -e pages asks for it."""
    if "WRITE_PAGES" not in os.environ:
        return
    passed = {item.path.stem for item in session.items} - _failed
    today = datetime.datetime.now(datetime.timezone.utc).date()
    page.write(
        {
            framework: f"{importlib.metadata.version(distribution)} ({today})"
            for framework, (distribution, module) in page.TESTED.items()
            if module in passed
        }
    )


@pytest.fixture
def unchecked_model() -> Iterator[Model]:
    """For tests of what a careless setup loses."""
    with Model() as model:
        yield model


@pytest.fixture
def model(unchecked_model: Model, request: pytest.FixtureRequest) -> Iterator[Model]:
    """Checks in the end that every call came in the session that it was made for."""
    yield unchecked_model
    for call in unchecked_model.calls:
        kind = "right" if call.is_right else "wrong" if call.session_id else "unattributed"
        _counts[request.path.stem][kind] += 1
    assert unchecked_model.wrong == []


@pytest.fixture
def gateway(unchecked_model: Model) -> Gateway:
    return Gateway(unchecked_model.origin, forward=FORWARD, parent_header=PARENT_HEADER)


@pytest.fixture
def run_section(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RecordingGateway]]:
    """Runs a section of the page, without the two lines but where they are in the snippets."""
    monkeypatch.setenv("GOOGLE_API_KEY", "key-of-the-gateway")
    threads._switch.put_for_good(False)
    uninstrument()
    yield page.run
    threads._switch.put_for_good(False)
    uninstrument()


@pytest.fixture(params=["instrument", "by hand"])
def is_instrumented(
    request: pytest.FixtureRequest, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> Iterator[bool]:
    """Whether a framework's own clients go to the gateway, or the test's way is to wire them."""
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-gateway")
    with carry_session():
        if request.param == "by hand":
            monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
            yield False
            return
        monkeypatch.setenv("OPENAI_BASE_URL", gateway.endpoint("v1"))
        with instrument(gateway):
            yield True


@pytest.fixture
def two_lines(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two lines at the top of the page; the environment says where the gateway is."""
    for name in ("OPENAI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, "key-of-the-gateway")
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_BASE_URL"):
        monkeypatch.setenv(name, gateway.endpoint("v1"))
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", gateway.endpoint(""))
    with instrument(gateway), carry_session():
        yield


@pytest.fixture
def run_at_once(run: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Runs a coroutine function for several sessions at once, each time in that session."""

    async def in_session(work: Callable[[str], Coroutine[Any, Any, Any]], session_id: str) -> Any:
        with session_scope(session_id):
            return await work(session_id)

    async def all_of(work: Callable[[str], Coroutine[Any, Any, Any]], ids: tuple[str, ...]) -> Any:
        return await asyncio.gather(*(in_session(work, session_id) for session_id in ids))

    return lambda work, *session_ids: run(all_of(work, session_ids))
