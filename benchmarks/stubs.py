"""What the scripts share: a gateway, requests to it, and HTTP libraries without a network."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool

from cagent_session import Gateway, current_session_id, gateway_headers, instrument, uninstrument

FORWARD = "https://api.openai.com/v1"
GATEWAY = Gateway(
    "https://gateway.example/prefix",
    forward=FORWARD,
    provider="openai",
    model="gpt-4o-mini",
    model_name="main",
)
AT_GATEWAY = GATEWAY.endpoint("v1/chat/completions")
ELSEWHERE = "https://api.example/v1/chat/completions"
PROMPT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}
#: What a caller sets who has no Gateway, so that a request is gateway-bound.
GATEWAY_HEADERS = gateway_headers(
    FORWARD, provider="openai", model="gpt-4o-mini", model_name="main"
)

SESSION_ID = "X-Cagent-Session-Id"


class CopyIdiom(HTTPAdapter):
    """Copies the whole request with requests' own method."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        request = request.copy()
        request.headers[SESSION_ID] = current_session_id()
        return super().send(request, **options)


@contextlib.contextmanager
def no_adapters() -> Iterator[None]:
    """``HTTPAdapter.send`` answers at once."""
    answer = requests.Response()
    answer.status_code = 200
    answer._content = b""
    answer.raw = urllib3.HTTPResponse()

    def send(self: HTTPAdapter, request: requests.PreparedRequest, **options: Any) -> Any:
        self.add_headers(request, **options)
        answer.request = request
        return answer

    with mock.patch.object(HTTPAdapter, "send", send):
        yield


@contextlib.contextmanager
def no_pools() -> Iterator[None]:
    """``HTTPConnectionPool.urlopen`` answers at once."""
    answer = urllib3.HTTPResponse(status=200)

    # OpenTelemetry looks for the names of its parameters.
    def urlopen(self: Any, method: str, url: str, body: Any = None, *args: Any, **kw: Any) -> Any:
        return answer

    with mock.patch.object(HTTPConnectionPool, "urlopen", urlopen):
        yield


@contextlib.contextmanager
def no_transports(library: Any) -> Iterator[None]:
    """``HTTPTransport.handle_request`` of httpx or httpx2 answers at once."""
    answer = library.Response(200)

    def handle_request(self: Any, request: Any) -> Any:
        return answer

    with mock.patch.object(library.HTTPTransport, "handle_request", handle_request):
        yield


def prepare(url: str, headers: dict[str, str] | None = None) -> requests.PreparedRequest:
    """A request of requests; one for each case, as it is not the same after it was sent."""
    return requests.Session().prepare_request(
        requests.Request("POST", url, json=PROMPT, headers=headers)
    )


def sender(adapter: HTTPAdapter, request: requests.PreparedRequest) -> Callable[[], object]:
    """Sends ``request``, with the headers that it has now, through a session with ``adapter``."""
    http = requests.Session()
    http.mount("https://", adapter)
    headers = request.headers
    options = {"proxies": {}, "verify": True, "stream": False, "cert": None}

    def send() -> object:
        request.headers = headers
        return http.send(request, allow_redirects=False, **options)

    return send


@contextlib.contextmanager
def instrumented(*gateways: Gateway, then_off: bool = False) -> Iterator[None]:
    """``instrument(*gateways)``, and afterwards the classes as they were before it."""
    with unpatched_afterwards(methods_that_instrument_patches()):
        with mock.patch.object(logging.getLogger("cagent_session"), "disabled", True):
            instrument(*gateways)  # which warns of the stubs
        if then_off:
            uninstrument()
        yield
        uninstrument()


def methods_that_instrument_patches() -> Iterator[tuple[type, str]]:
    yield HTTPAdapter, "send"
    for owner in (HTTPConnectionPool, urllib3.PoolManager, urllib3.ProxyManager):
        yield owner, "urlopen"
    for library in filter(None, map(sys.modules.get, ("httpx", "httpx2"))):
        yield library.HTTPTransport, "handle_request"
        yield library.AsyncHTTPTransport, "handle_async_request"
        yield library.AsyncClient, "_send_single_request"
    if "aiohttp" in sys.modules:
        yield sys.modules["aiohttp"].ClientSession, "_request"


@contextlib.contextmanager
def unpatched_afterwards(methods: Iterable[tuple[type, str]]) -> Iterator[None]:
    """Put the methods back in the end, as the patches of this package stay in place."""
    with contextlib.ExitStack() as stack:
        for owner, name in methods:
            stack.enter_context(mock.patch.object(owner, name, getattr(owner, name)))
        yield


# OpenTelemetry is imported late: under valgrind that takes most of a minute.


@functools.cache
def tracer_provider() -> Any:
    from opentelemetry.sdk.trace import TracerProvider

    return TracerProvider()


@contextlib.contextmanager
def traced(library: str, instrumentor: str) -> Iterator[None]:
    """With OpenTelemetry's instrumentation of ``library``, and the session in its baggage."""
    module = importlib.import_module(f"opentelemetry.instrumentation.{library}")
    made = getattr(module, instrumentor)()
    made.instrument(tracer_provider=tracer_provider())
    try:
        with in_baggage():
            yield
    finally:
        made.uninstrument()


@contextlib.contextmanager
def in_baggage() -> Iterator[None]:
    from opentelemetry import baggage, context

    token = context.attach(baggage.set_baggage("session.id", "session-1"))
    try:
        yield
    finally:
        context.detach(token)
