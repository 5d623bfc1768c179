"""docs/services.md: its code and its statements, in real frameworks on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import re
import sys
import types
import uuid
from collections.abc import Iterator

import aiohttp
import django
import pytest
import requests
from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import clear_url_caches, path
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from support import pages, services

from cagent_session import (
    bind_session,
    current_session_id,
    parent_session_id,
    session_scope,
)
from cagent_session.integrations import asgi

# A framework's own warnings are not about this package.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),
    pytest.mark.filterwarnings("default::PendingDeprecationWarning"),
]


@pytest.fixture
def yours(call_out):
    """The code that the page leaves to the reader. Each call gives the session that arrived."""

    async def ask_async(prompt):
        return await asyncio.to_thread(call_out, "x")

    def answer(prompt):
        for _ in range(3):
            yield call_out("x") + " "

    return {"ask": lambda prompt: call_out("x"), "ask_async": ask_async, "answer": answer}


def run(namespace: dict, heading: str, url: str = "http://127.0.0.1") -> dict:
    for number, snippet in enumerate(pages.snippets("services.md", heading), 1):
        code = re.sub(r"https://(gateway|service)\.example", url, snippet)
        # Without this module's "from __future__", as in a module of the reader's.
        compiled = compile(code, f"{heading}, snippet {number}", "exec", dont_inherit=True)
        exec(compiled, namespace)
    return namespace


class Client:
    """One connection to a service on loopback, kept alive from request to request."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def __call__(self, path: str, session_id: str | None = None, method="GET", **headers) -> str:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if session_id is not None:
            headers["X-Cagent-Session-Id"] = session_id
        self.connection.request(method, path, headers=headers)
        return self.connection.getresponse().read().decode().strip('"')


@contextlib.contextmanager
def served(server, app, **options) -> Iterator[Client]:
    with server(app, **options) as port:
        client = Client(port)
        try:
            yield client
        finally:
            client.connection.close()


class TestTheServiceOfThePage:
    @pytest.fixture
    def page(self, yours, recording_gateway, monkeypatch):
        monkeypatch.setenv("SERVICE_KEY", "secret")
        namespace = run(dict(yours), "Wrap the application", recording_gateway.url)
        run(namespace, "FastAPI and Starlette")
        return run(namespace, "Streamed responses")

    @pytest.fixture
    def get(self, page):
        with served(services.uvicorn, page["app"]) as get:
            yield get

    def test_calls_the_model_in_the_session_of_the_request(self, get, recording_gateway):
        get("/summaries?chapter=one", "order-4711", "POST")
        get("/summaries?chapter=one", None, "POST")
        get("/summaries?chapter=one", "not valid", "POST")
        seen = [request.session_id for request in recording_gateway.requests]
        assert seen == ["order-4711", None, None]

    def test_takes_the_session_from_the_path(self, get):
        assert get("/chats/c1?prompt=x", "order-4711", "POST") == "c1"

    def test_takes_the_session_from_an_async_dependency(self, get):
        assert get("/tickets/summary?prompt=x", "order-4711", "POST", x_ticket="7") == "ticket-7"

    def test_answers_422_to_a_malformed_session_in_the_path(self, get, recording_gateway):
        assert "has ' ' at position 1" in get("/chats/c%201?prompt=x", "order-4711", "POST")
        assert not recording_gateway.requests

    def test_answers_400_where_a_gateway_requires_a_session(self, page, get):
        gateway = dataclasses.replace(page["gateway"], require_session=True)

        @page["api"].get("/strict")
        def strict():
            gateway.headers_for(gateway.endpoint("v1/models"))

        assert get("/strict", "order-4711") == "null"
        assert "this service needs a session" in get("/strict")

    def test_begins_a_session_where_the_request_names_none(self, get):
        assert get("/questions?prompt=x", "order-4711", "POST") == "order-4711"
        fresh = {get("/questions?prompt=x", None, "POST") for _ in range(2)}
        assert {len(str(uuid.UUID(session_id))) for session_id in fresh} == {36}
        assert len(fresh) == 2

    def test_streams_in_the_session_of_a_decorated_generator(self, get):
        assert get("/chats/c1/stream?prompt=x", "order-4711").split() == ["c1"] * 3

    def test_streams_in_the_session_of_a_bound_generator(self, get):
        assert get("/tickets/7/stream?prompt=x", "order-4711").split() == ["ticket-7"] * 3

    def test_a_plain_with_in_a_sync_generator_loses_the_session(self, page):
        @page["api"].get("/loses")
        def stream():
            return StreamingResponse(page["loses_the_session"]("x"))

        with served(services.uvicorn, page["app"]) as get:
            assert get("/loses").split() == ["order-4711", "None", "None"]
            assert get("/loses", "s1").split() == ["order-4711", "s1", "s1"]

    def test_reads_configured_headers_of_clients_that_have_the_key(self, page, recording_gateway):
        app = run(page, "Choose the header, and whom to trust")["app"]
        with served(services.uvicorn, app) as get:
            named = {"X_Agent_Session_Id": "s1", "X_Agent_Parent_Session_Id": "main"}
            get("/summaries?chapter=one", "other", "POST", x_service_key="secret", **named)
            get("/summaries?chapter=one", "other", "POST", x_service_key="wrong", **named)
            get("/summaries?chapter=one", "other", "POST", **named)
        seen = [request.session_id for request in recording_gateway.requests]
        assert seen == ["s1", None, None]

    def test_its_client_sends_session_and_parent_under_the_same_names(self, page):
        @page["api"].get("/family")
        def see_family():
            return f"{current_session_id()} of {parent_session_id()}"

        heading = "Choose the header, and whom to trust"
        with services.uvicorn(run(page, heading)["app"]) as port:
            url = f"http://127.0.0.1:{port}"
            client = run(page, heading, url)["http"]
            with client, session_scope("main"), session_scope("sub"):
                answer = client.get(f"{url}/family", timeout=10)
        assert answer.json() == "sub of main"

    def test_the_address_of_a_client_is_what_a_trusted_proxy_says(self):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": scope["client"][0].encode()})

        with served(services.uvicorn, app, lifespan="off") as get:
            assert get("/") == "127.0.0.1"
            assert get("/", X_Forwarded_For="10.0.0.7") == "10.0.0.7"


