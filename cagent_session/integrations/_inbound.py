"""The session of what comes in from outside, where anyone could have written the ID."""

from __future__ import annotations

import logging
from typing import TypeAlias

from ..context import InvalidSessionID, check_session_id, no_session, session_scope

Scope: TypeAlias = session_scope | no_session

_log = logging.getLogger("cagent_session")


def scope_of(session_id: str | None, origin: str) -> Scope:
    """The scope for ``session_id``; of none, if there is none or it is malformed.

    :param origin: where it comes from, for the warning.
    """
    if session_id is None:
        return no_session()
    try:
        return session_scope(check_session_id(session_id))
    except InvalidSessionID as error:
        _log.warning("ignored the session of %s: %s", origin, error)
        return no_session()
