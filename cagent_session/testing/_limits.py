"""The rate limit of the recording gateway."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import OrderedDict

_MINUTE = 60.0


class RateLimit:
    """Count the requests that each session was served within the last 60 seconds.

    :param per_minute: how many requests of one session are served; ``None`` for no limit.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        # Per session, when its requests were served. The session served last comes last, so that
        # sessions whose minute is over are found at the front and do not pile up.
        self._served_at: OrderedDict[str, list[float]] = OrderedDict()

    def seconds_to_wait(self, session_id: str | None) -> int | None:
        """Count a request; return ``None`` if it is served, else when to try again."""
        if self._per_minute is None or session_id is None:
            return None
        now = time.monotonic()
        self._forget_before(now - _MINUTE)
        served_at = self._served_at.setdefault(session_id, [])
        del served_at[: bisect_right(served_at, now - _MINUTE)]
        if len(served_at) >= self._per_minute:
            return max(1, math.ceil(_MINUTE - (now - served_at[0])))
        served_at.append(now)
        self._served_at.move_to_end(session_id)
        return None

    def _forget_before(self, time: float) -> None:
        while self._served_at:
            session_id, served_at = next(iter(self._served_at.items()))
            if served_at[-1] > time:
                return
            del self._served_at[session_id]

    def clear(self) -> None:
        """Forget all requests."""
        self._served_at.clear()
