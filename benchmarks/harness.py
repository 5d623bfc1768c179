"""Compare functions fairly on a noisy machine: interleaved rounds, medians, ratios of one run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

ROUNDS = 21
ROUND_SECONDS = 0.02


def measure(
    cases: dict[str, Callable[[], object]], *, rounds: int = ROUNDS, seconds: float = ROUND_SECONDS
) -> dict[str, list[float]]:
    """Seconds per call of each case, in each round. In a round every case has its turn.

    So a slow moment of the machine hits all of them, and a ratio within a round means something
    even if the rounds differ.
    """
    loops = {name: _calibrate(case, seconds) for name, case in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, case in cases.items():
                times[name].append(_time(case, loops[name]))
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    return times


def median(times: list[float]) -> float:
    return statistics.median(times)


def ratio(times: dict[str, list[float]], case: str, to: str, less: str | None = None) -> float:
    """The median over the rounds of ``case / to``, both less what ``less`` takes."""
    base = times[less] if less is not None else [0.0] * len(times[case])
    rows = zip(times[case], times[to], base, strict=True)
    return statistics.median((a - c) / (b - c) for a, b, c in rows)


def _calibrate(case: Callable[[], object], seconds: float) -> int:
    loops = 1
    while _time(case, loops) * loops < seconds / 2:
        loops *= 2
    return loops


def _time(case: Callable[[], object], loops: int) -> float:
    repeat = range(loops)
    begin = time.perf_counter()
    for _ in repeat:
        case()
    return (time.perf_counter() - begin) / loops
