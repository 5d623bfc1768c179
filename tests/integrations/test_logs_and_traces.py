"""The session in logs and on spans."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import logging.handlers
import queue
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import structlog
from loguru import logger as loguru_logger
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from support import pages, services
from support.wire import Server, redirect

from cagent_session import (
    Gateway,
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    session_scope,
)
from cagent_session.integrations.asgi import SessionMiddleware
from cagent_session.integrations.logging import SessionIDFilter
from cagent_session.integrations.structlog import add_session_id
from cagent_session.integrations.threads import carry_session

FORWARD = "https://api.openai.com/v1"


@pytest.fixture
def logger():
    logger = logging.getLogger("test_logs")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers.clear()


def json_handler(stream: io.StringIO, **options) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.addFilter(SessionIDFilter(**options))
    handler.setFormatter(logging.Formatter('{"m": "%(message)s", "session": "%(session_id)s"}'))
    return handler


class TestLogging:
    def test_session_is_on_every_record(self, logger):
        stream = io.StringIO()
        logger.addHandler(json_handler(stream))
        logger.info("before")
        with session_scope("s1"):
            logger.getChild("child").info("inside")
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert lines == [{"m": "before", "session": "-"}, {"m": "inside", "session": "s1"}]

    def test_default_outside_every_session_can_be_chosen(self, logger):
        stream = io.StringIO()
        logger.addHandler(json_handler(stream, default="none"))
        logger.info("x")
        assert json.loads(stream.getvalue())["session"] == "none"

    def test_record_keeps_its_session_through_a_queue(self, logger):
        stream, records = io.StringIO(), queue.SimpleQueue()
        to_queue = logging.handlers.QueueHandler(records)
        to_queue.addFilter(SessionIDFilter())
        logger.addHandler(to_queue)
        listener = logging.handlers.QueueListener(records, json_handler(stream))
        listener.start()
        with session_scope("s1"):
            logger.info("x")
        listener.stop()
        assert json.loads(stream.getvalue())["session"] == "s1"

    def test_filter_on_the_handler_of_the_listener_is_too_late(self, logger):
        """Why the page puts it on the QueueHandler."""
        stream, records = io.StringIO(), queue.SimpleQueue()
        logger.addHandler(logging.handlers.QueueHandler(records))
        listener = logging.handlers.QueueListener(records, json_handler(stream))
        listener.start()
        with session_scope("s1"):
            logger.info("x")
        listener.stop()
        assert json.loads(stream.getvalue())["session"] == "-"

    def test_logging_configuration_of_the_page_shows_the_session(self, monkeypatch, capsys):
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])
        monkeypatch.setattr(root, "level", root.level)
        (snippet,) = pages.snippets("integrations.md", "Logging")
        exec(compile(snippet, "page", "exec"), {})
        logging.getLogger("configured").info("before")
        with session_scope("s1"):
            logging.getLogger("configured").info("inside")
        lines = [line.split()[2:] for line in capsys.readouterr().err.splitlines()]
        assert lines == [["-", "before"], ["s1", "inside"]]


class TestLoguru:
    def test_loguru_patcher_of_the_page_shows_the_session(self, capsys):
        (snippet,) = pages.snippets("integrations.md", "loguru")
        try:
            exec(compile(snippet, "page", "exec"), {})
            loguru_logger.info("before")
            with session_scope("s1"):
                loguru_logger.info("inside")
                loguru_logger.bind(session_id="mine").info("own")
            loguru_logger.complete()
            lines = [line.split()[1:] for line in capsys.readouterr().err.splitlines()]
        finally:
            loguru_logger.remove()
            loguru_logger.configure(patcher=lambda record: None)
        assert lines == [["-", "before"], ["s1", "inside"], ["mine", "own"]]


class TestStructlog:
    def test_session_is_in_every_event(self):
        stream = io.StringIO()
        log = structlog.wrap_logger(
            structlog.PrintLogger(stream),
            processors=[add_session_id, structlog.processors.JSONRenderer()],
        )
        log.info("before")
        with session_scope("s1"):
            log.info("inside")
            log.info("own", session_id="mine")
        events = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert events == [
            {"event": "before"},
            {"event": "inside", "session_id": "s1"},
            {"event": "own", "session_id": "mine"},
        ]


class TestOpenTelemetry:
    def test_session_is_on_the_spans_that_start_in_it(self, spans):
        tracer = spans.provider.get_tracer("test")
        with tracer.start_as_current_span("outside"), session_scope("s1"):
            with tracer.start_as_current_span("inside"):
                pass
            with SessionThreadPoolExecutor() as pool:
                pool.submit(lambda: tracer.start_span("thread").end()).result()
        found = {span.name: dict(span.attributes) for span in spans.get_finished_spans()}
        of_session = {"session.id": "s1", "gen_ai.conversation.id": "s1"}
        assert found == {"outside": {}, "inside": of_session, "thread": of_session}
        by_name = {span.name: span for span in spans.get_finished_spans()}
        assert by_name["thread"].parent.span_id == by_name["outside"].context.span_id

    def test_attributes_that_a_span_is_started_with_are_kept(self, spans):
        tracer = spans.provider.get_tracer("test")
        with session_scope("s1"):
            for name in ("session.id", "gen_ai.conversation.id"):
                tracer.start_span(name, attributes={name: "mine", "other": 1}).end()
            with session_scope("s2"), tracer.start_as_current_span("later") as span:
                span.set_attribute("session.id", "mine")
        found = {span.name: dict(span.attributes) for span in spans.get_finished_spans()}
        assert found == {
            "session.id": {"session.id": "mine", "other": 1, "gen_ai.conversation.id": "s1"},
            "gen_ai.conversation.id": {
                "session.id": "s1",
                "other": 1,
                "gen_ai.conversation.id": "mine",
            },
            "later": {"session.id": "mine", "gen_ai.conversation.id": "s2"},
        }

    def test_instrumentation_of_threads_carries_the_span_and_no_session(self, spans):
        def see():
            return trace.get_current_span(), current_session_id()

        tracer = spans.provider.get_tracer("test")
        namespace = {"bind_session": bind_session}
        (snippet,) = pages.snippets("integrations.md", "OpenTelemetry")
        try:
            exec(compile(snippet, "page", "exec"), namespace)
            with session_scope("s1"), tracer.start_as_current_span("outside") as span:
                with ThreadPoolExecutor() as pool:
                    assert pool.submit(see).result() == (span, None)
                (bound,) = namespace["call_tools"]([see])
                assert bound.result() == (span, "s1")
        finally:
            ThreadingInstrumentor().uninstrument()

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_carry_session_and_instrumentation_of_threads_carry_both(self, spans, ours_first):
        def see():
            return trace.get_current_span(), current_session_id()

        tracer = spans.provider.get_tracer("test")
        with contextlib.ExitStack() as undo:
            if ours_first:
                undo.enter_context(carry_session())
            ThreadingInstrumentor().instrument()
            undo.callback(ThreadingInstrumentor().uninstrument)
            if not ours_first:
                undo.enter_context(carry_session())
            undo.enter_context(session_scope("s1"))
            span = undo.enter_context(tracer.start_as_current_span("outside"))
            pool = undo.enter_context(ThreadPoolExecutor())
            assert pool.submit(see).result() == (span, "s1")

    @pytest.mark.parametrize("outermost", [True, False])
    def test_span_of_a_request_has_the_session_if_our_middleware_is_outside(self, spans, outermost):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        def traced(app):
            return OpenTelemetryMiddleware(app, tracer_provider=spans.provider)

        app = SessionMiddleware(traced(app)) if outermost else traced(SessionMiddleware(app))
        with services.uvicorn(app, lifespan="off") as port:
            headers = {"X-Cagent-Session-Id": "s1"}
            requests.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=10)
        (served,) = (span for span in spans.get_finished_spans() if span.parent is None)
        assert served.attributes.get("session.id") == ("s1" if outermost else None)

    def test_request_has_traceparent_and_session_under_the_instrumentation_of_requests(
        self, spans, server: Server
    ):
        RequestsInstrumentor().instrument(tracer_provider=spans.provider)
        try:
            with requests.Session() as http, session_scope("s1"):
                gateway = Gateway(server.origin, forward=FORWARD)
                gateway.mount(http)
                assert http.get(gateway.endpoint("x")).status_code == 200
        finally:
            RequestsInstrumentor().uninstrument()
        (arrived,) = server.arrived
        (span,) = spans.get_finished_spans()
        assert arrived.session_id == "s1"
        assert f"{span.context.trace_id:032x}" in arrived.get("traceparent")
        assert span.attributes["session.id"] == "s1"

    def test_baggage_follows_a_redirect_and_the_session_does_not(self, spans):
        """The fault that this package exists not to have, side by side."""
        RequestsInstrumentor().instrument(tracer_provider=spans.provider)
        token = context.attach(baggage.set_baggage("session.id", "s1"))
        try:
            with Server() as stranger, Server(lambda r: redirect(302, stranger.origin)) as server:
                with requests.Session() as http, session_scope("s1"):
                    Gateway(server.origin, forward=FORWARD).mount(http)
                    http.get(server.origin)
                (arrived,) = stranger.arrived
        finally:
            context.detach(token)
            RequestsInstrumentor().uninstrument()
        assert "s1" in arrived.get("baggage")
        assert arrived.identifiers == {}
