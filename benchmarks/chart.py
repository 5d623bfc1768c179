"""The chart of docs/performance.md, from the tables of the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from harness import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHERS, LIBRARY = "#1f6fb4", "#b8bec6", "#7d8691"
LIBRARIES = ("requests", "urllib3", "httpx", "httpx2", "aiohttp")
#: How the case is called in the table of each library; aiohttp has no way to copy a request.
BARS = {
    "a copy by the library's own class": (
        LIBRARY,
        (
            *("the `request.copy()` idiom", "copying the headers"),
            *["the `Request(...)` idiom"] * 2,
            None,
        ),
    ),
    "our transport": (
        OURS,
        (
            "`GatewayAdapter(gateway)`, gateway-bound by URL",
            "`GatewayPoolManager(gateway)`, gateway-bound by URL",
            *["`GatewayTransport(gateway)`, gateway-bound by URL"] * 2,
            "`GatewayMiddleware(gateway)`, gateway-bound by URL",
        ),
    ),
    "OpenTelemetry's instrumentation": (
        OTHERS,
        (
            *["OpenTelemetry's instrumentation, baggage"] * 2,
            *["OpenTelemetry's transport, baggage"] * 2,
            "OpenTelemetry's instrumentation, baggage",
        ),
    ),
}


def draw(tables: Mapping[str, Table], to: Path) -> None:
    # The same figures make the same file.
    style = {
        "svg.hashsalt": "cagent-session",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.titlesize": 9,
    }
    with mpl.rc_context(style):
        # As wide as a phone, one below the other, so that the letters need no zoom there.
        figure = Figure(figsize=(4.6, 6.4), layout="constrained")
        above, below = figure.subplots(2, 1)
        end_to_end(above, tables["loopback"])
        added(below, tables)
        for axes in (above, below):
            axes.set_yticks(range(len(LIBRARIES)), LIBRARIES)
            axes.invert_yaxis()
        figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=1)
        figure.savefig(to, metadata={"Date": None})


def end_to_end(axes: Axes, table: Table) -> None:
    for offset, case, color in ((-0.14, "transport", OURS), (0.14, "OpenTelemetry", OTHERS)):
        by_case = {name: float(share) * 100 for name, _, share, *_ in table.rows}
        shares = [by_case[f"{library}, {case}"] for library in LIBRARIES]
        bars = axes.barh([row + offset for row in range(len(LIBRARIES))], shares, 0.26, color=color)
        axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.axvline(100, color=OTHERS, linewidth=0.8, zorder=0)
    axes.set_xlim(0, 120)
    axes.set_title("Requests a client can send, plain = 100 %")
    tidy(axes)


def added(axes: Axes, tables: Mapping[str, Table]) -> None:
    for offset, (label, (color, cases)) in zip((-0.27, 0, 0.27), BARS.items(), strict=True):
        found = {
            row: microseconds(tables[library], case)
            for row, (library, case) in enumerate(zip(LIBRARIES, cases, strict=True))
            if case is not None
        }
        rows, times = [row + offset for row in found], list(found.values())
        bars = axes.barh(rows, times, 0.25, color=color, label=label)
        axes.bar_label(bars, fmt="%.1f µs", padding=3)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 1000)
    axes.set_title("Added to one request, without a network (log scale)")
    tidy(axes)


def microseconds(table: Table, case: str) -> float:
    [cell] = [by_clock for name, by_clock, *_ in table.rows if name == case]
    return float(cell.split()[0])


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_xticks([], minor=True)
