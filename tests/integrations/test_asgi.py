"""The ASGI middleware: uvicorn, real connections, hostile values."""

from __future__ import annotations

import asyncio
import gc
import http.client
import logging
import sys
import types
import weakref

import pytest
import requests
from support import services

from cagent_session import (
    current_session_id,
    parent_session_id,
    root_session_id,
    session_scope,
)
from cagent_session.integrations.asgi import SessionMiddleware

MALFORMED = ["a b", "x" * 257, "ü", "", "a\tb"]


class TestOnUvicorn:
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

        with services.uvicorn(SessionMiddleware(app), lifespan="on") as port:
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


class TestKeepAliveOnUvicorn:
    """asyncio's loop reads on, after it was paused, in the context of the request that resumed it.

    uvicorn pauses it while a body is large. The next request on the connection starts in a copy of
    that context. Python 3.15 reads on in the context of the connection.
    """

    def sessions(self, app, *session_ids):
        """What requests with large bodies on one connection give back."""
        with services.uvicorn(app) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            answers = []
            for session_id in session_ids:
                headers = {"X-Cagent-Session-Id": session_id} if session_id else {}
                connection.request("POST", "/", body=b"x" * 300_000, headers=headers)
                answers.append(connection.getresponse().read().decode())
            connection.close()
        return answers

    @staticmethod
    async def see(scope, receive, send):
        if scope["type"] == "http":
            while (await receive())["more_body"]:
                pass
            family = f"{current_session_id()} of {parent_session_id()}"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": family.encode()})

    def test_a_scope_without_the_middleware_leaks_into_the_next_request_before_python_3_15(self):
        async def app(scope, receive, send):
            body = {b"x-cagent-session-id": None} | dict(scope.get("headers", ()))
            if (session_id := body[b"x-cagent-session-id"]) is None:
                await self.see(scope, receive, send)
            else:
                with session_scope(session_id.decode()):
                    await self.see(scope, receive, send)

        found = self.sessions(app, "s1", None, "s2")
        if sys.version_info < (3, 15):
            assert found == ["s1 of None", "s1 of None", "s2 of s1"]
        else:
            assert found == ["s1 of None", "None of None", "s2 of None"]

    def test_the_middleware_serves_each_request_in_its_own_session(self):
        answers = self.sessions(SessionMiddleware(self.see), "s1", None, "s2", None)
        assert answers == ["s1 of None", "None of None", "s2 of None", "None of None"]

    def test_the_middleware_undoes_the_leak_of_a_scope_below_it(self):
        async def app(scope, receive, send):
            session_scope("of-the-application").__enter__()
            await self.see(scope, receive, send)

        answers = self.sessions(SessionMiddleware(app), "s1", None)
        assert answers == ["of-the-application of s1", "of-the-application of None"]

    def test_a_connection_does_not_collect_the_scopes_of_its_requests(self):
        alive = weakref.WeakSet()

        class Scope(session_scope):
            pass

        async def app(scope, receive, send):
            if scope["type"] == "http":
                inner = Scope("inner")
                alive.add(inner)
                with inner:
                    while (await receive())["more_body"]:
                        pass
                gc.collect()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": str(len(alive)).encode()})

        assert max(map(int, self.sessions(SessionMiddleware(app), *["s1"] * 10))) <= 3


def call_asgi(app, *values, headers=(), **scope):
    headers = [*((b"x-cagent-session-id", value) for value in values), *headers]
    asyncio.run(app({"type": "http", "headers": headers, **scope}, None, None))


