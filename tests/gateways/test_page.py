"""The tables of docs/gateways.md, against the tests and the recipes that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import PAGE, gateway_of_the_page

HERE = Path(__file__).parent
TEXT = PAGE.read_text(encoding="utf-8")

CLAIMS = [
    "bills tokens",
    "counts calls",
    "limits a session",
    "keeps it on a worker",
    "refuses calls without one",
    "ties it to its owner",
]
# For each claim that the first table makes, the test that shows it.
ROUTED = "test_routers.py::test_every_session_stays_on_one_worker"
NEEDED = "test_routers.py::test_a_call_needs_a_session"
SHOWN = {
    ("LiteLLM", "bills tokens"): "test_litellm.py::test_spend_is_recorded_by_session",
    ("LiteLLM", "counts calls"): "test_litellm.py::test_spend_is_recorded_by_session",
    ("LiteLLM", "limits a session"): "test_litellm.py::test_a_session_has_so_many_calls",
    ("LiteLLM", "refuses calls without one"): (
        "test_litellm.py::test_a_call_without_a_session_is_refused"
    ),
    ("vLLM router", "keeps it on a worker"): f"{ROUTED}[vllm-router-odd]",
    ("SGLang model gateway", "keeps it on a worker"): f"{ROUTED}[smg-odd]",
    ("NVIDIA Dynamo", "bills tokens"): (
        "test_dynamo.py::test_sub_agents_share_a_worker_and_are_traced_to_their_parent"
    ),
    ("NVIDIA Dynamo", "counts calls"): (
        "test_dynamo.py::test_sub_agents_share_a_worker_and_are_traced_to_their_parent"
    ),
    ("NVIDIA Dynamo", "keeps it on a worker"): (
        "test_dynamo.py::test_every_session_stays_on_one_worker[odd]"
    ),
    ("Envoy", "counts calls"): (
        "test_routers.py::test_envoy_limits_a_session_and_refuses_a_call_without_one"
    ),
    ("Envoy", "limits a session"): (
        "test_routers.py::test_envoy_limits_a_session_and_refuses_a_call_without_one"
    ),
    ("Envoy", "keeps it on a worker"): f"{ROUTED}[envoy-odd]",
    ("Envoy", "refuses calls without one"): f"{NEEDED}[envoy-None]",
    ("Caddy", "counts calls"): "test_routers.py::test_caddy_logs_the_session_of_each_call",
    ("Caddy", "keeps it on a worker"): f"{ROUTED}[caddy-odd]",
    ("Caddy", "refuses calls without one"): f"{NEEDED}[caddy-None]",
    ("Varnish", "counts calls"): "test_routers.py::test_varnish_logs_the_session_of_each_call",
    ("Varnish", "keeps it on a worker"): f"{ROUTED}[varnishd-odd]",
    ("Varnish", "refuses calls without one"): f"{NEEDED}[varnishd-None]",
    ("nginx", "counts calls"): (
        "test_proxies.py::test_a_session_is_limited_and_another_is_not[nginx]"
    ),
    ("nginx", "limits a session"): (
        "test_proxies.py::test_a_session_is_limited_and_another_is_not[nginx]"
    ),
    ("nginx", "refuses calls without one"): (
        "test_proxies.py::test_a_call_needs_a_session[nginx-None]"
    ),
    ("HAProxy", "counts calls"): "test_proxies.py::test_haproxy_shows_its_counters",
    ("HAProxy", "limits a session"): (
        "test_proxies.py::test_a_session_is_limited_and_another_is_not[haproxy]"
    ),
    ("HAProxy", "refuses calls without one"): (
        "test_proxies.py::test_a_call_needs_a_session[haproxy-None]"
    ),
    ("HAProxy", "ties it to its owner"): (
        "test_proxies.py::test_haproxy_ties_a_session_to_its_principal"
    ),
    ("Portkey", "keeps it on a worker"): (
        "test_portkey.py::test_a_session_is_kept_on_the_target_that_its_metadata_names[odd]"
    ),
    ("Portkey", "refuses calls without one"): (
        "test_portkey.py::test_a_call_without_a_session_is_refused"
    ),
}


def table(last: str) -> dict[str, dict[str, str]]:
    """The table whose last column has that heading: of each gateway its cells by heading."""
    lines = TEXT.splitlines()
    (start,) = [at for at, line in enumerate(lines) if line.endswith(f"| {last} |")]
    headings, _, *rows = lines[start : lines.index("", start)]
    found = {}
    for row in rows:
        gateway, *values = cells(row)
        name, anchor, header = re.fullmatch(r"\[(.+)\]\(#(.+)\) `(.+)`", gateway).groups()
        assert anchor == name.lower().replace(" ", "-")
        found[name] = {"header": header, **dict(zip(cells(headings)[1:], values, strict=True))}
    return found


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


TESTED = table("test")
DOCUMENTED = table("documented in")


def section(name: str) -> str:
    """The text of a section, up to the next heading."""
    ((text),) = re.findall(
        rf"^###? {re.escape(name)}\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL
    )
    return text


def test_each_claim_has_a_test_and_each_test_a_claim():
    said = {(name, claim) for name, row in TESTED.items() for claim in CLAIMS if row[claim] != "no"}
    assert said == SHOWN.keys()


def test_the_tests_that_show_it_exist():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    collected = subprocess.run(
        [*command, str(HERE)], cwd=HERE, capture_output=True, text=True, timeout=120, check=True
    )
    there = {line.rpartition("/")[2] for line in collected.stdout.splitlines()}
    assert set(SHOWN.values()) <= there


@pytest.mark.parametrize("name", TESTED)
def test_the_named_file_tests_the_gateway(name):
    files = {shown.partition("::")[0] for (of, _), shown in SHOWN.items() if of == name}
    assert {f"test_{TESTED[name]['test'].strip('`')}.py"} == files


def test_all_files_of_tests_are_named():
    files = {path.name for path in HERE.glob("test_*.py")}
    named = {f"test_{row['test'].strip('`')}.py" for row in TESTED.values()}
    assert files == named | {"test_recipes.py", Path(__file__).name}
    assert "`test_recipes.py`" in TEXT


@pytest.mark.parametrize("name", [*TESTED, *DOCUMENTED])
def test_the_recipe_names_the_header_of_the_table(name):
    header = {**TESTED, **DOCUMENTED}[name]["header"]
    text = section(name)
    if header == "X-Cagent-Session-Id":
        assert "X-Cagent-Forward" in text
        return
    (address,) = re.findall(r'^gateway = Gateway\(\s*"(https?://[^"/]+)', text, re.MULTILINE)
    gateway = gateway_of_the_page(address, "http://here.example")
    assert header in {gateway.session_header, *gateway.session_headers}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_is_from_documentation_says_so(name):
    assert section(name).lstrip().startswith("From its documentation")
    assert DOCUMENTED[name]["documented in"]


def test_every_recipe_is_in_a_table_or_among_the_coding_agents():
    recipes = re.findall(r"^###? (.+)\n(?:(?!^##)[\s\S])*?^gateway = Gateway\(", TEXT, re.MULTILINE)
    others = {
        "Which arguments to use",
        "OpenCode",
        "Claude Code",
        "Codex",
        "Streaming through a proxy that compresses",
        "The installation ID of docker-agent",
    }
    of_tables = {*TESTED, *DOCUMENTED} - {"nginx", "HAProxy"}
    assert set(recipes) == of_tables | others
