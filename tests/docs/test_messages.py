"""Wrong uses of every public name, and the remedy that each error names.

A row of the table says what a user writes, what is raised, and the part of the message that says
what to write instead.
"""

from __future__ import annotations

import contextlib
import inspect
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import httpx2
import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from support.public import public_names

import cagent_session
from cagent_session import testing, uninstrument
from cagent_session.integrations import aiohttp, asgi, celery, structlog, threads, wsgi
from cagent_session.integrations import httpx as over_httpx
from cagent_session.integrations import httpx2 as over_httpx2

FORWARD = "https://api.openai.com/v1"


class Row(NamedTuple):
    """What a user writes, the parameter that is wrong, and the error that says what to do."""

    parameter: str
    line: str
    error: type[Exception]
    remedy: str


def rows(name: str, *table: tuple[str, str, type[Exception], str]) -> list[tuple[str, Row]]:
    return [(name, Row(*row)) for row in table]


INVALID = cagent_session.InvalidSessionID

TABLE = [
    *rows(
        "session_scope",
        ("session_id", "session_scope(None)", TypeError, "session_scope()"),
        ("session_id", "session_scope(uuid.uuid4())", TypeError, "str("),
        ("session_id", "enter(session_scope(''))", INVALID, "is empty"),
        ("session_id", "enter(session_scope('a b'))", INVALID, "only '!' to '~' can be sent"),
        ("session_id", "enter(session_scope('a' * 257))", INVALID, "256 at most can be sent"),
        ("session_id", "session_scope(function)", TypeError, "@session_scope()"),
        ("parent", "session_scope('s1', parent=None)", TypeError, "write no parent="),
        ("parent", "enter(session_scope('s1', parent='a b'))", INVALID, "only '!' to '~'"),
    ),
    *rows(
        "session_from",
        ("name", "session_from(function)", TypeError, '@session_from("...")'),
        ("name", "session_from('other')(function)", TypeError, "has no parameter 'other'"),
        ("name", "session_from('x')(function)(None)", TypeError, "argument 'x' of function()"),
        ("name", "session_from('x')(function)(None)", TypeError, "no_session()"),
        ("name", "session_from('x')(function)(uuid.uuid4())", TypeError, "str("),
        ("name", "session_from('x.real')(function)(3)", TypeError, "store str("),
        ("name", "session_from('x.id')(function)(3)", AttributeError, "argument 'x' of function()"),
    ),
    *rows("no_session", ("arguments", "no_session(function)", TypeError, "@no_session()")),
    *rows("bind_session", ("fn", "bind_session(function(1))", TypeError, "bind_session(fn)(...)")),
    *rows(
        "Gateway",
        ("url", "Gateway('gateway.example', forward=F)", ValueError, "http:// or https://"),
        ("url", "Gateway('ftp://gateway.example', forward=F)", ValueError, "http:// nor https://"),
        ("url", "Gateway(None, forward=F)", TypeError, "from_env"),
        ("url", "Gateway(b'https://gateway.example', forward=F)", TypeError, "must be a str"),
        ("url", "Gateway('https://me:secret@gateway.example', forward=F)", ValueError, "headers="),
        ("url", "Gateway('https://gateway.example/#a', forward=F)", ValueError, "fragment"),
        ("url", "Gateway('https://gateway.example/a/../b', forward=F)", ValueError, "dot segment"),
        ("url", "Gateway('https://gateway.example:99999', forward=F)", ValueError, "invalid port"),
        ("forward", "Gateway(G)", ValueError, "forward="),
        ("forward", "Gateway(G)", ValueError, "session_header="),
        ("forward", "Gateway(G, forward='api.openai.com')", ValueError, "http:// or https://"),
        ("forward", "Gateway(G, forward=3)", TypeError, "must be a str"),
        ("provider", "Gateway(G, session_header='X-S', provider='p')", ValueError, "forward"),
        ("provider", "Gateway(G, forward=F, provider='a\\nb')", ValueError, "printable ASCII"),
        ("model", "Gateway(G, forward=F, model=3)", TypeError, "must be a str"),
        ("model_name", "Gateway(G, forward=F, model_name='\\xe9')", ValueError, "printable ASCII"),
        ("headers", "Gateway(G, forward=F, headers=['X-A'])", TypeError, "must be a dict"),
        ("headers", "Gateway(G, forward=F, headers={'X-A': 3})", TypeError, "must be a str"),
        ("headers", "Gateway(G, forward=F, headers={'X A': ''})", ValueError, "valid header name"),
        ("headers", "Gateway(G, forward=F, headers={'Host': 'a'})", ValueError, "HTTP library"),
        ("headers", "Gateway(G, forward=F, headers={FORWARD: 'a'})", ValueError, "forward="),
        ("headers", "Gateway(G, forward=F, headers={SESSION_ID: 'a'})", ValueError, "scope"),
        ("session_header", "Gateway(G, session_header=None)", TypeError, "must be a str"),
        ("session_header", "Gateway(G, session_header='Cookie')", ValueError, "of its own"),
        ("session_header", "Gateway(G, session_header='traceparent')", ValueError, "tracing"),
        ("session_header", "Gateway(G, forward=F, session_header=MODEL)", ValueError, "Session-Id"),
        ("parent_header", "Gateway(G, forward=F, parent_header='Host')", ValueError, "of its own"),
        ("parent_header", "Gateway(G, forward=F, parent_header=SESSION_ID)", ValueError, "parent"),
        ("session_headers", "Gateway(G, session_headers=['X-A'])", TypeError, "must be a dict"),
        ("session_headers", "Gateway(G, session_headers={'X-A': 3})", TypeError, "function"),
        ("session_headers", "Gateway(G, session_headers={'X-A': '{id}'})", ValueError, "function"),
        ("session_headers", "Gateway(G, session_headers={'X-A': '{{'})", ValueError, "function"),
        ("session_headers", "Gateway(G, session_headers={'X-A': ''})", ValueError, "X-A"),
    ),
    *rows(
        "Gateway.endpoint",
        ("path", "gateway.endpoint('https://api.openai.com/v1')", ValueError, "takes a path"),
        ("path", "gateway.endpoint('../v1')", ValueError, "dot segment"),
        ("path", "gateway.endpoint(None)", TypeError, "must be a str"),
    ),
    *rows("Gateway.owns", ("url", "gateway.owns(httpx.URL(G))", TypeError, "give str(url)")),
    *rows(
        "Gateway.headers_for",
        ("url", "gateway.headers_for(httpx.URL(G))", TypeError, "give str(url)"),
        ("url", "strict.headers_for(G)", cagent_session.SessionRequired, "session_scope(...)"),
        ("url", "strict.headers_for(G)", cagent_session.SessionRequired, "bind_session"),
        (
            "url",
            "no_session()(strict.headers_for)(G)",
            cagent_session.SessionRequired,
            "dataclasses.replace(gateway, require_session=False)",
        ),
    ),
    *rows(
        "Gateway.mount",
        ("session", "gateway.mount(httpx.Client())", TypeError, "GatewayTransport"),
        ("session", "gateway.mount(requests)", TypeError, "requests.Session"),
        ("session", "gateway.mount(http) and other.mount(http)", ValueError, "gateway_headers("),
        ("session", "gateway.mount(http) and other.mount(http)", ValueError, "client of its own"),
        ("max_retries", "gateway.mount(http, max_retrys=3)", TypeError, "max_retrys"),
    ),
    *rows(
        "Gateway.from_env",
        ("forward", "Gateway.from_env(forwrd=F)", TypeError, "forwrd"),
        ("forward", "Gateway.from_env()", ValueError, "forward="),
    ),
    *rows(
        "gateway_headers",
        ("forward", "gateway_headers('api.openai.com')", ValueError, "http:// or https://"),
        ("provider", "gateway_headers(F, provider=3)", TypeError, "must be a str"),
        ("model", "gateway_headers(F, model='a\\nb')", ValueError, "printable ASCII"),
        ("model_name", "gateway_headers(F, model_name=3)", TypeError, "must be a str"),
    ),
    *rows(
        "GatewayAdapter",
        ("gateway", "GatewayAdapter(G)", TypeError, "Gateway("),
        ("adapter", "GatewayAdapter(gateway, adapter=http)", TypeError, "adapter"),
        (
            "adapter",
            "GatewayAdapter(gateway, adapter=GatewayAdapter(), max_retries=3)",
            TypeError,
            "adapter",
        ),
    ),
    *rows("GatewayMixin", ("gateway", "Mixed(G)", TypeError, "Gateway(")),
    *rows("GatewayPoolManager", ("gateway", "GatewayPoolManager(G)", TypeError, "Gateway(")),
    *rows(
        "GatewayProxyManager",
        ("proxy_url", "GatewayProxyManager(gateway)", TypeError, "proxy_url"),
        ("gateway", "GatewayProxyManager('http://127.0.0.1:1', G)", TypeError, "Gateway("),
    ),
    *rows(
        "instrument",
        ("gateways", "instrument(G)", TypeError, "Gateway("),
        ("gateways", "instrument([gateway])", TypeError, "instrument(*"),
        ("gateways", "instrument(gateway, other)", ValueError, "gateway_headers("),
        ("gateways", "instrument(gateway, other)", ValueError, "or instrument()"),
    ),
    *rows(
        "integrations.httpx.GatewayTransport",
        ("gateway", "over_httpx.GatewayTransport(G)", TypeError, "Gateway("),
        (
            "gateway",
            "over_httpx.GatewayTransport(httpx.HTTPTransport(), gateway)",
            TypeError,
            "GatewayTransport(gateway, transport)",
        ),
        ("transport", "over_httpx.GatewayTransport(None, httpx.Client())", TypeError, "httpx"),
    ),
    *rows(
        "integrations.httpx2.GatewayTransport",
        ("gateway", "over_httpx2.GatewayTransport(G)", TypeError, "Gateway("),
        ("transport", "over_httpx2.GatewayTransport(None, gateway)", TypeError, "httpx2"),
        (
            "transport",
            "httpx2.Client(transport=over_httpx.GatewayTransport(gateway)).get(G)",
            TypeError,
            "httpx2",
        ),
    ),
    *rows(
        "integrations.aiohttp.GatewayMiddleware",
        ("gateway", "aiohttp.GatewayMiddleware(G)", TypeError, "Gateway("),
    ),
    *rows(
        "integrations.wsgi.SessionMiddleware",
        ("app", "wsgi.SessionMiddleware(None)", TypeError, "app"),
        (
            "session_header",
            "wsgi.SessionMiddleware(function, session_header='a b')",
            ValueError,
            "",
        ),
        ("parent_header", "wsgi.SessionMiddleware(function, parent_header='')", ValueError, "name"),
        ("trusted", "wsgi.SessionMiddleware(function, trusted=['::1'])", TypeError, "trusted"),
    ),
    *rows(
        "integrations.asgi.SessionMiddleware",
        ("app", "asgi.SessionMiddleware(None)", TypeError, "app"),
        (
            "session_header",
            "asgi.SessionMiddleware(function, session_header='a b')",
            ValueError,
            "",
        ),
        ("parent_header", "asgi.SessionMiddleware(function, parent_header='')", ValueError, "name"),
        ("trusted", "asgi.SessionMiddleware(function, trusted=['::1'])", TypeError, "trusted"),
    ),
    *rows(
        "integrations.celery.carry_session",
        ("app", "celery.carry_session('agent')", TypeError, "Celery"),
    ),
    *rows(
        "testing.RecordingGateway",
        (
            "requests_per_minute",
            "RecordingGateway(requests_per_minute=0)",
            ValueError,
            "at least 1",
        ),
        ("requests_per_minute", "RecordingGateway(requests_per_minute='3')", TypeError, "int"),
        ("reply", "RecordingGateway(reply=3)", TypeError, "str"),
        ("respond", "RecordingGateway(respond={})", TypeError, "respond"),
        ("port", "RecordingGateway(port=99999)", ValueError, "65535"),
        ("on_call", "RecordingGateway(on_call=[])", TypeError, "on_call"),
        ("session_header", "RecordingGateway(session_header='a b')", ValueError, "session_header"),
        ("parent_header", "RecordingGateway(parent_header='a b')", ValueError, "parent_header"),
    ),
    *rows("testing.RecordingGateway.url", ("", "RecordingGateway().url", RuntimeError, "with ")),
    *rows(
        "testing.RecordingGateway.sessions",
        ("", "recorded().sessions['s1']", KeyError, "seen"),
    ),
]