class TestSessionMiddleware:
    @pytest.fixture
    def seen(self):
        return []

    @pytest.fixture
    def inner(self, seen):
        async def app(scope, receive, send):
            seen.append(current_session_id())

        return app

    @pytest.fixture
    def see_family(self, seen):
        async def app(scope, receive, send):
            seen.append((current_session_id(), parent_session_id(), root_session_id()))

        return app

    @pytest.mark.parametrize("values", [*[(v.encode(),) for v in MALFORMED], (b"s1", b"s2")])
    def test_malformed_values_are_ignored_with_one_warning(self, values, inner, seen, caplog):
        with caplog.at_level(logging.WARNING, "cagent_session"):
            call_asgi(SessionMiddleware(inner), *values)
        assert seen == [None]
        (record,) = [record for record in caplog.records if record.name == "cagent_session"]
        assert record.getMessage().isprintable()
        assert "X-Cagent-Session-Id came more than once, or " in record.getMessage()

    def test_configured_names_are_read_in_place_of_the_defaults(self, see_family, seen):
        app = SessionMiddleware(
            see_family, session_header="X-LiteLLM-Session-Id", parent_header="x-Parent"
        )
        session, parent = (b"X-litellm-session-id", b"s1"), (b"x-parent", b"main")
        call_asgi(app, b"other", headers=[session, parent])
        call_asgi(app, b"s1")
        call_asgi(app, headers=[parent])
        assert seen == [("s1", "main", "main"), (None, None, None), (None, None, None)]

    def test_parent_and_root_are_not_read_by_default(self, see_family, seen):
        headers = [(b"x-cagent-parent-session-id", b"main"), (b"x-cagent-root-session-id", b"root")]
        call_asgi(SessionMiddleware(see_family), b"s1", headers=headers)
        app = SessionMiddleware(see_family, parent_header="X-Cagent-Parent-Session-Id")
        call_asgi(app, b"s1", headers=headers)
        assert seen == [("s1", None, "s1"), ("s1", "main", "main")]

    @pytest.mark.parametrize("values", [*[(v.encode(),) for v in MALFORMED], (b"main", b"other")])
    def test_a_malformed_parent_is_ignored_with_one_warning(self, values, see_family, seen, caplog):
        app = SessionMiddleware(see_family, parent_header="X-Parent")
        with caplog.at_level(logging.WARNING, "cagent_session"):
            call_asgi(app, b"s1", headers=[(b"x-parent", value) for value in values])
        assert seen == [("s1", None, "s1")]
        (record,) = [record for record in caplog.records if record.name == "cagent_session"]
        assert "X-Parent came more than once, or " in record.getMessage()

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
    def test_names_with_a_meaning_of_their_own_are_refused(self, names, inner):
        with pytest.raises(ValueError, match=r"session_header|parent_header"):
            SessionMiddleware(inner, **names)

    def test_an_untrusted_client_names_no_session(self, see_family, seen, caplog):
        app = SessionMiddleware(see_family, parent_header="x-parent", trusted=lambda scope: False)
        with caplog.at_level(logging.DEBUG, "cagent_session"):
            call_asgi(app, b"s1", headers=[(b"x-parent", b"")])
            call_asgi(app)
        assert seen == [(None, None, None)] * 2
        (record,) = [record for record in caplog.records if record.name == "cagent_session"]
        assert record.levelno == logging.DEBUG
        assert record.getMessage() == "ignored X-Cagent-Session-Id, as trusted= refused the request"

    @pytest.mark.parametrize("trusted", [None, lambda scope: list(scope["headers"])])
    def test_headers_that_can_be_read_once_reach_the_application_whole(self, trusted):
        headers = [(b"a", b"1"), (b"x-cagent-session-id", b"s1"), (b"b", b"2")]
        seen = []

        async def app(scope, receive, send):
            seen.append((current_session_id(), list(scope["headers"])))

        for once in (iter(headers), (header for header in headers)):
            scope = {"type": "http", "headers": once}
            asyncio.run(SessionMiddleware(app, trusted=trusted)(scope, None, None))
        assert seen == [("s1", headers)] * 2

    def test_the_scope_of_the_server_is_passed_on_as_it_is(self):
        seen = []

        async def app(scope, receive, send):
            seen.append(scope)

        scopes = [{"type": "http", "headers": ((b"a", b"1"),)}, {"type": "http"}]
        for scope in scopes:
            asyncio.run(SessionMiddleware(app)(scope, None, None))
        assert all(found is scope for found, scope in zip(seen, scopes, strict=True))

    def test_trusted_that_is_async_is_refused(self, see_family):
        """What it returns counts as true, whatever it would return once awaited."""

        async def trusted(scope):
            return False

        with pytest.raises(TypeError, match="trusted must return a bool, and not be async"):
            SessionMiddleware(see_family, trusted=trusted)
        app = SessionMiddleware(see_family, trusted=lambda scope: trusted(scope))
        scope = {"type": "http", "headers": [(b"x-cagent-session-id", b"s1")]}
        with pytest.raises(TypeError, match="trusted must return a bool"):
            asyncio.run(app(scope, None, None))

    def test_trusted_is_asked_about_the_scope(self, inner, seen):
        app = SessionMiddleware(inner, trusted=lambda scope: scope["client"] == "me")
        call_asgi(app, b"s1", client="me")
        call_asgi(app, b"s1", client="you")
        call_asgi(app, client="me")
        assert seen == ["s1", None, None]

    def test_websockets_are_in_the_session_and_the_lifespan_is_not(self, inner, seen):
        app = SessionMiddleware(inner)
        call_asgi(app, b"s1", type="websocket")
        call_asgi(app, b"s1", type="lifespan")
        assert seen == ["s1", None]

    def test_session_is_not_current_between_the_steps_of_a_server_that_drives_by_hand(self):
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
            served = [SessionMiddleware(app)(scope, None, None) for scope in scopes]
            for _ in range(4):
                for steps in served:
                    steps.send(None)
                    assert current_session_id() == "of-the-server"
            for steps in served:
                with pytest.raises(StopIteration):
                    steps.send(None)
                assert current_session_id() == "of-the-server"
        assert [scope["seen"] for scope in scopes] == [["s1", "inner"] * 2, ["s2", "inner"] * 2]

    def test_scope_left_open_by_the_application_ends_with_the_request(self):
        async def leaking(scope, receive, send):
            session_scope("leaked").__enter__()

        async def main():
            app = SessionMiddleware(leaking)
            await app({"type": "http", "headers": []}, None, None)
            return current_session_id()

        assert asyncio.run(main()) is None
