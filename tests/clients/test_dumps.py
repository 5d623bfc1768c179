"""A row of docs/troubleshooting.md: requests_toolbelt's dump copies the request."""

from __future__ import annotations

import pytest
import requests

from cagent_session import Gateway, session_scope

dump = pytest.importorskip("requests_toolbelt.utils.dump")


def test_dump_shows_no_session_and_the_answer_does(server):
    gateway = Gateway(server.origin, forward="https://api.openai.com/v1")
    with requests.Session() as http, session_scope("session-1"):
        gateway.mount(http)
        answer = http.get(gateway.endpoint("v1/models"))
    assert server.arrived[0].session_id == "session-1"
    assert b"X-Cagent-Session-Id" not in dump.dump_all(answer)
    assert answer.request.headers["X-Cagent-Session-Id"] == "session-1"
