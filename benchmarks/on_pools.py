"""What it takes to carry the session into a thread pool."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from comparison import Comparison, tables_of
from harness import Table, Within, show
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from cagent_session import SessionThreadPoolExecutor, bind_session, session_scope
from cagent_session.integrations.threads import carry_session

CALLS = 50  # of one turn, so that waiting for the worker is next to nothing of it
UNIT = f"{CALLS} x `pool.submit(fn)`"


def tables() -> Iterator[Table]:
    return tables_of("on_pools", comparisons())


def comparisons() -> Iterator[Comparison]:
    def within(*states: Callable[[], AbstractContextManager[object]]) -> Callable[[], object]:
        @contextlib.contextmanager
        def all_of_them() -> Iterator[None]:
            with contextlib.ExitStack() as stack:
                for state in states:
                    stack.enter_context(state())
                yield

        return all_of_them

    def in_session() -> AbstractContextManager[object]:
        return session_scope("session-1")

    plain, ours = ThreadPoolExecutor(1), SessionThreadPoolExecutor(1)
    cases = {
        UNIT: Within(within(in_session), submitter(plain)),
        f"{UNIT}, with `carry_session()`": Within(
            within(in_session, carry_session), submitter(plain)
        ),
        f"{CALLS} x `pool.submit(bind_session(fn))`": Within(
            within(in_session), submitter(plain, bind_session)
        ),
        f"{CALLS} x `SessionThreadPoolExecutor.submit(fn)`": Within(
            within(in_session), submitter(ours)
        ),
        f"{UNIT}, with OpenTelemetry's threading instrumentation": Within(
            within(in_session, traced), submitter(plain)
        ),
    }
    yield Comparison("pools", UNIT, cases)


def submitter(
    pool: ThreadPoolExecutor, bind: Callable[[Callable[[], None]], Callable[[], None]] | None = None
) -> Callable[[], object]:
    def fn() -> None:
        pass

    def submit() -> None:
        for _ in range(CALLS):
            future = pool.submit(fn if bind is None else bind(fn))
        future.result()

    return submit


@contextlib.contextmanager
def traced() -> Iterator[None]:
    instrumentor = ThreadingInstrumentor()
    instrumentor.instrument()
    try:
        yield
    finally:
        instrumentor.uninstrument()


if __name__ == "__main__":
    show(tables())