# What these are given is checked where it arrives, at the other end of a wire, or is anything.
NOT_REFUSED = {
    *(("Gateway.mount", f"pool_{name}") for name in ("block", "connections", "maxsize")),
    ("Gateway", "require_session"),
    ("received_session", "session_id"),
    ("received_session", "parent"),
    ("received_session", "root"),
    ("integrations.logging.SessionIDFilter", "default"),
    ("integrations.structlog.add_session_id", "logger"),
    ("integrations.structlog.add_session_id", "method_name"),
    ("integrations.structlog.add_session_id", "event_dict"),
    ("testing.RecordingGateway", "page"),
    ("testing.RecordingGateway.family", "session_id"),
}


# Users are given these, and do not make them.
GIVEN_AND_NOT_TAKEN = {
    "integrations.httpx.AsyncGatewayTransport",  # another name of GatewayTransport
    "integrations.httpx2.AsyncGatewayTransport",
    "InvalidSessionID",
    "SessionRequired",
    "testing.RecordedRequest",
    "testing.Usage",
}


class Mixed(cagent_session.GatewayMixin, HTTPAdapter):
    pass


def function(x: object) -> object:
    return x


def recorded() -> testing.RecordingGateway:
    with testing.RecordingGateway() as gateway:
        return gateway


def enter(scope: contextlib.AbstractContextManager[object]) -> None:
    with scope:
        pass


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    gateway = cagent_session.Gateway("https://gateway.example", forward=FORWARD)
    with requests.Session() as http:
        yield {
            **{name: getattr(cagent_session, name) for name in cagent_session.__all__},
            **vars(cagent_session.headers),
            **{module.__name__.rpartition(".")[2]: module for module in (aiohttp, asgi, celery)},
            "F": FORWARD,
            "G": gateway.url,
            "gateway": gateway,
            "http": http,
            "Mixed": Mixed,
            "httpx": httpx,
            "httpx2": httpx2,
            "enter": enter,
            "function": function,
            "other": cagent_session.Gateway(gateway.url, forward="https://api.mistral.ai/v1"),
            "over_httpx": over_httpx,
            "over_httpx2": over_httpx2,
            "RecordingGateway": testing.RecordingGateway,
            "recorded": recorded,
            "requests": requests,
            "strict": cagent_session.Gateway(gateway.url, forward=FORWARD, require_session=True),
            "structlog": structlog,
            "threads": threads,
            "urllib3": urllib3,
            "uuid": uuid,
            "wsgi": wsgi,
        }
    uninstrument()