def plain_with():
    with session_scope("inner"):
        for _ in range(3):
            yield f"{current_session_id()} "


async def plain_with_async():
    with session_scope("inner"):
        for _ in range(3):
            yield f"{current_session_id()} "


def plain():
    for _ in range(3):
        yield f"{current_session_id()} "


@pytest.fixture
def seen():
    """What code saw that runs when the client has its answer, or in a place of its own."""
    return []


class TestFastAPI:
    @pytest.fixture
    def api(self, seen):
        api = FastAPI()

        async def async_dependency():
            with session_scope("dependency"):
                yield

        def sync_dependency():
            with session_scope("dependency"):
                yield

        async def see_async():
            return current_session_id()

        def see():
            return current_session_id()

        def note():
            seen.append(current_session_id())

        async def note_async():
            seen.append(current_session_id())

        def in_background(tasks: BackgroundTasks):
            tasks.add_task(note)
            tasks.add_task(note_async)
            with session_scope("inner"):
                tasks.add_task(note)
                tasks.add_task(bind_session(note))
                tasks.add_task(bind_session(note_async))

        def in_background_of_a_dependency(tasks: BackgroundTasks):
            tasks.add_task(note)

        def fail():
            raise KeyError

        async def on_error(request, error):
            return PlainTextResponse(str(current_session_id()), 500)

        for route, endpoint, dependencies in (
            ("/async", see_async, ()),
            ("/sync", see, ()),
            ("/async-dependency/async", see_async, [async_dependency]),
            ("/async-dependency/sync", see, [async_dependency]),
            ("/sync-dependency/async", see_async, [sync_dependency]),
            ("/sync-dependency/sync", see, [sync_dependency]),
            ("/background", in_background, ()),
            ("/async-dependency/background", in_background_of_a_dependency, [async_dependency]),
            ("/stream", lambda: StreamingResponse(plain()), ()),
            ("/async-dependency/stream", lambda: StreamingResponse(plain()), [async_dependency]),
            ("/stream/plain-with", lambda: StreamingResponse(plain_with()), ()),
            ("/stream/plain-with-async", lambda: StreamingResponse(plain_with_async()), ()),
            ("/fails", fail, ()),
        ):
            api.get(route, dependencies=[*map(Depends, dependencies)])(endpoint)
        api.exception_handler(Exception)(on_error)
        return api

    @pytest.fixture
    def get(self, api):
        with served(services.uvicorn, asgi.SessionMiddleware(api)) as get:
            yield get

    @pytest.mark.parametrize("path", ["/async", "/sync"])
    def test_an_endpoint_runs_in_the_session_of_the_request(self, get, path):
        assert [get(path, session_id) for session_id in ("s1", None, "s2")] == ["s1", "null", "s2"]

    @pytest.mark.parametrize("path", ["/async-dependency/async", "/async-dependency/sync"])
    def test_a_scope_in_an_async_dependency_covers_the_endpoint(self, get, path):
        assert get(path, "s1") == "dependency"

    def test_a_scope_in_an_async_dependency_covers_background_tasks_and_the_stream(self, get, seen):
        assert get("/async-dependency/stream", "s1").split() == ["dependency"] * 3
        get("/async-dependency/background", "s1")
        get("/sync")  # on the same connection: the tasks of the request before have ended
        assert seen == ["dependency"]

    @pytest.mark.parametrize("path", ["/sync-dependency/async", "/sync-dependency/sync"])
    def test_a_scope_in_a_sync_dependency_does_not_reach_the_endpoint(self, get, path):
        assert get(path, "s1") == "s1"
        assert get(path) == "null"

    def test_background_tasks_run_in_the_session_of_the_request_or_in_their_bound_one(
        self, get, seen
    ):
        get("/background", "s1")
        get("/sync")
        assert seen == ["s1", "s1", "s1", "inner", "inner"]

    def test_a_streamed_response_is_in_the_session_of_the_request(self, get):
        assert get("/stream", "s1").split() == ["s1"] * 3

    def test_a_plain_with_lasts_in_an_async_generator_and_not_in_a_sync_one(self, get):
        assert get("/stream/plain-with", "s1").split() == ["inner", "s1", "s1"]
        assert get("/stream/plain-with-async", "s1").split() == ["inner"] * 3

    def test_a_websocket_is_in_the_session_until_it_is_closed(self, api, seen):
        @api.websocket("/")
        async def tell(websocket: WebSocket):
            await websocket.accept()
            async for _ in websocket.iter_text():
                await websocket.send_text(str(current_session_id()))

        async def two_messages(port):
            headers = {"X-Cagent-Session-Id": "s1"}
            async with (
                aiohttp.ClientSession() as client,
                client.ws_connect(f"http://127.0.0.1:{port}/", headers=headers) as websocket,
            ):
                for _ in range(2):
                    await websocket.send_str("x")
                    seen.append(await websocket.receive_str(timeout=10))

        with services.uvicorn(asgi.SessionMiddleware(api), ws="wsproto") as port:
            asyncio.run(two_messages(port))
        assert seen == ["s1", "s1"]

    def test_the_handler_of_status_500_is_in_the_session(self, get):
        assert get("/fails", "s1") == "s1"

    def test_with_add_middleware_the_handler_of_status_500_is_in_none(self, api, seen):
        @api.middleware("http")
        async def other(request, call_next):
            seen.append(current_session_id())
            return await call_next(request)

        api.add_middleware(asgi.SessionMiddleware)
        with served(services.uvicorn, api) as get:
            assert get("/sync", "s1") == "s1"
            assert get("/fails", "s1") == "None"
        assert seen == ["s1", "s1"]

    def test_middleware_added_after_ours_is_in_no_session(self, api, seen):
        api.add_middleware(asgi.SessionMiddleware)

        @api.middleware("http")
        async def added_later(request, call_next):
            seen.append(current_session_id())
            return await call_next(request)

        with served(services.uvicorn, api) as get:
            assert get("/sync", "s1") == "s1"
        assert seen == [None]


