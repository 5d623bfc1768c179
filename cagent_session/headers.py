"""The names on the wire: docker-agent's protocol, and two names of our own."""

from __future__ import annotations

__all__ = [
    "COMPACTING",
    "FORWARD",
    "GENERATING_TITLE",
    "INSTALL_ID",
    "MODEL",
    "MODEL_NAME",
    "PARENT_SESSION_ID",
    "PROVIDER",
    "ROOT_SESSION_ID",
    "SESSION_ID",
]

#: The provider's base URL. A request that carries it is gateway-bound.
FORWARD = "X-Cagent-Forward"
#: The session, for a gateway that has no name of its own for it.
SESSION_ID = "X-Cagent-Session-Id"
#: The session's parent, for a gateway that wants it: ``parent_header=PARENT_SESSION_ID``.
PARENT_SESSION_ID = "X-Cagent-Parent-Session-Id"
#: The session's root in a message of a queue. No gateway can be given this name.
ROOT_SESSION_ID = "X-Cagent-Root-Session-Id"
#: The provider's name.
PROVIDER = "X-Cagent-Provider"
#: The model's ID.
MODEL = "X-Cagent-Model"
#: The model's name in the agent's configuration.
MODEL_NAME = "X-Cagent-Model-Name"
#: The purpose of a call: docker-agent sends ``1`` with calls that generate a session's title.
GENERATING_TITLE = "X-Cagent-GeneratingTitle"
#: The purpose of a call: docker-agent sends ``1`` with calls that compact a session's history.
COMPACTING = "X-Cagent-Compacting"
#: The installation: docker-agent sends a UUID that stays the same. Nothing is sent by itself here,
#: because it identifies a machine; ``Gateway(headers={INSTALL_ID: ...})`` sends one.
INSTALL_ID = "X-Cagent-Id"
