"""What a great many scopes and requests leave behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

from harness import Table, scaled, show
from stubs import AT_GATEWAY, GATEWAY, no_adapters, prepare, sender

from cagent_session import GatewayAdapter, session_scope


def tables() -> Iterator[Table]:
    def scope() -> None:
        with session_scope("session-1"):
            pass

    rows = []
    count = scaled(1_000_000)
    with no_adapters(), session_scope("session-1"):
        send = sender(GatewayAdapter(GATEWAY), prepare(AT_GATEWAY))
        for name, case in (("scopes", scope), ("requests", send)):
            for _ in range(1000):
                case()
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(count):
                case()
            gc.collect()
            rows.append([f"{count:,} {name}", str(sys.getallocatedblocks() - before)])
    yield Table("memory", ["after", "blocks of memory more than before"], rows)


if __name__ == "__main__":
    show(tables())