class TestFlask:
    @pytest.fixture
    def app(self, yours):
        return run({"__name__": "service", **yours}, "Flask")["app"]

    @pytest.fixture
    def get(self, app):
        with served(services.waitress, app) as get:
            yield get

    def test_a_view_runs_in_the_session_of_the_request(self, get):
        answers = [get("/summaries", session_id, "POST") for session_id in ("s1", None, "s2")]
        assert answers == ["s1", "None", "s2"]

    def test_a_view_runs_in_the_session_of_its_path(self, get):
        assert get("/chats/c1", "s1", "POST") == "c1"

    def test_a_decorated_generator_streams_in_its_session(self, get):
        assert get("/chats/c1/stream", "s1").split() == ["c1"] * 3

    def test_its_test_client_sends_requests_through_the_middleware(self, app):
        headers = {"X-Cagent-Session-Id": "s1"}
        assert app.test_client().post("/summaries", headers=headers).text == "s1"

    def test_handlers_of_errors_and_teardown_run_in_the_session_of_the_request(self, app, seen):
        @app.get("/fails")
        def fail():
            raise KeyError

        app.errorhandler(KeyError)(lambda error: (str(current_session_id()), 500))
        app.teardown_request(lambda error: seen.append(current_session_id()))
        with served(services.waitress, app) as get:
            assert get("/fails", "s1") == "s1"
        assert seen == ["s1"]

    def test_a_plain_with_lasts_in_a_generator(self, app):
        app.get("/plain-with")(plain_with)
        with served(services.waitress, app) as get:
            assert get("/plain-with", "s1").split() == ["inner"] * 3
            assert get("/summaries", None, "POST") == "None"


