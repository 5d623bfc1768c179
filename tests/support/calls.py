"""Calls of a recording gateway as an agent without this package would make them."""

from __future__ import annotations

import requests

from cagent_session.testing import RecordingGateway

PROMPT = {
    "model": "gpt-x",
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "one two three"}]},
    ],
}


def call(recording: RecordingGateway, session_id: str, *, parent: str | None = None) -> int:
    """Ask for a completion; gives the status of the answer."""
    headers = {"X-Cagent-Session-Id": session_id, "X-Cagent-Parent-Session-Id": parent}
    url = recording.url + "/v1/chat/completions"
    return requests.post(url, json=PROMPT, headers=headers, timeout=5).status_code
