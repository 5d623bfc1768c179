"""The demo: does it say what is right, and notice what is wrong?"""

from __future__ import annotations

import re

import pytest
import requests

from cagent_session.__main__ import main
from cagent_session._cli import demo
from cagent_session.testing import RecordingGateway


def run(capsys) -> tuple[int, list[str]]:
    status = main(["demo"])
    out, err = capsys.readouterr()
    assert err == ""
    return status, out.splitlines()


def line_of(lines: list[str], work: str) -> str:
    (line,) = (line for line in lines if line.startswith(f"{work}  "))
    return line


def test_every_call_is_attributed_rightly(capsys):
    status, lines = run(capsys)
    assert status == 0
    for call in demo.EXPECTED:
        words = line_of(lines, call.work).removeprefix(call.work).split()
        marks = [name.removeprefix("X-Cagent-") for name in call.marks]
        destination = "gateway" if call.to_gateway else "provider"
        expected = [destination, call.session_id, call.parent, ",".join(marks)]
        assert words[:4] == [word or "-" for word in expected]
        assert words[4].startswith("http://127.0.0.1:" if call.to_gateway else "-")
        assert words[5] == "ok"
    assert lines[-1].startswith("All 10 calls were attributed rightly")


def test_its_columns_are_explained(capsys):
    _, lines = run(capsys)
    (columns,) = (line.split() for line in lines if line.startswith("CALL  "))
    for column in columns[1:]:
        assert any(line.startswith(f"  {column} ") for line in lines)


def test_the_bill(capsys):
    _, lines = run(capsys)
    bill = lines[lines.index("What the gateway bills; a token is a word:") + 2 : -2]
    assert [re.split(" {2,}", line.strip()) for line in bill] == [
        ["BILL FOR", "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS"],
        ["session-main", "6", "43", "30"],
        ["session-sub", "2", "17", "10"],
        ["family total", "8", "60", "40"],
        ["(no session)", "1", "3", "5"],
    ]


def test_what_docker_agent_marks_is_marked(monkeypatch):
    gateways = []

    class Kept(RecordingGateway):
        def __enter__(self):
            gateways.append(self)
            return super().__enter__()

    monkeypatch.setattr(demo, "RecordingGateway", Kept)
    assert main(["demo"]) == 0
    gateway, _ = gateways
    marks = {
        request.json["metadata"]["work"]: (name, request.headers[name])
        for request in gateway.requests
        for name in ("X-Cagent-GeneratingTitle", "X-Cagent-Compacting")
        if name in request.headers
    }
    assert marks == {
        "title in a thread": ("X-Cagent-GeneratingTitle", "1"),
        "manual compaction": ("X-Cagent-Compacting", "1"),
    }
    assert gateway.family("session-main").requests == 8


def test_a_proxy_in_the_environment_is_passed_by(capsys, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert run(capsys)[0] == 0


@pytest.mark.parametrize(
    ("lineage", "wrong"),
    [
        # everybody is in the main session, without a parent
        (("session-main", None), ["caller, between two steps", "sub-agent, last turn"]),
        # nobody is in a session
        ((None, None), ["run loop, first turn", "sub-agent, last turn"]),
        # the sub-agent is everybody, and has no parent
        (("session-sub", None), ["run loop, first turn", "sub-agent, last turn"]),
        # all have a parent
        (("session-main", "session-sub"), ["run loop, first turn", "manual compaction"]),
    ],
    ids=str,
)
def test_a_wrong_session_or_parent_is_found(capsys, monkeypatch, lineage, wrong):
    monkeypatch.setattr("cagent_session._gate.gate.current_lineage", lambda: lineage)
    status, lines = run(capsys)
    assert status == 1
    for work in wrong:
        assert line_of(lines, work).endswith("WRONG")
    assert lines[-1].startswith("WRONG: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Cagent-GeneratingTitle", None),
        ("X-Cagent-GeneratingTitle", "0"),
        ("X-Cagent-Compacting", None),
        ("X-Cagent-Forward", "http://elsewhere.example"),
    ],
)
def test_a_wrong_mark_is_found(capsys, monkeypatch, name, value):
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
    work = "manual compaction" if name == "X-Cagent-Compacting" else "title in a thread"
    assert line_of(lines, work).endswith("WRONG")


def test_a_mark_too_many_is_found(capsys, monkeypatch):
    original = demo.Agent.ask

    def ask(self, work, content, headers=None):
        return original(self, work, content, {"X-Cagent-Compacting": "1"})

    monkeypatch.setattr(demo.Agent, "ask", ask)
    status, lines = run(capsys)
    assert status == 1
    assert lines[-1].startswith("WRONG: 8 of 10 calls")


def test_a_call_that_is_missing_is_found(capsys, monkeypatch):
    monkeypatch.setattr(demo.Agent, "compact", lambda self, session: "")
    status, lines = run(capsys)
    assert status == 1
    assert re.search(r"nowhere .* WRONG$", line_of(lines, "manual compaction"))


def test_a_call_that_comes_twice_is_found(capsys, monkeypatch):
    original = demo.Agent.compact

    def compact(self, session):
        original(self, session)
        return original(self, session)

    monkeypatch.setattr(demo.Agent, "compact", compact)
    status, lines = run(capsys)
    assert status == 1
    assert sum(line.startswith("manual compaction") for line in lines) == 2
    assert lines[-1].startswith("WRONG: 1 of 10 calls")


def test_an_identifier_at_the_provider_is_found(capsys, monkeypatch):
    original = demo.Agent.ask_directly

    def ask_directly(self, work, content):
        self.http.headers["X-Cagent-Model"] = "leaked"
        return original(self, work, content)

    monkeypatch.setattr(demo.Agent, "ask_directly", ask_directly)
    status, lines = run(capsys)
    assert status == 1
    assert line_of(lines, "direct provider call").endswith("WRONG")
