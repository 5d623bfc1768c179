"""What the documentation says, for tests that need a server to run it."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"


def snippets(page: str, heading: str) -> list[str]:
    """The Python of a section that test_docs does not run, as it stands."""
    text = (DOCS / page).read_text(encoding="utf-8")
    _, _, section = text.partition(f"\n## {heading}\n")
    section, _, _ = section.partition("\n## ")
    return re.findall(r"^```py\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
