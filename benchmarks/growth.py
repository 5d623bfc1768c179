"""What becomes of the cost with more headers, more threads, deeper scopes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import requests
from harness import Table, added, measure, median, microseconds, ratio, show
from requests.adapters import HTTPAdapter
from stubs import AT_GATEWAY, GATEWAY, CopyIdiom, no_adapters, prepare, sender

from cagent_session import GatewayAdapter, current_session_id, session_scope

SENDS = 200  # of each thread


def tables() -> Iterator[Table]:
    with no_adapters():
        yield by_headers()
        yield by_threads()
    yield by_depth()


def by_headers() -> Table:
    rows = []
    for count in (0, 15, 75):
        headers = {f"X-Header-{number}": "value" for number in range(count)}
        with session_scope("session-1"):
            times = measure(
                {
                    "plain": sender(HTTPAdapter(), prepare(AT_GATEWAY, headers)),
                    "copy": sender(CopyIdiom(), prepare(AT_GATEWAY, headers)),
                    "ours": sender(GatewayAdapter(GATEWAY), prepare(AT_GATEWAY, headers)),
                },
                rounds=15,
            )
        ours, copy = (added(times[case], times["plain"]) for case in ("ours", "copy"))
        total = len(prepare(AT_GATEWAY, headers).headers)
        rows.append([str(total), microseconds(median(ours)), f"{ratio(ours, copy):.2f} x"])
    return Table(
        "headers", ["headers", "added, gateway-bound by URL", "to the `request.copy()` idiom"], rows
    )


def by_threads() -> Table:
    rows = []
    for count in (1, 8, 32):
        times = measure(
            {
                "plain": in_threads(count, HTTPAdapter()),
                "ours": in_threads(count, GatewayAdapter(GATEWAY)),
            },
            rounds=15,
            seconds=0.1,
        )
        each = median(added(times["ours"], times["plain"])) / (count * SENDS)
        rows.append([str(count), microseconds(each)])
    return Table("threads", ["threads that share one adapter", "added per request"], rows)


def in_threads(count: int, adapter: HTTPAdapter) -> Callable[[], None]:
    def work(number: int, request: requests.PreparedRequest) -> None:
        send = sender(adapter, request)
        with session_scope(f"s{number}"):
            for _ in range(SENDS):
                send()

    def run() -> None:
        threads = [
            threading.Thread(target=work, args=(number, prepare(AT_GATEWAY)))
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def by_depth() -> Table:
    rows = []
    for depth in (1, 10, 100):
        with contextlib.ExitStack() as stack:
            for number in range(depth - 1):
                stack.enter_context(session_scope(f"s{number}"))
            scope = session_scope("innermost")

            def enter(scope: session_scope = scope) -> None:
                with scope:
                    current_session_id()

            times = measure({"enter": enter}, rounds=15)
        rows.append([str(depth), microseconds(median(times["enter"]))])
    return Table("depth", ["open scopes", "enter, read and leave the innermost"], rows)


if __name__ == "__main__":
    show(tables())
