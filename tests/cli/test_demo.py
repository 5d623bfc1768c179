"""``cagent-session demo``: it shows that calls are attributed correctly, and notices if not."""

from __future__ import annotations

import re
import textwrap

import pytest
import requests

from cagent_session.__main__ import main
from cagent_session._cli import demo
from cagent_session._session.scopes import Lineage
from cagent_session.testing import RecordingGateway


def run(capsys) -> tuple[int, list[str]]:
    status = main(["demo"])
    out, err = capsys.readouterr()
    assert err == ""
    return status, out.splitlines()


def line_of(lines: list[str], work: str) -> str:
    (line,) = (line for line in lines if line.startswith(f"{work}  "))
    return line


def verdict(lines: list[str]) -> str:
    (line,) = (line for line in lines if re.match("All|WRONG", line))
    return line


def test_every_call_is_attributed_correctly(capsys):
    status, lines = run(capsys)
    assert status == 0
    for call in demo.EXPECTED:
        cells = re.split(" {2,}", line_of(lines, call.work))
        labels = {"X-Cagent-GeneratingTitle": "title", "X-Cagent-Compacting": "compact"}
        label = "".join(labels[name] for name in call.labels)
        expected = [call.work, call.session_id or "-", call.parent or "-", label or "-", call.why]
        assert cells == [*expected, "ok"]
    assert verdict(lines) == "All 10 calls were attributed correctly."


def test_output_fits_a_terminal_of_80_columns(capsys):
    _, lines = run(capsys)
    assert max(map(len, lines)) <= 80


def test_wrong_rows_fit_a_terminal_of_80_columns(capsys, monkeypatch):
    monkeypatch.setattr(demo, "_is_right", lambda *arguments: False)
    _, lines = run(capsys)
    assert max(map(len, lines)) <= 80


def test_every_column_is_explained_below_the_table(capsys):
    _, lines = run(capsys)
    (table,) = (number for number, line in enumerate(lines) if line.startswith("CALL  "))
    for column in lines[table].split()[1:]:
        assert any(line.startswith(f"  {column} ") for line in lines[table:])
    for note in re.findall(r"see (\(\d\))", "\n".join(lines)):
        assert any(line.startswith(f"  {note} ") for line in lines[table:])


def test_bill_shows_a_sub_agent_below_its_parent(capsys):
    _, lines = run(capsys)
    start = lines.index("What the gateway bills; a token is a word:") + 2
    bill = lines[start : lines.index("", start)]
    assert [re.split(" {2,}", line) for line in bill] == [
        ["BILL FOR", "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS"],
        ["main", "6", "43", "30"],
        ["", "sub", "2", "17", "10"],
        ["", "family total", "8", "60", "40"],
        ["(no session)", "1", "3", "5"],
    ]


def test_what_to_do_next_comes_last_and_works(capsys):
    """The lines that the demo ends with, with a gateway of the command in place of theirs."""
    _, lines = run(capsys)
    _, _, following = "\n".join(lines).partition("\nNext: ")
    assert "\n  cagent-session gateway --port 8080\n" in following
    code = textwrap.dedent(following[following.index("  from cagent_session") :])
    with RecordingGateway() as recording:
        code = code.replace("http://127.0.0.1:8080", recording.url)
        call = f"requests.post({recording.url + '/v1/chat/completions'!r}, json={{}})"
        exec(code.replace("...", call), {"requests": requests})
        assert recording.requests[0].session_id == "session-1"


def test_titles_and_compactions_carry_docker_agents_labels(monkeypatch):
    gateways = []

    class Kept(RecordingGateway):
        def __enter__(self):
            gateways.append(self)
            return super().__enter__()

    monkeypatch.setattr(demo, "RecordingGateway", Kept)
    assert main(["demo"]) == 0
    gateway, _ = gateways
    labels = {
        request.json["metadata"]["work"]: (name, request.headers[name])
        for request in gateway.requests
        for name in ("X-Cagent-GeneratingTitle", "X-Cagent-Compacting")
        if name in request.headers
    }
    assert labels == {
        "title generation": ("X-Cagent-GeneratingTitle", "1"),
        "manual compaction": ("X-Cagent-Compacting", "1"),
    }
    assert gateway.family("main").requests == 8


