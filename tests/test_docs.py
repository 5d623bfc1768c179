"""Every Python snippet of the documentation, as it stands, against a gateway on loopback."""

from __future__ import annotations

import doctest
import gc
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import cagent_session
from cagent_session.testing import RecordingGateway

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


# A page leaves its clients open, as readers may; they are collected here, not in a later test.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "default::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run(page: Path, monkeypatch, request):
    """In order, in one module, with the gateway's address in place of the one on paper."""
    if page.name == "clients.md":
        pytest.importorskip("openai", reason="the SDKs are installed in tox -e clients")
    if page.name == "frameworks.md":
        pytest.skip("its sections are run by tests/frameworks, each where its framework is")
    with RecordingGateway() as gateway:
        monkeypatch.setenv("DOCKER_AGENT_MODELS_GATEWAY", gateway.url)
        run_snippets(page, gateway.url, request)
        gc.collect()
    for arrived in gateway.requests:
        assert arrived.session_id is not None


def run_snippets(page: Path, url: str, request: pytest.FixtureRequest) -> None:
    namespace: dict = {"__name__": "page"}
    for number, snippet in enumerate(snippets(page), 1):
        code = snippet.replace("https://gateway.example", url)
        before = set(namespace)
        exec(compile(code, f"{page.name}, snippet {number}", "exec"), namespace)
        for name in sorted(namespace.keys() - before):
            if name.startswith("test_"):
                arguments = inspect.signature(namespace[name]).parameters
                fixtures = {name: request.getfixturevalue(name) for name in arguments}
                if "recording_gateway" in fixtures:  # pytest gives each test another one
                    fixtures["recording_gateway"].clear()
                    fixtures["recording_gateway"].respond = None
                namespace[name](**fixtures)


def test_the_links_between_the_pages():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_examples_in_docstrings():
    for module in pkgutil.iter_modules(cagent_session.__path__, "cagent_session."):
        if not module.name.endswith("__main__"):
            doctest.testmod(importlib.import_module(module.name), raise_on_error=True)


def test_public_names_are_documented():
    for name in cagent_session.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(cagent_session, name))
    with pytest.raises(AttributeError):
        cagent_session.nonsense  # noqa: B018
