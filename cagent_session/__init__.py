"""The session of an agent, on every request to its models gateway.

http = requests.Session()
gateway = Gateway("https://gateway.example", forward="https://api.openai.com/v1")
gateway.mount(http)

@session_from("session_id")
def run(session_id, prompt):
    return http.post(gateway.endpoint("v1/chat/completions"), json=prompt)
"""

from typing import TYPE_CHECKING, Any

from ._gate.gate import SessionRequired
from ._gate.gateway import Gateway, gateway_headers
from ._session.context import (
    InvalidSessionID,
    current_session_id,
    no_session,
    parent_session_id,
    root_session_id,
    session_from,
    session_scope,
)
from ._transports.requests import GatewayAdapter, GatewayMixin
from ._transports.urllib3 import GatewayPoolManager, GatewayProxyManager
from ._version import __version__

if TYPE_CHECKING:
    from ._session.handoff import (
        SessionProcessPoolExecutor,
        SessionThreadPoolExecutor,
        bind_session,
        received_session,
    )
    from ._transports.instrument import instrument, uninstrument

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


def __getattr__(name: str) -> Any:
    # Loaded when asked for: concurrent.futures would double the import time of the package.
    if name in ("instrument", "uninstrument"):
        from ._transports import instrument as _instrument

        return getattr(_instrument, name)
    if name in __all__:
        from ._session import handoff

        return getattr(handoff, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
