"""The WSGI middleware: waitress, real connections, hostile values."""

from __future__ import annotations

import http.client
import io
import itertools
import logging
from wsgiref.handlers import SimpleHandler
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest
import requests
from support import services

from cagent_session import (
    current_session_id,
    parent_session_id,
    root_session_id,
    session_scope,
)
from cagent_session.integrations.wsgi import SessionMiddleware

MALFORMED = ["a b", "x" * 257, "ü", "", "a\tb"]


class TestOnWaitress:
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

        with services.waitress(SessionMiddleware(app)) as port:
            yield f"http://127.0.0.1:{port}"

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

    def test_request_with_two_session_headers_is_in_no_session(self, url, caplog):
        """The server joins the headers, and what it makes of them must not be a third session."""
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        connection.putrequest("GET", "/")
        for session_id in ("s1", "s2"):
            connection.putheader("X-Cagent-Session-Id", session_id)
        with caplog.at_level(logging.WARNING, "cagent_session"):
            connection.endheaders()
            assert connection.getresponse().read() == b"None"
        connection.close()
        # Another warning says that the call through the gateway is in no session.
        received = [record for record in caplog.records if "received" in record.getMessage()]
        assert len(received) == 1

    def test_no_session_stays_behind_on_the_threads(self, url):
        with requests.Session() as session:
            for _ in range(4):
                session.get(url + "/leak", headers={"X-Cagent-Session-Id": "s1"}, timeout=10)
                assert session.get(url, timeout=10).text == "None"


def call_wsgi(app, **environ):
    setup_testing_defaults(environ)
    return app(environ, lambda status, headers: None)


def see_family(environ, start_response):
    return [current_session_id(), parent_session_id(), root_session_id()]


