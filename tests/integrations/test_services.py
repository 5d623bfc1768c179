"""Inbound sessions: real servers, real connections, hostile values."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
import threading
import time
import types
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest
import requests
import uvicorn
import waitress
import waitress.wasyncore

from cagent_session import Gateway, current_session_id, parent_session_id, session_scope
from cagent_session.integrations import asgi, wsgi

FORWARD = "https://api.openai.com/v1"
MALFORMED = ["a b", "x" * 257, "ü", "", "a\tb"]


@pytest.fixture
def call_out(recording_gateway):
    """What a service does with each request: an outbound call through the gateway."""
    gateway = Gateway(recording_gateway.url, forward=FORWARD)

    def call(path: str) -> str:
        with requests.Session() as session:
            gateway.mount(session)
            return str(session.get(gateway.endpoint(path)).json()["session_id"])

    return call


class TestWSGI:
    @pytest.fixture
    def url(self, call_out):
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            if environ["PATH_INFO"] == "/stream":
                return stream()
            if environ["PATH_INFO"] == "/leak":
                session_scope("leaked").__enter__()
            return [call_out("whole").encode()]

        def stream():
            for number in range(3):
                yield call_out(f"stream-{number}").encode() + b" "

        # waitress has no way to end server.run() from another thread, so its loop is driven here.
        watched: dict = {}
        server = waitress.create_server(
            wsgi.SessionMiddleware(app), map=watched, host="127.0.0.1", port=0, threads=2
        )
        ended = threading.Event()

        def run():
            while not ended.is_set():
                waitress.wasyncore.loop(timeout=0.05, map=watched, count=1)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{server.effective_port}"
        ended.set()
        thread.join(10)
        assert not thread.is_alive()
        server.task_dispatcher.shutdown()
        waitress.wasyncore.close_all(watched)

    @pytest.mark.parametrize("path", ["/", "/stream"])
    def test_an_inbound_session_reaches_an_outbound_call(self, url, recording_gateway, path):
        headers = {"X-Cagent-Session-Id": "s1"}
        text = requests.get(url + path, headers=headers, timeout=10).text
        assert set(text.split()) == {"s1"}
        assert {request.session_id for request in recording_gateway.requests} == {"s1"}

    def test_requests_on_one_connection_do_not_see_each_other(self, url):
        with requests.Session() as session:
            texts = []
            for session_id in ("s1", None, "s2", None):
                headers = {"X-Cagent-Session-Id": session_id}
                texts.append(session.get(url, headers=headers, timeout=10).text)
        assert texts == ["s1", "None", "s2", "None"]

    def test_two_sessions_in_one_request_are_none(self, url, caplog):
        """The server joins the headers, and what it makes of them must not be a third session."""
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        connection.putrequest("GET", "/")
        for session_id in ("s1", "s2"):
            connection.putheader("X-Cagent-Session-Id", session_id)
        with caplog.at_level(logging.WARNING, "cagent_session"):
            connection.endheaders()
            assert connection.getresponse().read() == b"None"
        connection.close()
        assert len([record for record in caplog.records if record.name == "cagent_session"]) == 1

    def test_nothing_stays_behind_on_the_threads(self, url):
        with requests.Session() as session:
            for _ in range(4):
                session.get(url + "/leak", headers={"X-Cagent-Session-Id": "s1"}, timeout=10)
                assert session.get(url, timeout=10).text == "None"


def call_wsgi(app, **environ):
    setup_testing_defaults(environ)
    return app(environ, lambda status, headers: None)


class TestTheWSGIMiddleware:
    @pytest.mark.parametrize("value", [*MALFORMED, "s1,s2", "s1, s2", "s1,"])
    def test_malformed_values_are_ignored_with_one_warning(self, value, caplog):
        app = wsgi.SessionMiddleware(lambda environ, start: [str(current_session_id()).encode()])
        with caplog.at_level(logging.WARNING):
            assert call_wsgi(app, HTTP_X_CAGENT_SESSION_ID=value) == [b"None"]
        (record,) = caplog.records
        assert record.name == "cagent_session"
        assert record.getMessage().isprintable()

    def test_trusted(self):
        def trusted(environ):
            return environ["REMOTE_ADDR"] == "10.0.0.1"

        def inner(environ, start):
            return [str(current_session_id()).encode()]

        app = wsgi.SessionMiddleware(inner, trusted=trusted)
        environ = {"HTTP_X_CAGENT_SESSION_ID": "s1"}
        assert call_wsgi(app, REMOTE_ADDR="10.0.0.1", **environ) == [b"s1"]
        assert call_wsgi(app, REMOTE_ADDR="10.0.0.2", **environ) == [b"None"]
        assert call_wsgi(app, REMOTE_ADDR="10.0.0.2") == [b"None"]

    def test_iterating_and_closing_are_covered_and_the_server_is_not(self):
        seen = []

        class Body:
            def __iter__(self):
                return self

            def __next__(self):
                seen.append(("next", current_session_id()))
                if len(seen) > 2:
                    raise StopIteration
                return b"x"

            def close(self):
                seen.append(("close", current_session_id()))

        app = wsgi.SessionMiddleware(lambda environ, start: Body())
        with session_scope("of-the-server"):
            body = call_wsgi(app, HTTP_X_CAGENT_SESSION_ID="s1")
            for _ in body:
                assert current_session_id() == "of-the-server"
            body.close()
            assert current_session_id() == "of-the-server"
        assert seen == [("next", "s1")] * 3 + [("close", "s1")]

    def test_a_body_that_is_never_begun_is_closed(self):
        closed = []

        class Body:
            def __iter__(self):
                raise AssertionError("never begun")

            def close(self):
                closed.append(current_session_id())

        body = call_wsgi(
            wsgi.SessionMiddleware(lambda environ, start: Body()), HTTP_X_CAGENT_SESSION_ID="s1"
        )
        body.close()
        assert closed == ["s1"]

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_a_list_that_does_something_of_its_own(self, kind):
        seen = []

        class Chunks(kind):
            def close(self):
                seen.append(current_session_id())

        app = wsgi.SessionMiddleware(lambda environ, start: Chunks([b"x"]))
        body = call_wsgi(app, HTTP_X_CAGENT_SESSION_ID="s1")
        assert list(body) == [b"x"]
        body.close()
        assert seen == ["s1"]

    def test_an_iterator_without_close(self):
        body = call_wsgi(wsgi.SessionMiddleware(lambda environ, start: iter([b"x"])))
        assert list(body) == [b"x"]
        body.close()

    def test_generators_keep_a_scope_of_their_own(self):
        def app(environ, start):
            with session_scope("inner"):
                yield current_session_id()
                yield current_session_id()

        body = call_wsgi(wsgi.SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1")
        seen = []
        for session_id in body:
            seen.append((session_id, current_session_id()))
        body.close()
        assert seen == [("inner", None)] * 2

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_a_half_read_body_is_closed_in_the_scopes_that_it_had_open(self, steps):
        ended = []

        def app(environ, start):
            try:
                yield b"x"
                with session_scope("inner"):
                    try:
                        yield b"x"
                    finally:
                        ended.append((current_session_id(), parent_session_id()))
            finally:
                ended.append((current_session_id(), parent_session_id()))

        with session_scope("of-the-server"):
            body = call_wsgi(wsgi.SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1")
            chunks = iter(body)
            for _ in range(steps):
                next(chunks)
            body.close()
            assert current_session_id() == "of-the-server"
        assert ended == [[], [("s1", None)], [("inner", "s1"), ("s1", None)]][steps]

    def test_what_the_application_left_open_is_open_in_its_body(self):
        def app(environ, start):
            session_scope("inner").__enter__()
            return body()

        def body():
            yield current_session_id()

        seen = list(call_wsgi(wsgi.SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1"))
        assert seen == ["inner"]
        assert current_session_id() is None

    def test_files_stay_files(self, tmp_path):
        (tmp_path / "x").write_bytes(b"content")
        with (tmp_path / "x").open("rb") as file:
            app = wsgi.SessionMiddleware(lambda environ, start: FileWrapper(file))
            body = call_wsgi(app, **{"wsgi.file_wrapper": FileWrapper})
            assert isinstance(body, FileWrapper)
            body = call_wsgi(app)
            assert b"".join(body) == b"content"
            body.close()

    def test_errors_reach_the_server_and_leave_nothing_behind(self):
        def app(environ, start):
            session_scope("leaked").__enter__()
            raise KeyError

        with pytest.raises(KeyError):
            call_wsgi(wsgi.SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1")
        assert current_session_id() is None


@contextlib.contextmanager
def serve(app):
    """A real uvicorn on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


