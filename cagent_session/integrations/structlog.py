"""structlog processor that adds the session to every event."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from .._session.context import current_session_id


def add_session_id(
    logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the key ``session_id`` to an event that is logged in a session.

    An event that has the key already is left as it is; outside every session no key is added.
    structlog passes the arguments.

    :param logger: the wrapped logger; not used.
    :param method_name: the name of the log method, such as ``"info"``; not used.
    :param event_dict: the event that the key is added to.

    ::

        structlog.configure(processors=[add_session_id, structlog.processors.JSONRenderer()])
    """
    session_id = current_session_id()
    if session_id is not None:
        event_dict.setdefault("session_id", session_id)
    return event_dict
