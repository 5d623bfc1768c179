"""Compare cases with one of them, by the clock and in instructions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import instructions
from harness import Case, Samples, Table, added, measure, median, microseconds, ratio


@dataclass(frozen=True)
class Comparison:
    """Cases of which each is shown as a multiple of one of them, the unit.

    :param name: of the table in docs/performance.md.
    :param unit: the name of the case that the others are multiples of.
    :param plain: the name of a case that is taken off all others, which then show what they add.
    :param plain_of_unit: the case that is taken off the unit, if the unit is of another library;
        neither of the two has a row then.
    """

    name: str
    unit: str
    cases: Mapping[str, Case]
    plain: str | None = None
    plain_of_unit: str | None = None

    def only(self, names: Collection[str]) -> Comparison:
        """Return the comparison of the cases that ``names`` ask for, which may be none.

        :param names: the comparison's own, or parts of the names of its cases.
        """
        if self.name in names:
            return self
        asked = {case for case in self.cases if any(name in case for name in names)}
        if asked:
            asked |= {self.unit, self.plain, self.plain_of_unit}
        return replace(self, cases={name: self.cases[name] for name in self.cases if name in asked})

    def table(self, times: Mapping[str, Samples], counts: Mapping[str, Samples]) -> Table:
        """Return the table of what was measured; what was not is a dash."""
        hidden = {self.plain, self.plain_of_unit}
        if self.plain_of_unit is not None:
            hidden.add(self.unit)
        shown = [case for case in self.cases if case not in hidden]
        by_clock, in_instructions = self._relative(times), self._relative(counts)
        rows = []
        for case in shown:
            cells = [case, "-", "-"]
            if case in by_clock:
                taken, multiple = by_clock[case]
                cells[1] = f"{microseconds(taken)} ({multiple:.2f} x)"
            if case in in_instructions:
                taken, multiple = in_instructions[case]
                cells[2] = f"{taken:,.0f} ({multiple:.2f} x)"
            rows.append(cells)
        what = "time" if self.plain is None else "added"
        head = ["case", f"{what}, by the clock", f"{what}, in instructions"]
        return Table(self.name, head, rows)

    def _relative(self, samples: Mapping[str, Samples]) -> dict[str, tuple[float, float]]:
        """Return for each case what it takes, less the plain one, and the multiple of the unit."""
        if not samples:
            return {}
        unit = self._less(samples, self.unit, self.plain_of_unit or self.plain)
        taken = {case: self._less(samples, case, self.plain) for case in samples}
        return {case: (median(each), ratio(each, unit)) for case, each in taken.items()}

    def _less(self, samples: Mapping[str, Samples], case: str, plain: str | None) -> Samples:
        return samples[case] if plain is None else added(samples[case], samples[plain])


def tables_of(script: str, comparisons: Iterable[Comparison]) -> Iterator[Table]:
    """Return the table of each of ``script``'s comparisons, by the clock and in instructions."""
    counts = instructions.count(script) if instructions.wanted else {}
    for comparison in comparisons:
        yield comparison.table(measure(comparison.cases), counts.get(comparison.name, {}))