class TestASGI:
    @pytest.fixture
    def port(self, call_out):
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                assert (await receive())["type"] == "lifespan.startup"
                assert current_session_id() is None
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for number in range(3):
                text = await asyncio.to_thread(call_out, f"stream-{number}")
                await send(
                    {"type": "http.response.body", "body": f"{text} ".encode(), "more_body": True}
                )
            await send({"type": "http.response.body"})

        with serve(asgi.SessionMiddleware(app)) as port:
            yield port

    def test_an_inbound_session_reaches_an_outbound_call(self, port, recording_gateway):
        headers = {"X-Cagent-Session-Id": "s1"}
        text = requests.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=20).text
        assert text.split() == ["s1"] * 3
        assert {request.session_id for request in recording_gateway.requests} == {"s1"}

    def test_requests_on_one_connection_do_not_see_each_other(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        texts = []
        for session_id in ("s1", None, "s2"):
            headers = {"X-Cagent-Session-Id": session_id} if session_id else {}
            connection.request("GET", "/", headers=headers)
            texts.append(connection.getresponse().read().split()[0])
        connection.close()
        assert texts == [b"s1", b"None", b"s2"]


def call_asgi(app, *values, **scope):
    headers = [(b"x-cagent-session-id", value) for value in values]
    asyncio.run(app({"type": "http", "headers": headers, **scope}, None, None))


class TestTheASGIMiddleware:
    @pytest.fixture
    def seen(self):
        return []

    @pytest.fixture
    def inner(self, seen):
        async def app(scope, receive, send):
            seen.append(current_session_id())

        return app

    @pytest.mark.parametrize("values", [*[(v.encode(),) for v in MALFORMED], (b"s1", b"s2")])
    def test_malformed_values_are_ignored_with_one_warning(self, values, inner, seen, caplog):
        with caplog.at_level(logging.WARNING, "cagent_session"):
            call_asgi(asgi.SessionMiddleware(inner), *values)
        assert seen == [None]
        (record,) = [record for record in caplog.records if record.name == "cagent_session"]
        assert record.getMessage().isprintable()

    def test_trusted(self, inner, seen):
        app = asgi.SessionMiddleware(inner, trusted=lambda scope: scope["client"] == "me")
        call_asgi(app, b"s1", client="me")
        call_asgi(app, b"s1", client="you")
        call_asgi(app, client="me")
        assert seen == ["s1", None, None]

    def test_websockets_and_everything_else(self, inner, seen):
        app = asgi.SessionMiddleware(inner)
        call_asgi(app, b"s1", type="websocket")
        call_asgi(app, b"s1", type="lifespan")
        assert seen == ["s1", None]

    def test_driven_by_hand_its_session_is_not_current_between_the_steps(self):
        """As a server may that drives the coroutines of several requests itself."""

        @types.coroutine
        def pause():
            yield

        async def app(scope, receive, send):
            for _ in range(2):
                scope["seen"].append(current_session_id())
                await pause()
                with session_scope("inner"):
                    await pause()
                    scope["seen"].append(current_session_id())

        def scope_of(session_id):
            return {
                "type": "http",
                "headers": [(b"x-cagent-session-id", session_id)],
                "seen": [],
            }

        scopes = [scope_of(b"s1"), scope_of(b"s2")]
        with session_scope("of-the-server"):
            served = [asgi.SessionMiddleware(app)(scope, None, None) for scope in scopes]
            for _ in range(4):
                for steps in served:
                    steps.send(None)
                    assert current_session_id() == "of-the-server"
            for steps in served:
                with pytest.raises(StopIteration):
                    steps.send(None)
                assert current_session_id() == "of-the-server"
        assert [scope["seen"] for scope in scopes] == [["s1", "inner"] * 2, ["s2", "inner"] * 2]

    def test_awaited_directly_it_leaves_nothing_behind(self):
        async def leaking(scope, receive, send):
            session_scope("leaked").__enter__()

        async def main():
            app = asgi.SessionMiddleware(leaking)
            await app({"type": "http", "headers": []}, None, None)
            return current_session_id()

        assert asyncio.run(main()) is None
