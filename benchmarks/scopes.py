"""What entering and leaving a scope takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

import structlog
from harness import Table, measure, median, microseconds, ratio, show
from opentelemetry import context

from cagent_session import session_scope

UNIT = "a bare `ContextVar.set` and `reset`"


def tables() -> Iterator[Table]:
    variable: ContextVar[str] = ContextVar("variable")
    scope = session_scope("session-1")

    def bare() -> None:
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

    times = measure(
        {
            UNIT: bare,
            "`with scope:`, one object entered again and again": entered_again,
            '`with session_scope("session-1"):`': made_and_entered,
            "OpenTelemetry's `attach` and `detach`": of_opentelemetry,
            "structlog's `bound_contextvars`": of_structlog,
        }
    )
    rows = [
        [case, microseconds(median(times[case])), f"{ratio(times[case], times[UNIT]):.1f} x"]
        for case in times
    ]
    yield Table("scopes", ["case", "time", f"to {UNIT}"], rows)


if __name__ == "__main__":
    show(tables())
