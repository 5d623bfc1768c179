"""What it takes to enter and leave a scope."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

import structlog
from comparison import Comparison, tables_of
from harness import Table, show
from opentelemetry import context

from cagent_session import session_scope

UNIT = "`ContextVar.set` and `reset`"


def tables() -> Iterator[Table]:
    return tables_of("scopes", comparisons())


def comparisons() -> Iterator[Comparison]:
    variable: ContextVar[str] = ContextVar("variable")
    scope = session_scope("session-1")

    def set_and_reset() -> None:
        token = variable.set("session-1")
        variable.reset(token)

    def entered_again() -> None:
        with scope:
            pass

    def made_and_entered() -> None:
        with session_scope("session-1"):
            pass

    def of_structlog() -> None:
        with structlog.contextvars.bound_contextvars(session_id="session-1"):
            pass

    def of_opentelemetry() -> None:
        context.detach(context.attach(context.set_value("session.id", "session-1")))

    cases = {
        UNIT: set_and_reset,
        "`with scope:`, one object entered again and again": entered_again,
        '`with session_scope("session-1"):`': made_and_entered,
        "OpenTelemetry's `attach` and `detach`": of_opentelemetry,
        "structlog's `bound_contextvars`": of_structlog,
    }
    yield Comparison("scopes", UNIT, cases)


if __name__ == "__main__":
    show(tables())
