"""The chart of docs/performance.md, from what the scripts have found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from harness import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHERS, LIBRARY = "#1f6fb4", "#b8bec6", "#7d8691"
LIBRARIES = ("requests", "urllib3", "httpx", "httpx2")
#: How the case is called in the table of each library.
BARS = {
    "a copy by the library's own class": (
        LIBRARY,
        ("the `request.copy()` idiom", "copying the headers", *["the `Request(...)` idiom"] * 2),
    ),
    "our transport": (
        OURS,
        (
            "`GatewayAdapter(gateway)`, gateway-bound by URL",
            "`GatewayPoolManager(gateway)`, gateway-bound by URL",
            *["`GatewayTransport(gateway)`, gateway-bound by URL"] * 2,
        ),
    ),
    "OpenTelemetry's instrumentation": (
        OTHERS,
        (
            *["OpenTelemetry's instrumentation, baggage"] * 2,
            *["OpenTelemetry's transport, baggage"] * 2,
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
        shares = [table.figures[f"{library}, {case}"] * 100 for library in LIBRARIES]
        bars = axes.barh([row + offset for row in range(len(LIBRARIES))], shares, 0.26, color=color)
        axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.axvline(100, color=OTHERS, linewidth=0.8, zorder=0)
    axes.set_xlim(0, 120)
    axes.set_title("Requests a client can send, plain = 100 %")
    tidy(axes)


def added(axes: Axes, tables: Mapping[str, Table]) -> None:
    for offset, (label, (color, cases)) in zip((-0.27, 0, 0.27), BARS.items(), strict=True):
        times = [
            tables[library].figures[case] for library, case in zip(LIBRARIES, cases, strict=True)
        ]
        rows = [row + offset for row in range(len(LIBRARIES))]
        bars = axes.barh(rows, times, 0.25, color=color, label=label)
        axes.bar_label(bars, fmt="%.1f µs", padding=3)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 1000)
    axes.set_title("Added to one request, without a network (log scale)")
    tidy(axes)


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_xticks([], minor=True)
