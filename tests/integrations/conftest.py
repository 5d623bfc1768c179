from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests

from cagent_session import Gateway


@pytest.fixture
def call_out(recording_gateway: Any) -> Callable[[str], str]:
    """What a service does with each request: a call through the gateway. Gives its session."""
    gateway = Gateway(recording_gateway.url, forward="https://api.openai.com/v1")

    def call(path: str) -> str:
        with requests.Session() as session:
            gateway.mount(session)
            return str(session.get(gateway.endpoint(path)).json()["session_id"])

    return call
