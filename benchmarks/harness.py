"""Time functions fairly on a noisy machine: interleaved rounds, medians, ratios within a round."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

#: Less than 1 for a quick look: fewer and shorter rounds, smaller counts.
scale = 1.0

#: What a case takes: seconds of the processor's time per call in each round, or instructions.
Samples: TypeAlias = list[float]


@dataclass(frozen=True)
class Within:
    """A case that needs the process in some state: entered before it runs, left after it."""

    state: Callable[[], AbstractContextManager[object]]
    call: Callable[[], object]


Case: TypeAlias = Callable[[], object] | Within


@dataclass(frozen=True)
class Table:
    """What a script has found, for the block of that name in docs/performance.md."""

    name: str
    head: list[str]
    rows: list[list[str]]

    @classmethod
    def read(cls, name: str, text: str) -> Table:
        """Return the table that ``str`` has made ``text`` of."""
        head, _, *rows = [line[2:-2].split(" | ") for line in text.splitlines()]
        return cls(name, head, rows)

    def __str__(self) -> str:
        lines = (self.head, ["---"] * len(self.head), *self.rows)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(
    cases: Mapping[str, Case], *, rounds: int = 41, seconds: float = 0.02
) -> dict[str, Samples]:
    """Return the times of each case. In a round every case has its turn.

    So a slow moment of the machine hits all of them, and a ratio within a round means something
    even if the rounds differ. The clock is the processor's, which stands still while others run.
    """
    seconds *= scale
    loops = {name: _calibrate(case, seconds) for name, case in cases.items()}
    times: dict[str, Samples] = {name: [] for name in cases}
    enabled = gc.isenabled()
    gc.disable()
    try:
        order = list(cases)
        for _ in range(scaled(rounds)):
            for name in order:
                times[name].append(_time(cases[name], loops[name]))
            order.append(order.pop(0))  # nobody is always the one after the collector
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    return times


def scaled(count: int) -> int:
    return max(2, round(count * scale))


def median(samples: Samples) -> float:
    return statistics.median(samples)


def added(samples: Samples, to: Samples) -> Samples:
    """Return what ``samples`` are above ``to``, round by round."""
    return [a - b for a, b in zip(samples, to, strict=True)]


def ratio(samples: Samples, to: Samples) -> float:
    """Return the median over the rounds of ``samples / to``."""
    return statistics.median(a / b for a, b in zip(samples, to, strict=True))


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs"


def show(tables: Iterable[Table]) -> None:
    for table in tables:
        print(f"\n### {table.name}\n\n{table}", flush=True)


@contextlib.contextmanager
def ready(case: Case) -> Iterator[Callable[[], object]]:
    """Enter the state that ``case`` needs, and give the function to call."""
    if isinstance(case, Within):
        with case.state():
            yield case.call
    else:
        yield case


def _calibrate(case: Case, seconds: float) -> int:
    loops = 1
    while _time(case, loops) * loops < seconds / 2:
        loops *= 2
    return loops


def _time(case: Case, loops: int) -> float:
    repeat = range(loops)
    with ready(case) as call:
        begin = time.process_time()
        for _ in repeat:
            call()
        return (time.process_time() - begin) / loops
