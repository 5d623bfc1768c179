"""Every Python snippet of the documentation, as it stands, against a gateway on loopback."""

from __future__ import annotations

import configparser
import doctest
import gc
import importlib
import inspect
import itertools
import logging
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.public import public_names

import cagent_session
from cagent_session import uninstrument
from cagent_session.testing import RecordingGateway

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The code on these is run by tests/clients, test_comparison.py and tests/frameworks.
ELSEWHERE = {"clients.md", "comparison.md", "frameworks.md"}
TUTORIALS = [page for page in PAGES if page.name not in ELSEWHERE]


def snippets(page: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


# A page leaves its clients open, as readers may; they are collected here, not in a later test.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "default::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_snippets_of_page_run(page: Path, monkeypatch, request, tmp_path):
    """In order, in one module, with the gateway's address in place of the one on paper."""
    monkeypatch.chdir(tmp_path)  # where a page leaves its files
    with RecordingGateway() as gateway:
        monkeypatch.setenv("DOCKER_AGENT_MODELS_GATEWAY", gateway.url)
        monkeypatch.setenv("STAGE", "staging")
        run_snippets(page, gateway.url, request)
        gc.collect()
    for arrived in gateway.requests:
        assert arrived.session_id is not None


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Undo what pages do to the process: log levels and handlers, instrument()."""
    loggers = [logging.getLogger(), logging.getLogger("cagent_session")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    uninstrument()
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def run_snippets(page: Path, url: str, request: pytest.FixtureRequest) -> None:
    namespace: dict = {"__name__": "__main__"}
    for number, snippet in enumerate(snippets(page), 1):
        code = re.sub(r"https://gateway\.example|http://127\.0\.0\.1:8080", url, snippet)
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


def test_example_with_processes_runs_as_a_script_where_they_are_spawned(tmp_path):
    (example,) = [code for code in snippets(ROOT / "docs" / "context.md") if "__main__" in code]
    spawn = 'import multiprocessing\nmultiprocessing.set_start_method("spawn", force=True)\n'
    script = tmp_path / "example.py"
    script.write_text(spawn + example, encoding="utf-8")
    subprocess.run([sys.executable, script], check=True, timeout=60)


def test_first_example_prints_the_log_that_the_readme_shows():
    """Pasted as it stands, with the address that the page starts the gateway at."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    cagent-session (gateway --port \d+)$", readme, re.MULTILINE)
    paper = f"http://127.0.0.1:{command.rpartition(' ')[2]}"
    example = snippets(ROOT / "README.md")[0]
    assert f'"{paper}"' in example
    log = re.findall(r"^200  session=.*$", readme, re.MULTILINE)
    arguments = [sys.executable, "-m", "cagent_session", "gateway", "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+", gateway.stdout.readline())[0]
            names: dict[str, Any] = {}
            code = example.replace(paper, address)
            exec(code.replace("gateway.mount(http)", "").replace('"order-4711"', ""), names)
            names["http"].close()
            exec(code, names)
            names["http"].close()
            called = (line for line in gateway.stdout if "session=" in line)
            printed = [next(called) for _ in log]
        finally:
            gateway.terminate()
    for shown, line in zip(log, printed, strict=True):
        assert set(re.split("  +", shown)) <= set(re.split("  +", line.strip()))


def test_readme_shows_log_and_code_within_25_lines():
    start = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25])
    assert "session=- " in start
    assert "session=order-4711" in start
    assert snippets(ROOT / "README.md")[0] in start + "\n"


def test_every_page_is_in_the_readme_and_in_the_site():
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("\n## The pages\n")[2]
    named = dict(re.findall(r"^\| \[(.+)\]\(docs/(\w+)\.md\)", table, re.MULTILINE))
    assert set(named.values()) == pages - {"changelog"}
    for title, page in named.items():
        assert f"# {title}\n" in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    site = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\w+$", site, re.MULTILINE)) == pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_page_lead_to_files_and_are_named_by_titles(page: Path):
    links = re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for text, target in links:
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target
            assert not re.search(r"[a-z]\.md\b", text) or "/" in text, text


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings by GitHub's rule, which is MyST's, too."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,3} (.*)$", prose, re.MULTILINE):  # as deep as conf.py says
        title = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower().replace(" ", "-")
        slug = re.sub(r"[^\w-]", "", title)
        repeated = (f"{slug}-{number}" for number in itertools.count(1))
        found.add(next(each for each in itertools.chain([slug], repeated) if each not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_page_lead_to_headings(page: Path):
    for target in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            assert anchor in anchors(page.parent / path if path else page), target


def test_test_files_that_pages_name_are_there():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(?:\w+` in `)?(tests/[\w/]+(?:\.py)?)`", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_no_page_installs_from_an_index():
    """The package is not on one; how to install it from a checkout is said once, in the README."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"pip install '?cagent-session|cagent-session\[", text), page


# What this Python is too old for.
OF_NEWER_PYTHONS = ["interpreters"] if sys.version_info < (3, 14) else []


def test_examples_in_docstrings_run():
    for module in pkgutil.walk_packages(cagent_session.__path__, "cagent_session."):
        if not module.name.endswith(("__main__", *OF_NEWER_PYTHONS)):
            doctest.testmod(importlib.import_module(module.name), raise_on_error=True)


def test_reference_has_the_versions_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = setup["options"]["install_requires"].split()
    extras = setup["options.extras_require"]
    written = dict(
        re.findall(r"\| `(\w[\w-]+[><=].*)` \| (?:`(\w+)`)? *\|$", REFERENCE_PAGE, re.MULTILINE)
    )
    assert written == dict.fromkeys(needed, "") | {
        extras[extra].strip(): extra for extra in extras if extra != "test"
    }


PUBLIC = dict(public_names())

# A directive of autodoc: the name, its signature if that is not the code's, the members shown.
DIRECTIVE = re.compile(
    r"^\.\. auto(?:class|data|exception|function):: ([\w.]+)(\(.*\))?\n"
    r"(?:   :members:(.*)\n)?",
    re.MULTILINE,
)
REFERENCE_PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
# A name that only newer Pythons have cannot be read from the code on all of them.
WRITTEN_BY_HAND = re.findall(r"^\.\. py:class:: ([\w.]+)", REFERENCE_PAGE, re.MULTILINE)
REFERENCE = {
    name: (signature, members) for name, signature, members in DIRECTIVE.findall(REFERENCE_PAGE)
}
REFERENCE |= dict.fromkeys(WRITTEN_BY_HAND, ("()", ""))


def test_reference_has_every_public_name_and_no_other():
    assert REFERENCE.keys() - PUBLIC.keys() == set(WRITTEN_BY_HAND if OF_NEWER_PYTHONS else [])
    assert PUBLIC.keys() - REFERENCE.keys() == set()
    with pytest.raises(AttributeError):
        cagent_session.nonsense  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_of_public_name_is_documented(name):
    value = PUBLIC[name]
    signature, members = REFERENCE[name]
    if isinstance(value, str):  # the name of a header
        return
    assert inspect.getdoc(value)
    called = value.__init__ if inspect.isclass(value) else value
    made_in = getattr(called, "__module__", None) or ""
    # What another library's class takes is documented there.
    if signature != "()" and made_in.startswith("cagent_session"):
        assert_documented(value)
    for member in filter(None, members.split(",")):
        assert_documented(getattr(value, member.strip()))


def assert_documented(function: Any) -> None:
    for parameter in inspect.signature(function).parameters:
        if parameter != "self":
            text = inspect.getdoc(function)
            assert f":param {parameter}:" in text or f"``{parameter}``" in text, function
