"""azure-core follows redirects itself, above the gate, from the headers that its caller gave it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from support.wire import Server, redirect, response

from cagent_session import Gateway, gateway_headers, instrument, session_scope

pytest.importorskip("azure.core")
from azure.core.pipeline import Pipeline
from azure.core.pipeline.policies import RedirectPolicy
from azure.core.pipeline.transport import HttpRequest, RequestsTransport

FORWARD = "https://api.openai.com/v1"
PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
(REMEDY,) = re.findall(r"^  ```py\n(.*?)^  ```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def stranger() -> Iterator[Server]:
    with Server() as stranger:
        yield stranger


@pytest.fixture(params=["mount", "instrument"])
def http(request: pytest.FixtureRequest, server: Server, stranger: Server) -> Iterator[Any]:
    """A `requests.Session` for a gateway that redirects each request to a stranger."""
    server.respond = lambda request: redirect(307, stranger.origin)
    stranger.respond = lambda request: response()
    gateway = Gateway(server.origin, forward=FORWARD)
    with requests.Session() as http, instrument(*[gateway] * (request.param == "instrument")):
        if request.param == "mount":
            gateway.mount(http)
        yield http


def get(http: requests.Session, url: str, headers: dict[str, str], *policies: Any) -> None:
    transport = RequestsTransport(session=http, session_owner=False)
    with Pipeline(transport, [RedirectPolicy(), *policies]) as pipeline, session_scope("s1"):
        pipeline.run(HttpRequest("GET", url, headers=headers))


def test_headers_of_a_gateway_stay_with_it(http, server, stranger):
    get(http, server.origin, {})
    assert server.arrived[0].session_id == "s1"
    assert stranger.arrived[0].identifiers == {}


def test_identifiers_of_the_caller_go_along(http, server, stranger):
    """As docs/security.md says: nothing below the client can prevent it."""
    get(http, server.origin, gateway_headers(FORWARD))
    assert stranger.arrived[0].forward == FORWARD


def test_remedy_of_the_security_page_takes_identifiers_off(http, server, stranger):
    names: dict[str, Any] = {"gateway_headers": gateway_headers}
    exec("\n".join(line[2:] for line in REMEDY.splitlines()), names)
    get(http, server.origin, names["own"], names["cleanup"])
    assert server.arrived[0].forward == FORWARD
    assert stranger.arrived[0].identifiers == {}
