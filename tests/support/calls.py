"""Calls of a recording gateway as an agent without this package would make them."""

from __future__ import annotations

from typing import Any

import requests

from cagent_session.testing import RecordingGateway

PROMPT = {
    "model": "gpt-x",
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "one two three"}]},
    ],
}


def audit_entry(**fields: Any) -> dict[str, Any]:
    """Return an entry as the audit log has it, of a call that was served."""
    return {
        "time": "2026-01-01T00:00:00+00:00",
        **dict.fromkeys(("forward", "provider", "model", "parent_session_id")),
        "session_id": "s1",
        "method": "GET",
        "path": "/",
        "status": 200,
        "prompt_tokens": 2,
        "completion_tokens": 1,
    } | fields


def call(
    recording: RecordingGateway, session_id: str | None = None, *, parent: str | None = None
) -> int:
    """Ask for a completion; return the status of the answer."""
    headers = {"X-Cagent-Session-Id": session_id, "X-Cagent-Parent-Session-Id": parent}
    url = recording.url + "/v1/chat/completions"
    return requests.post(url, json=PROMPT, headers=headers, timeout=5).status_code
