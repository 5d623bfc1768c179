"""Traces of services, and where their sessions are shown: Arize Phoenix."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from wsgiref.util import setup_testing_defaults

import openai
import pytest
import requests
from openinference.instrumentation import using_session
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ASGITraces
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as WSGITraces
from support.pages import snippets
from support.services import answers, free_port, running, wait_until

from cagent_session import Gateway, SessionThreadPoolExecutor, session_scope
from cagent_session.integrations import asgi, httpx2, wsgi

pytestmark = pytest.mark.filterwarnings("default")
FORWARD = "https://api.openai.com/v1"
MESSAGES = [{"role": "user", "content": "one two three"}]


class TestOrderOfMiddleware:
    """Ours belongs outside: the span of a request is to start in its session."""

    def sessions(self, spans):
        return {span.attributes.get("session.id") for span in spans.get_finished_spans()}

    def call_wsgi(self, app):
        environ = {"HTTP_X_CAGENT_SESSION_ID": "s1"}
        setup_testing_defaults(environ)
        body = app(environ, lambda status, headers, exc_info=None: None)
        assert b"".join(body) == b"x"
        body.close()

    def test_span_of_a_wsgi_request_has_the_session_if_ours_is_outside(self, spans):
        def app(environ, start_response):
            start_response("200 OK", [])
            yield b"x"

        self.call_wsgi(wsgi.SessionMiddleware(WSGITraces(app, tracer_provider=spans.provider)))
        assert self.sessions(spans) == {"s1"}
        spans.clear()
        self.call_wsgi(WSGITraces(wsgi.SessionMiddleware(app), tracer_provider=spans.provider))
        assert self.sessions(spans) == {None}

    def call_asgi(self, app):
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": [(b"x-cagent-session-id", b"s1")],
        }

        async def nothing(*_):
            return {"type": "http.request"}

        asyncio.run(app(scope, nothing, nothing))

    def test_span_of_an_asgi_request_has_the_session_if_ours_is_outside(self, spans):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

        self.call_asgi(asgi.SessionMiddleware(ASGITraces(app, tracer_provider=spans.provider)))
        assert self.sessions(spans) == {"s1"}
        spans.clear()
        self.call_asgi(ASGITraces(asgi.SessionMiddleware(app), tracer_provider=spans.provider))
        assert None in self.sessions(spans)


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory):
    """Phoenix in a process of its own, with an empty database; gives its URL."""
    folder = tmp_path_factory.mktemp("phoenix")
    port = free_port()
    environment = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PYTHONWARNINGS": "default",
    }
    command = [sys.executable, "-m", "phoenix.server.main", "serve"]
    log = folder / "log"
    with running(command, log, cwd=folder, env=os.environ | environment) as process:
        # It imports for a long time, above all on a machine that has other work.
        wait_until(lambda: answers(port), process, log, seconds=300)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def provider(phoenix, monkeypatch, request):
    """The provider of the page, while the SDK is instrumented; in a project of its own."""
    project = f"openinference.project.name={request.node.name}"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", project)
    (snippet,) = snippets("integrations.md", "Arize Phoenix")
    assert "http://127.0.0.1:6006" in snippet
    page: dict = {}
    exec(snippet.replace("http://127.0.0.1:6006", phoenix), page)
    yield page["provider"]
    OpenAIInstrumentor().uninstrument()
    page["provider"].shutdown()


@pytest.fixture
def shown(phoenix, provider, request):
    """What Phoenix shows of each session, once it has so many traces in sessions."""

    def sessions(count):
        assert provider.force_flush()
        url = f"{phoenix}/v1/projects/{request.node.name}/sessions"
        deadline = time.monotonic() + 30
        while True:
            answer = requests.get(url, timeout=20)
            found = answer.json()["data"] if answer.ok else []  # at first there is no project
            if sum(len(session["traces"]) for session in found) >= count:
                return {session["session_id"]: session for session in found}
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    return sessions


@pytest.fixture
def client(recording_gateway):
    gateway = Gateway(recording_gateway.url, forward=FORWARD)
    http = openai.DefaultHttpxClient(transport=httpx2.GatewayTransport(gateway))
    with openai.OpenAI(api_key="x", base_url=gateway.endpoint("v1"), http_client=http) as client:
        yield client


def ask(client, **options):
    return client.chat.completions.create(model="m", messages=MESSAGES, **options)


def test_phoenix_shows_the_sessions(shown, client, provider, recording_gateway):
    """Each with the traces that it has, and with the tokens that the gateway bills it for."""
    tracer = provider.get_tracer("agent")
    ask(client)
    for number in range(1, 4):
        with session_scope(f"s{number}"):
            for _ in range(number):
                ask(client)
            stream = ask(client, stream=True, stream_options={"include_usage": True})
            with tracer.start_as_current_span("turn"), SessionThreadPoolExecutor() as pool:
                list(pool.map(lambda _: ask(client), range(3)))
        with session_scope("of-the-reader"):
            for _ in stream:
                pass
    found = shown(12)
    bill = recording_gateway.sessions
    for number in range(1, 4):
        session = found.pop(f"s{number}")
        assert len(session["traces"]) == number + 2
        assert session["token_count_prompt"] == bill[f"s{number}"].prompt_tokens
        assert session["token_count_completion"] == bill[f"s{number}"].completion_tokens
    assert found == {}


def test_a_trace_of_two_sessions_is_shown_in_one(shown, client, provider):
    """That of the span that ends first; so a sub-agent's trace is to be its own."""
    tracer = provider.get_tracer("agent")
    for name, options in (("one", {}), ("two", {"context": Context()})):
        with session_scope(f"main-{name}"), tracer.start_as_current_span("turn"):
            span = tracer.start_as_current_span("sub-agent", **options)
            with session_scope(f"sub-{name}"), span:
                ask(client)
            ask(client)
    found = shown(3)
    assert {name: len(session["traces"]) for name, session in found.items()} == {
        "sub-one": 1,
        "main-two": 1,
        "sub-two": 1,
    }


def test_session_set_by_openinference_is_kept(shown, client):
    with session_scope("s1"), using_session("theirs"):
        ask(client)
    assert set(shown(1)) == {"theirs"}
