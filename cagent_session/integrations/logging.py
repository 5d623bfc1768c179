"""Filter for the standard library's logging that sets the session on every record."""

from __future__ import annotations

import logging

from .._session.context import current_session_id


class SessionIDFilter(logging.Filter):
    """Set ``record.session_id`` on every record, for formats with ``%(session_id)s``.

    Add it to a *handler*. A filter of a logger sees only the records that are logged to that very
    logger, not those of its children. A record that has a ``session_id`` already keeps it, so that
    a record keeps its session when it is handed to another thread, as ``QueueHandler`` does.

    :param default: the value outside every session.

    ::

        handler = logging.StreamHandler()
        handler.addFilter(SessionIDFilter())
        handler.setFormatter(logging.Formatter("%(session_id)s %(message)s"))
    """

    def __init__(self, default: str = "-") -> None:
        super().__init__()
        self.default = default

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the session. Every record passes."""
        if not hasattr(record, "session_id"):
            record.session_id = current_session_id() or self.default
        return True