@pytest.fixture(scope="module")
def configured():
    settings.configure(ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None, MIDDLEWARE=[], SECRET_KEY="x")
    django.setup()


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume:Warning")
class TestDjango:
    @pytest.fixture
    def application(self, configured, yours, monkeypatch):
        asgi_module, wsgi_module, views = pages.snippets("services.md", "Django")
        page: dict = {"__name__": "views", **yours}
        exec(compile(views, "views.py", "exec", dont_inherit=True), page)

        async def see(request):
            return HttpResponse(str(current_session_id()))

        def leak(request):
            session_scope("leaked").__enter__()
            return HttpResponse("")

        name = f"urls_{uuid.uuid4().hex}"  # Django caches what it has imported by name
        urls = types.ModuleType(name)
        urls.urlpatterns = [
            path("summaries", page["summarize"]),
            path("chats/<session_id>", page["chat"]),
            path("class/<session_id>", page["Chat"].as_view()),
            path("chats/<session_id>/stream", page["stream_chat"]),
            path("async", see),
            path("leak", leak),
            path("plain-with", lambda request: StreamingHttpResponse(plain_with())),
            path("plain-with-async", lambda request: StreamingHttpResponse(plain_with_async())),
            path("plain", lambda request: StreamingHttpResponse(plain())),
        ]
        monkeypatch.setitem(sys.modules, name, urls)
        monkeypatch.setattr(settings, "ROOT_URLCONF", name, raising=False)
        clear_url_caches()

        def load(code):
            namespace: dict = {}
            exec(compile(code, "application", "exec", dont_inherit=True), namespace)
            return namespace["application"]

        return {"ASGI": lambda: load(asgi_module), "WSGI": lambda: load(wsgi_module)}

    @pytest.fixture(params=["ASGI", "WSGI"])
    def get(self, request, application):
        app = application[request.param]()
        if request.param == "ASGI":
            with served(services.uvicorn, app, lifespan="off") as get:
                yield get
        else:
            with served(services.waitress, app) as get:
                yield get

    @pytest.mark.parametrize("path", ["/summaries", "/async"])
    def test_a_view_runs_in_the_session_of_the_request(self, get, path):
        answers = [get(path, session_id) for session_id in ("s1", None, "s2")]
        assert answers == ["s1", "None", "s2"]

    @pytest.mark.parametrize("path", ["/chats/c1", "/class/c1"])
    def test_a_view_runs_in_the_session_of_its_path(self, get, path):
        assert get(path, "s1") == "c1"

    def test_a_decorated_generator_streams_in_its_session(self, get):
        assert get("/chats/c1/stream", "s1").split() == ["c1"] * 3

    def test_a_streamed_response_is_in_the_session_of_the_request(self, get):
        assert get("/plain", "s1").split() == ["s1"] * 3

    @pytest.mark.parametrize("path", ["/plain-with", "/plain-with-async"])
    def test_a_plain_with_lasts_in_a_generator(self, get, path):
        assert get(path, "s1").split() == ["inner"] * 3
        assert get("/summaries") == "None"

    def test_a_scope_that_a_view_leaves_open_ends_with_the_request(self, get):
        get("/leak", "s1")
        assert [get(path) for path in ("/summaries", "/async")] == ["None", "None"]


def test_requests_of_one_connection_are_apart_in_a_framework():
    """Before Python 3.15, a large body puts the next request into the context of its own."""
    api = FastAPI()

    async def scope_to_the_end(session_id: str):
        before = current_session_id()
        with session_scope(session_id):
            yield before

    @api.post("/{session_id}")
    async def endpoint(request: Request, before: str | None = Depends(scope_to_the_end)):
        await request.body()
        return before

    def sessions_before(app):
        with services.uvicorn(app) as port, requests.Session() as client:
            url = f"http://127.0.0.1:{port}"
            return [client.post(f"{url}/{n}", data=b"x" * 300_000).json() for n in ("a", "b")]

    assert sessions_before(api) == [None, "a" if sys.version_info < (3, 15) else None]
    assert sessions_before(asgi.SessionMiddleware(api)) == [None, None]