@pytest.mark.parametrize(
    "row", [row for _, row in TABLE], ids=[f"{row.line}: {row.remedy}" for _, row in TABLE]
)
def test_error_names_the_remedy(row: Row, names: dict[str, Any]):
    with pytest.raises(row.error) as raised:
        eval(row.line, names)
    message = str(raised.value)
    assert row.remedy in message
    assert "secret" not in message


def parameters() -> Iterator[tuple[str, str]]:
    """Every parameter of every public function, class and method, but those of other libraries."""
    for name, value in public_names():
        short = name.removeprefix("cagent_session.")
        if not callable(value) or getattr(value, "__module__", "")[:14] != "cagent_session":
            continue
        if short in GIVEN_AND_NOT_TAKEN:
            continue
        # What a class of another library is given, that library checks.
        made_by = value.__init__ if isinstance(value, type) else value
        if getattr(made_by, "__module__", "").startswith("cagent_session"):
            for parameter in signature_of(value):
                yield short, parameter
        if isinstance(value, type) and value.__module__.split(".")[1] in ("_gate", "testing"):
            for method in vars(value):
                if not method.startswith("_") and inspect.isroutine(getattr(value, method)):
                    for parameter in signature_of(getattr(value, method)):
                        yield f"{short}.{method}", parameter


def signature_of(value: Any) -> list[str]:
    written = inspect.signature(value).parameters.values()
    return [p.name for p in written if p.kind is not p.VAR_KEYWORD and p.name != "self"]


def test_every_public_parameter_has_a_row():
    there = {(name, row.parameter) for name, row in TABLE} | NOT_REFUSED
    # It hands these on to Gateway.
    there |= {("Gateway.from_env", parameter) for name, parameter in there if name == "Gateway"}
    assert set(parameters()) - there == set()


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("GatewayTransport", "integrations.httpx"),
        ("AsyncGatewayTransport", "integrations.httpx"),
        ("GatewayMiddleware", "integrations.aiohttp"),
        ("RecordingGateway", "testing"),
        ("SessionMiddleware", "integrations.asgi"),
        ("carry_session", "integrations.threads"),
        ("SessionIDFilter", "integrations.logging"),
    ],
)
def test_import_from_the_wrong_module_says_where_the_name_is(name: str, module: str):
    with pytest.raises(ImportError, match=rf"{name} is in .*cagent_session\.{module}\b"):
        exec(f"from cagent_session import {name}")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        cagent_session.nonsense  # noqa: B018
