"""What the debug log costs a gateway-bound request, switched off and on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from unittest import mock

from harness import Table, Within, added, measure, median, microseconds, ratio, show
from requests.adapters import HTTPAdapter
from stubs import GATEWAY, OWNED, no_adapters, prepare, sender

from cagent_session import GatewayAdapter, session_scope
from cagent_session._gate import gate


class Never:
    """A logger that is switched off for good."""

    def isEnabledFor(self, level: int) -> bool:
        return False


@contextlib.contextmanager
def at_debug() -> Iterator[None]:
    logger, nowhere = logging.getLogger("cagent_session"), logging.NullHandler()
    logger.addHandler(nowhere)
    with mock.patch.object(logger, "propagate", False):
        logger.setLevel(logging.DEBUG)
        yield
        logger.setLevel(logging.NOTSET)
    logger.removeHandler(nowhere)


def tables() -> Iterator[Table]:
    send = sender(GatewayAdapter(GATEWAY), prepare(OWNED))
    with no_adapters(), session_scope("session-1"):
        times = measure(
            {
                "plain": sender(HTTPAdapter(), prepare(OWNED)),
                "no log": Within(lambda: mock.patch.object(gate, "_log", Never()), send),
                "off": send,
                "on, to a handler that drops the record": Within(at_debug, send),
            }
        )
    plain = times.pop("plain")
    more = {case: added(times[case], plain) for case in times}
    rows = [
        [case, microseconds(median(more[case])), f"{ratio(more[case], more['no log']):.2f} x"]
        for case in more
    ]
    yield Table("log", ["the log", "owned, added", "to no log"], rows)


if __name__ == "__main__":
    show(tables())
