"""The arguments of ``cagent-session``: bad ones, ``--help`` and ``--version``."""

from __future__ import annotations

import shlex

import pytest

from cagent_session import __version__
from cagent_session.__main__ import main
from cagent_session._cli.arguments import parse

FORWARD = "https://api.openai.com/v1"


class TestBadArguments:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "required: command"),
            (["nonsense"], "invalid choice: 'nonsense'"),
            (["--header", "X-Key: hunter2", "probe", "https://g.example"], "invalid choice: ..."),
            (["--header=X-Key: hunter2", "it's hunter2"], "invalid choice: ..."),
            (["--hel=X-Key: hunter2", "probe", "https://g.example"], "explicit argument ..."),
            (["demo", "--nonsense"], "unrecognized arguments: --nonsense"),
            (["gateway", "--port", "x"], "argument --port: not a port from 0 to 65535: 'x'"),
            (["gateway", "--port", "65536"], "not a port from 0 to 65535"),
            (["gateway", "--requests-per-minute", "0"], "not a whole number from 1 on: '0'"),
            (["gateway", "--requests-per-minute", "1.5"], "not a whole number from 1 on"),
            (["probe"], "required: URL"),
            (["probe", "https://g.example"], "--forward --session-header is required"),
            (
                ["probe", "https://g.example", "--session-header", "Host"],
                "session_header",
            ),
            (
                ["probe", "https://g.example", "--session-header", "X-Cagent-Session-Id"],
                "X-Cagent-Session-Id",
            ),
            (["probe", "https://g.example", "--session-header", ""], "session_header"),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--parent-header", "a b"],
                "parent_header",
            ),
            (
                ["probe", "https://g.example", "--session-header", "X-Id", "--parent-id", "p"],
                "argument --parent-id: needs --parent-header NAME",
            ),
            (
                [
                    *("probe", "https://g.example", "--session-header", "X-Id"),
                    *("--parent-header", "x-id", "--parent-id", "p"),
                ],
                "parent_header",
            ),
            (
                [
                    *("probe", "https://g.example", "--session-header", "X-Id"),
                    *("--parent-header", "X-Parent", "--parent-id", ""),
                ],
                "argument --parent-id: session ID is empty",
            ),
            *(
                (
                    ["probe", "https://g.example", "--forward", FORWARD, "--header-env", given],
                    f"argument --header-env: {says}",
                )
                for given, says in (
                    ("Authorization", "a header must be given as NAME=VARIABLE"),
                    ("Authorization: Bearer hunter2", "a header must be given as NAME=VARIABLE"),
                    ("A b=VARIABLE", "a header must be given as NAME=VARIABLE"),
                    ("=hunter2", "a header must be given as NAME=VARIABLE"),
                    ("aHVudGVyMi1odW50ZXI==", "a header must be given as NAME=VARIABLE"),
                    ("Authorization=", "a header must be given as NAME=VARIABLE"),
                    ("Authorization=hunter2", "the environment variable for 'Authorization' is"),
                    ("Authorization=EMPTY_FOR_TEST", "the environment variable for 'Author"),
                    ("Authorization=BROKEN_FOR_TEST", "the environment variable for 'Auth"),
                    ("X=A\0B", "the environment variable for 'X' is not set"),
                    (
                        "Authorization=$GATEWAY_KEY",
                        "the environment variable for 'Authorization' is not set: after = stands "
                        "its name, without $, and it has to be exported",
                    ),
                )
            ),
            (["gateway", "--session-header", "Host"], "session_header"),
            (["gateway", "--session-header", ""], "session_header"),
            (["gateway", "--parent-header", "X-Cagent-Model"], "parent_header"),
            (
                ["gateway", "--session-header", "X-Id", "--parent-header", "x-id"],
                "parent_header",
            ),
            (["probe", "g.example", "--forward", FORWARD], "gateway URL is not absolute"),
            (["probe", "https://g.example", "--forward", "x"], "forward URL is not absolute"),
            (
                ["probe", "https://u:hunter2@g.example", "--forward", FORWARD],
                "contains credentials (send them in a header: --header-env Authorization=VARIABLE)",
            ),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--session-id", "a b"],
                "argument --session-id: session ID has ' ' at position 1",
            ),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--header", "hunter2"],
                "argument --header: a header must be given as 'Name: value'",
            ),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--header", ": hunter2"],
                "argument --header: a header must be given",
            ),
            (
                ["probe", "https://g.example", "--forward", FORWARD, "--header", "A: hun\nter2"],
                "argument --header: a header must be given",
            ),
            *(
                (
                    ["probe", "https://g.example", "--forward", FORWARD, "--header", header],
                    "argument --header: a header must be given",
                )
                for header in ("\xe9: b", "x: \u20ac", "x y: 1", "x: a\x7f", "x: \udc80")
            ),
            *(
                (
                    ["probe", "https://g.example", "--forward", FORWARD, *more],
                    f"unrecognized arguments: {shown}",
                )
                for more, shown in (
                    (["-H", "Authorization: Bearer hunter2"], "-H ..."),
                    (["-HAuthorization: Bearer hunter2"], "-H"),
                    (["--key=hunter2"], "--key"),
                    (["--he=A: hunter2"], "--he"),
                    (["https://g.example/?key=hunter2"], "..."),
                    (["two\nlines of hunter2"], "..."),
                )
            ),
            *(
                (["probe", *given], "unrecognized arguments: --headers")
                for option in ["--headers=Authorization: Bearer hunter2"]
                for given in (
                    [option, "--forward", FORWARD],
                    ["https://g.example", "--forward", option],
                )
            ),
        ],
    )
    def test_bad_arguments_are_one_line_and_status_2(self, capsys, monkeypatch, arguments, says):
        monkeypatch.setenv("EMPTY_FOR_TEST", " ")
        monkeypatch.setenv("BROKEN_FOR_TEST", "hunter2\nhunter2")
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        last = err.splitlines()[-1]
        assert out == ""
        assert err.startswith("usage: cagent-session")
        assert last.startswith("cagent-session")
        assert says in last
        assert "ter2" not in err


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"cagent-session {__version__}\n"


def help_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_has_an_example_of_each_command_that_can_be_run(capsys, monkeypatch):
    text = help_of(capsys)
    _, _, examples = text.partition("\nexamples:\n")
    commands = [
        shlex.split(line)[1:]
        for line in examples.replace("\\\n", " ").splitlines()
        if line.startswith("  cagent-session ")
    ]
    assert [command[0] for command in commands] == ["demo", "gateway", "probe"]
    for command in commands:
        assert callable(parse(command))


@pytest.mark.parametrize("command", [[], ["demo"], ["gateway"], ["probe"]], ids=str)
def test_help_fits_80_columns_and_names_no_file(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys, *command)
    assert max(map(len, text.splitlines())) <= 80
    assert ".md" not in text


def test_help_of_gateway_says_what_is_answered(capsys):
    text = " ".join(help_of(capsys, "gateway").split())
    assert "answers chat completions and messages as providers do" in text
    assert "everything else with an echo" in text
