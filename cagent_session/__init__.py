"""The session of an agent, on every request to its models gateway.

http = requests.Session()
gateway = Gateway("https://gateway.example", forward="https://api.openai.com/v1")
gateway.mount(http)

@session_from("session_id")
def run(session_id, prompt):
    return http.post(gateway.endpoint("v1/chat/completions"), json=prompt)
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._gate.gate import SessionRequired
    from ._gate.gateway import Gateway
    from ._gate.protocol import gateway_headers
    from ._session.context import (
        current_session_id,
        no_session,
        parent_session_id,
        root_session_id,
        session_from,
        session_scope,
    )
    from ._session.handoff import (
        SessionProcessPoolExecutor,
        SessionThreadPoolExecutor,
        bind_session,
        received_session,
    )
    from ._session.ids import InvalidSessionID
    from ._transports.instrument import instrument, uninstrument
    from ._transports.requests import GatewayAdapter, GatewayMixin
    from ._transports.urllib3 import GatewayPoolManager, GatewayProxyManager

    if sys.version_info >= (3, 14):
        from ._session.interpreters import SessionInterpreterPoolExecutor

__all__ = [
    "Gateway",
    "GatewayAdapter",
    "GatewayMixin",
    "GatewayPoolManager",
    "GatewayProxyManager",
    "InvalidSessionID",
    "SessionProcessPoolExecutor",
    "SessionRequired",
    "SessionThreadPoolExecutor",
    "__version__",
    "bind_session",
    "current_session_id",
    "gateway_headers",
    "instrument",
    "no_session",
    "parent_session_id",
    "received_session",
    "root_session_id",
    "session_from",
    "session_scope",
    "uninstrument",
]
if sys.version_info >= (3, 14):
    __all__ += ["SessionInterpreterPoolExecutor"]

# Where each public name is. It is loaded when it is first asked for: scopes need no HTTP library,
# and a test run that does not use this package is not to wait for one because of the pytest plugin.
_MODULES = {
    name: module
    for module, names in {
        "_gate.gate": ["SessionRequired"],
        "_gate.gateway": ["Gateway"],
        "_gate.protocol": ["gateway_headers"],
        "_session.context": [
            *("current_session_id", "parent_session_id", "root_session_id"),
            *("no_session", "session_from", "session_scope"),
        ],
        "_session.handoff": [
            *("SessionProcessPoolExecutor", "SessionThreadPoolExecutor"),
            *("bind_session", "received_session"),
        ],
        "_session.ids": ["InvalidSessionID"],
        # Which says with an ImportError that it needs Python 3.14.
        "_session.interpreters": ["SessionInterpreterPoolExecutor"],
        "_transports.instrument": ["instrument", "uninstrument"],
        "_transports.requests": ["GatewayAdapter", "GatewayMixin"],
        "_transports.urllib3": ["GatewayPoolManager", "GatewayProxyManager"],
    }.items()
    for name in names
}
_SUBMODULES = ["headers", "integrations", "testing"]

# What people look for here, and where it is instead.
_ELSEWHERE = {
    "AsyncGatewayTransport": "integrations.httpx or cagent_session.integrations.httpx2",
    "GatewayTransport": "integrations.httpx or cagent_session.integrations.httpx2",
    "GatewayMiddleware": "integrations.aiohttp",
    "RecordingGateway": "testing",
    "SessionIDFilter": "integrations.logging",
    "SessionMiddleware": "integrations.asgi or cagent_session.integrations.wsgi",
    "SessionSpanProcessor": "integrations.opentelemetry",
    "add_session_id": "integrations.structlog",
    "carry_session": "integrations.threads or cagent_session.integrations.celery",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _ELSEWHERE:
        raise ImportError(f"{name} is in cagent_session.{_ELSEWHERE[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
