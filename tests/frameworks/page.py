"""The page docs/frameworks.md, section by section.

Each framework's tests run their own section, as no environment can hold all frameworks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

from cagent_session.testing import RecordingGateway

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
TWO_LINES = "Two lines for all of them"
BY_HAND = "By hand"

#: For each framework of the table the distribution whose version it shows, and the test module.
TESTED = {
    "agno": ("agno", "test_agno"),
    "AutoGen": ("autogen-agentchat", "test_autogen"),
    "CAMEL": ("camel-ai", "test_camel"),
    "CrewAI": ("crewai", "test_crewai"),
    "deepagents": ("deepagents", "test_deepagents"),
    "DSPy": ("dspy", "test_dspy"),
    "Google ADK": ("google-adk", "test_google_adk"),
    "Haystack": ("haystack-ai", "test_haystack"),
    "LangChain, LangGraph": ("langchain", "test_langchain"),
    "LiteLLM's SDK": ("litellm", "test_litellm_sdk"),
    "LlamaIndex": ("llama-index-core", "test_llama_index"),
    "MCP clients": ("mcp", "test_mcp"),
    "Microsoft Agent Framework": ("agent-framework-core", "test_agent_framework"),
    "OpenAI Agents SDK": ("openai-agents", "test_openai_agents"),
    "Pydantic AI": ("pydantic-ai-slim", "test_pydantic_ai"),
    "Semantic Kernel": ("semantic-kernel", "test_semantic_kernel"),
    "smolagents": ("smolagents", "test_smolagents"),
    "Strands": ("strands-agents", "test_strands"),
}

_ROW = re.compile(r"^(\| \[([^]]+)\]\(#.*\| )([^|]+)( \|)$", re.MULTILINE)

# What every framework takes for an answer: smolagents reads code, DSPy a field.
_REPLY = "[[ ## answer ## ]]\n<code>\nfinal_answer('Hello!')\n</code>"
_GEMINIS = {"candidates": [{"content": {"role": "model", "parts": [{"text": "Hello!"}]}}]}


def sections() -> dict[str, list[str]]:
    """The Python snippets by the titles of the sections."""
    _, *parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    snippet = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    texts = zip(parts[::2], parts[1::2], strict=True)
    return {title: snippet.findall(text) for title, text in texts}


def run(title: str, beginning: str = BY_HAND) -> RecordingGateway:
    """Run the snippets of two sections, and check that each call is stamped with a session."""
    namespace: dict[str, Any] = {"__name__": "page"}
    gateway = RecordingGateway(
        reply=_REPLY,
        respond=lambda asked: _GEMINIS if ":generateContent" in asked.path else None,
    )
    with gateway, mock.patch.dict(os.environ):
        for number, snippet in enumerate([*sections()[beginning], *sections()[title]], 1):
            code = snippet.replace("https://gateway.example", gateway.url)
            exec(compile(code, f"{title}, snippet {number}", "exec"), namespace)
    assert gateway.requests
    for arrived in gateway.requests:
        assert arrived.session_id is not None
        assert arrived.forward is not None
    return gateway


def versions() -> dict[str, str]:
    """The column "tested with" by framework."""
    return {name: cell for _, name, cell, _ in _ROW.findall(PAGE.read_text(encoding="utf-8"))}


def write(tested: dict[str, str]) -> None:
    """Write the column "tested with" of these frameworks."""
    text = PAGE.read_text(encoding="utf-8")
    text = _ROW.sub(lambda row: f"{row[1]}{tested.get(row[2], row[3])}{row[4]}", text)
    PAGE.write_text(text, encoding="utf-8")
