"""Standard logging: the session on every record."""

from __future__ import annotations

import logging

from .._session.context import current_session_id


class SessionIDFilter(logging.Filter):
    """Sets ``record.session_id``, for formats such as ``%(session_id)s``.

    Add it to a *handler*: a logger's filters see only the records that are logged to that very
    logger. A ``session_id`` that a record has already is kept, so that a record keeps its
    session when it is handed to another thread, as ``QueueHandler`` does.

    :param default: what stands there outside every scope.

    ::

        handler = logging.StreamHandler()
        handler.addFilter(SessionIDFilter())
        handler.setFormatter(logging.Formatter("%(session_id)s %(message)s"))
    """

    def __init__(self, default: str = "-") -> None:
        super().__init__()
        self.default = default

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if not hasattr(record, "session_id"):
            record.session_id = current_session_id() or self.default
        return True
