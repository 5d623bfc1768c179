"""The page docs/frameworks.md, section by section.

No environment can hold all frameworks. So the tests of each framework run its section, and lie in
the folder of the environment that has it: ``newest``, ``openai2`` or ``crewai``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

from cagent_session.testing import RecordingGateway

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
BEGINNING = "By hand"  #: the section whose snippets all others begin with


def sections() -> dict[str, list[str]]:
    """The Python snippets by the titles of the sections."""
    _, *parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    snippet = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    texts = zip(parts[::2], parts[1::2], strict=True)
    return {title: snippet.findall(text) for title, text in texts}


def run(title: str) -> RecordingGateway:
    """Run the snippets of a section, and check that each call is marked and has a session."""
    namespace: dict[str, Any] = {"__name__": "page"}
    # What smolagents takes for code, and all others for text.
    reply = "<code>\nfinal_answer('Hello!')\n</code>"
    with RecordingGateway(reply=reply) as gateway, mock.patch.dict(os.environ):
        for number, snippet in enumerate([*sections()[BEGINNING], *sections()[title]], 1):
            code = snippet.replace("https://gateway.example", gateway.url)
            exec(compile(code, f"{title}, snippet {number}", "exec"), namespace)
    assert gateway.requests
    for arrived in gateway.requests:
        assert arrived.session_id is not None
        assert arrived.forward is not None
    return gateway
