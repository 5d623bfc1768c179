"""structlog: the session in every event."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from .._session.context import current_session_id


def add_session_id(
    logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A processor that sets the key ``session_id``, if there is a session and no such key.

    :param logger: what structlog gives a processor, as the next two.
    :param method_name: is not looked at.
    :param event_dict: where the key is set.

    ::

        structlog.configure(processors=[add_session_id, structlog.processors.JSONRenderer()])
    """
    session_id = current_session_id()
    if session_id is not None:
        event_dict.setdefault("session_id", session_id)
    return event_dict