def test_proxy_in_the_environment_is_ignored(capsys, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert run(capsys)[0] == 0


@pytest.mark.parametrize(
    ("lineage", "wrong"),
    [
        # every call in the main session, without a parent
        (("main", None), ["between the turns", "sub-agent, turn 2"]),
        # no call in a session
        ((None, None), ["run loop, turn 1", "sub-agent, turn 2"]),
        # every call in the sub-agent's session, without a parent
        (("sub", None), ["run loop, turn 1", "sub-agent, turn 2"]),
        # every call with a parent
        (("main", "sub"), ["run loop, turn 1", "manual compaction"]),
    ],
    ids=str,
)
def test_wrong_session_or_parent_is_found(capsys, monkeypatch, lineage, wrong):
    monkeypatch.setattr("cagent_session._gate.gate.current_lineage", lambda: Lineage(*lineage))
    status, lines = run(capsys)
    assert status == 1
    for work in wrong:
        assert line_of(lines, work).endswith("WRONG")
    assert verdict(lines).startswith("WRONG: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Cagent-GeneratingTitle", None),
        ("X-Cagent-GeneratingTitle", "0"),
        ("X-Cagent-Compacting", None),
        ("X-Cagent-Forward", "http://elsewhere.example"),
    ],
)
def test_wrong_label_or_forward_is_found(capsys, monkeypatch, name, value):
    original = requests.Session.prepare_request

    def prepare(self, request):
        prepared = original(self, request)
        if name in prepared.headers or name == "X-Cagent-Forward":
            prepared.headers.pop(name, None)
            if value is not None:
                prepared.headers[name] = value
        return prepared

    monkeypatch.setattr(requests.Session, "prepare_request", prepare)
    status, lines = run(capsys)
    assert status == 1
    work = "manual compaction" if name == "X-Cagent-Compacting" else "title generation"
    assert line_of(lines, work).endswith("WRONG")


def test_label_on_every_call_is_found(capsys, monkeypatch):
    original = demo.Agent.ask

    def ask(self, work, content, headers=None):
        return original(self, work, content, {"X-Cagent-Compacting": "1"})

    monkeypatch.setattr(demo.Agent, "ask", ask)
    status, lines = run(capsys)
    assert status == 1
    assert verdict(lines).startswith("WRONG: 8 of 10 calls")


def test_missing_call_is_found(capsys, monkeypatch):
    monkeypatch.setattr(demo.Agent, "compact", lambda self, session: "")
    status, lines = run(capsys)
    assert status == 1
    assert re.search(r"did not arrive anywhere +WRONG$", line_of(lines, "manual compaction"))


def test_call_that_arrives_twice_is_found(capsys, monkeypatch):
    original = demo.Agent.compact

    def compact(self, session):
        original(self, session)
        return original(self, session)

    monkeypatch.setattr(demo.Agent, "compact", compact)
    status, lines = run(capsys)
    assert status == 1
    assert sum(line.startswith("manual compaction") for line in lines) == 2
    assert verdict(lines).startswith("WRONG: 1 of 10 calls")


def test_identifier_at_the_provider_is_found(capsys, monkeypatch):
    original = demo.Agent.ask_directly

    def ask_directly(self, work, content):
        self.http.headers["X-Cagent-Model"] = "leaked"
        return original(self, work, content)

    monkeypatch.setattr(demo.Agent, "ask_directly", ask_directly)
    status, lines = run(capsys)
    assert status == 1
    assert line_of(lines, "direct provider call").endswith("WRONG")


def test_call_at_the_wrong_server_is_found(capsys, monkeypatch):
    def ask_directly(self, work, content):
        return self.ask(work, content)

    monkeypatch.setattr(demo.Agent, "ask_directly", ask_directly)
    status, lines = run(capsys)
    assert status == 1
    assert re.search(
        r"  main .* arrived at the gateway +WRONG$", line_of(lines, "direct provider call")
    )


def test_machine_without_free_ports_is_one_line_and_status_1(capsys, monkeypatch):
    def enter(self):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(RecordingGateway, "__enter__", enter)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "cagent-session: [Errno 24] Too many open files\n"
