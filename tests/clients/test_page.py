"""The page docs/clients.md, section by section, as it stands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from cagent_session import uninstrument
from cagent_session.testing import RecordedRequest, RecordingGateway

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"

OPENAI = "https://api.openai.com/v1"
ANTHROPIC = "https://api.anthropic.com"
MISTRAL = "https://api.mistral.ai"
#: Where the gateway is to relay the calls of each section.
FORWARDS = {
    "What instrument covers": [OPENAI],
    "Several providers or models over one client": [
        OPENAI,
        f"{MISTRAL}/v1",
        ANTHROPIC,
        f"{MISTRAL}/v1",
        ANTHROPIC,
    ],
    "What a call is for": [OPENAI, OPENAI],
    "openai": [OPENAI, OPENAI, OPENAI],
    "anthropic": [ANTHROPIC],
    "mistralai": [MISTRAL, MISTRAL],
    "google-genai": ["https://generativelanguage.googleapis.com"],
    "groq": ["https://api.groq.com"],
    "ollama": ["http://ollama.example:11434"],
    "cohere and voyageai": ["https://api.cohere.com", "https://api.voyageai.com/v1"],
    "boto3 for Amazon Bedrock": ["https://bedrock-runtime.us-east-1.amazonaws.com"],
    "aiohttp": [OPENAI],
    "httpx": [OPENAI],
    "urllib3 and OpenAPI-generated clients": [OPENAI],
    "huggingface_hub": ["https://router.huggingface.co/v1"],
    "Other sessions and other adapters of requests": [OPENAI, OPENAI],
}


def sections() -> Iterator[tuple[str, list[str]]]:
    first, *parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    snippet = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for title, text in zip(["", *parts[::2]], [first, *parts[1::2]], strict=True):
        yield title, snippet.findall(text)


def respond(asked: RecordedRequest) -> dict | None:
    """Answer where the gateway's own shapes are not those of the SDK."""
    if asked.path == "/v2/chat":
        message = {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]}
        return {"id": "1", "finish_reason": "COMPLETE", "message": message}
    if asked.path == "/v1/embeddings":
        data = [{"object": "embedding", "embedding": [0.5], "index": 0}]
        return {"object": "list", "data": data, "model": "m", "usage": {"total_tokens": 1}}
    return None


@pytest.fixture
def arrived() -> Iterator[dict[str, list]]:
    """What arrives of each section, when they are run in order and in one module."""
    namespace: dict = {"__name__": "page"}
    arrived = {}
    with RecordingGateway(respond=respond) as gateway:
        for title, snippets in sections():
            for number, snippet in enumerate(snippets, 1):
                code = snippet.replace("https://gateway.example", gateway.url)
                exec(compile(code, f"{title}, snippet {number}", "exec"), namespace)
            arrived[title] = gateway.requests
            gateway.clear()
    yield arrived
    uninstrument()
    set_client_factory(default_client_factory)


@pytest.mark.skipif(
    sys.version_info >= (3, 15), reason="a dependency of voyageai has no wheel for Python 3.15 yet"
)
def test_each_call_is_relayed_to_its_provider_in_its_session(arrived):
    forwards = {
        title: [each.forward for each in calls] for title, calls in arrived.items() if calls
    }
    assert forwards == FORWARDS
    for calls in arrived.values():
        for call in calls:
            assert call.session_id == "session-1"
    purposes = [
        (call.headers["X-Cagent-GeneratingTitle"], call.headers["X-Cagent-Compacting"])
        for call in arrived["What a call is for"]
    ]
    assert purposes == [("1", None), (None, "1")]