class TestSessionMiddleware:
    @pytest.mark.parametrize("value", [*MALFORMED, "s1,s2", "s1, s2", "s1,"])
    def test_malformed_values_are_ignored_with_one_warning(self, value, caplog):
        app = SessionMiddleware(lambda environ, start: [str(current_session_id()).encode()])
        with caplog.at_level(logging.WARNING):
            assert call_wsgi(app, HTTP_X_CAGENT_SESSION_ID=value) == [b"None"]
        (record,) = caplog.records
        assert record.name == "cagent_session"
        assert record.getMessage().isprintable()
        assert "X-Cagent-Session-Id came more than once, or " in record.getMessage()

    def test_configured_names_are_read_in_place_of_the_defaults(self):
        app = SessionMiddleware(
            see_family, session_header="X-LiteLLM-Session-Id", parent_header="x-parent"
        )
        environ = {"HTTP_X_LITELLM_SESSION_ID": "s1", "HTTP_X_PARENT": "main"}
        assert call_wsgi(app, **environ, HTTP_X_CAGENT_SESSION_ID="other") == ["s1", "main", "main"]
        assert call_wsgi(app, HTTP_X_CAGENT_SESSION_ID="s1") == [None] * 3
        assert call_wsgi(app, HTTP_X_PARENT="main") == [None] * 3

    def test_parent_and_root_are_not_read_by_default(self):
        environ = {
            "HTTP_X_CAGENT_SESSION_ID": "s1",
            "HTTP_X_CAGENT_PARENT_SESSION_ID": "main",
            "HTTP_X_CAGENT_ROOT_SESSION_ID": "root",
        }
        assert call_wsgi(SessionMiddleware(see_family), **environ) == ["s1", None, "s1"]
        app = SessionMiddleware(see_family, parent_header="X-Cagent-Parent-Session-Id")
        assert call_wsgi(app, **environ) == ["s1", "main", "main"]

    @pytest.mark.parametrize("value", [*MALFORMED, "main,other"])
    def test_a_malformed_parent_is_ignored_with_one_warning(self, value, caplog):
        app = SessionMiddleware(see_family, parent_header="X-Parent")
        with caplog.at_level(logging.WARNING):
            found = call_wsgi(app, HTTP_X_CAGENT_SESSION_ID="s1", HTTP_X_PARENT=value)
        assert found == ["s1", None, "s1"]
        assert [record.name for record in caplog.records] == ["cagent_session"]
        assert "X-Parent came more than once, or " in caplog.messages[0]

    @pytest.mark.parametrize(
        "names",
        [
            {"session_header": "Authorization"},
            {"session_header": "X-Cagent-Forward"},
            {"session_header": "traceparent"},
            {"session_header": "X-Cagent-Root-Session-Id"},
            {"parent_header": "baggage"},
            {"session_header": "not a name"},
            {"session_header": ""},
            {"parent_header": "Host"},
            {"parent_header": "X-Cagent-Session-Id"},
            {"session_header": "X-Session", "parent_header": "x-session"},
        ],
    )
    def test_names_with_a_meaning_of_their_own_are_refused(self, names):
        with pytest.raises(ValueError, match=r"session_header|parent_header"):
            SessionMiddleware(see_family, **names)

    def test_an_untrusted_client_names_no_session(self, caplog):
        app = SessionMiddleware(see_family, parent_header="X-Parent", trusted=lambda environ: False)
        with caplog.at_level(logging.DEBUG):
            assert call_wsgi(app, HTTP_X_CAGENT_SESSION_ID="s1", HTTP_X_PARENT="") == [None] * 3
            assert call_wsgi(app) == [None] * 3
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("cagent_session", logging.DEBUG)
        assert record.getMessage() == "ignored X-Cagent-Session-Id, as trusted= refused the request"

    def test_trusted_that_is_async_is_refused(self):
        async def trusted(environ):
            return False

        with pytest.raises(TypeError, match="trusted must return a bool, and not be async"):
            SessionMiddleware(see_family, trusted=trusted)

    def test_trusted_is_asked_about_the_environ(self):
        def trusted(environ):
            return environ["REMOTE_ADDR"] == "10.0.0.1"

        def inner(environ, start):
            return [str(current_session_id()).encode()]

        app = SessionMiddleware(inner, trusted=trusted)
        environ = {"HTTP_X_CAGENT_SESSION_ID": "s1"}
        assert call_wsgi(app, REMOTE_ADDR="10.0.0.1", **environ) == [b"s1"]
        assert call_wsgi(app, REMOTE_ADDR="10.0.0.2", **environ) == [b"None"]
        assert call_wsgi(app, REMOTE_ADDR="10.0.0.2") == [b"None"]

    def test_iterating_and_closing_run_in_the_session_and_the_server_does_not(self):
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

        app = SessionMiddleware(lambda environ, start: Body())
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
            SessionMiddleware(lambda environ, start: Body()), HTTP_X_CAGENT_SESSION_ID="s1"
        )
        body.close()
        assert closed == ["s1"]

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_subclass_of_a_list_is_closed_in_the_session(self, kind):
        seen = []

        class Chunks(kind):
            def close(self):
                seen.append(current_session_id())

        app = SessionMiddleware(lambda environ, start: Chunks([b"x"]))
        body = call_wsgi(app, HTTP_X_CAGENT_SESSION_ID="s1")
        assert list(body) == [b"x"]
        body.close()
        assert seen == ["s1"]

    def test_body_with_a_length_keeps_it(self):
        """Servers make the Content-Length of one chunk, and send others in chunks."""

        class Chunks(list):
            def close(self): ...

        def app(environ, start):
            start("200 OK", [])
            return Chunks([b"content"])

        answered = io.BytesIO()
        environ = {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1"}
        SimpleHandler(io.BytesIO(), answered, io.StringIO(), environ).run(SessionMiddleware(app))
        assert b"Content-Length: 7\r\n" in answered.getvalue()

    def test_iterator_without_close_is_accepted(self):
        body = call_wsgi(SessionMiddleware(lambda environ, start: iter([b"x"])))
        assert list(body) == [b"x"]
        body.close()

    def test_scope_of_a_generator_lasts_between_the_chunks(self):
        def app(environ, start):
            with session_scope("inner"):
                yield current_session_id()
                yield current_session_id()

        body = call_wsgi(SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1")
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
            body = call_wsgi(SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1")
            chunks = iter(body)
            for _ in range(steps):
                next(chunks)
            body.close()
            assert current_session_id() == "of-the-server"
        assert ended == [[], [("s1", None)], [("inner", "s1"), ("s1", None)]][steps]

    @pytest.mark.parametrize("close", [True, False])
    @pytest.mark.parametrize("kind", ["class", "map", "chain", "begun"])
    def test_a_body_that_is_dropped_ends_in_its_session(self, kind, close: bool):
        """As where the client goes away: not every iterable has a close() for the server."""
        ended = []

        class Body:
            def __iter__(self):
                try:
                    yield b"x"
                finally:
                    ended.append(current_session_id())

        def app(environ, start):
            chunks = iter(Body())
            if kind == "begun":  # the server asks for no more, for a HEAD request
                return itertools.chain([next(chunks)], chunks)
            kinds = {"class": Body(), "map": map(bytes, chunks), "chain": itertools.chain(chunks)}
            return kinds[kind]

        with session_scope("of-the-server"):
            body = call_wsgi(SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1")
            if kind != "begun":
                next(iter(body))
            if close:
                body.close()
            del body
        assert ended == ["s1"]

    def test_a_body_is_closed_once(self):
        """Its iterator may be the object that the server closes."""
        closed = []

        class Body:
            def __iter__(self):
                return self

            def __next__(self):
                return b"x"

            def close(self):
                closed.append(current_session_id())

        body = call_wsgi(
            SessionMiddleware(lambda environ, start: Body()), HTTP_X_CAGENT_SESSION_ID="s1"
        )
        next(iter(body))
        body.close()
        del body
        assert closed == ["s1"]

    def test_scope_left_open_by_the_application_is_open_in_its_body(self):
        def app(environ, start):
            session_scope("inner").__enter__()
            return body()

        def body():
            yield current_session_id()

        seen = list(call_wsgi(SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1"))
        assert seen == ["inner"]
        assert current_session_id() is None

    def test_file_wrapper_is_passed_on_as_it_is(self, tmp_path):
        (tmp_path / "x").write_bytes(b"content")
        with (tmp_path / "x").open("rb") as file:
            app = SessionMiddleware(lambda environ, start: FileWrapper(file))
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
            call_wsgi(SessionMiddleware(app), HTTP_X_CAGENT_SESSION_ID="s1")
        assert current_session_id() is None
