"""What the debug log adds to a gateway-bound request, switched off and on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from unittest import mock

from comparison import Comparison, tables_of
from harness import Table, Within, show
from requests.adapters import HTTPAdapter
from stubs import AT_GATEWAY, GATEWAY, no_adapters, prepare, sender

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
    return tables_of("log", comparisons())


def comparisons() -> Iterator[Comparison]:
    send = sender(GatewayAdapter(GATEWAY), prepare(AT_GATEWAY))
    cases = {
        "plain": sender(HTTPAdapter(), prepare(AT_GATEWAY)),
        "no log": Within(lambda: mock.patch.object(gate, "_log", Never()), send),
        "off": send,
        "on, to a handler that drops the record": Within(at_debug, send),
    }
    with no_adapters(), session_scope("session-1"):
        yield Comparison("log", "no log", cases, plain="plain")


if __name__ == "__main__":
    show(tables())
