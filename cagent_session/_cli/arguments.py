"""The arguments of ``cagent-session``: one line for a bad one, which never shows a secret."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from .. import Gateway, __version__
from .._gate.validation import check_name
from .._session.ids import check_session_id
from ..headers import PARENT_SESSION_ID, SESSION_ID
from . import demo, gateway, probe

_EXAMPLES = """\
examples:
  cagent-session demo
      run a small agent, and see what each of its calls sends

  cagent-session gateway --port 8080
      run a local models gateway for your agent, with a page for the browser

  cagent-session probe https://gateway.example \\
      --forward https://api.openai.com/v1
      send one request through your gateway, and see what comes back
"""

_NEEDS_A_PROTOCOL = (
    "one of the arguments --forward --session-header is required: the provider's base URL for a "
    "docker-agent gateway, or the header that any other gateway reads the session from"
)

# In an error of argparse: what stands where a command, or an option without a value, should.
_given = re.compile(
    r"(?<=invalid choice: ).+?(?= \(choose from )|(?<=ignored explicit argument ).+", re.DOTALL
)
_is_value = re.compile(r"[\t -~\xa0-\xff]*").fullmatch


class _Parser(argparse.ArgumentParser):
    """A parser that does not show a value which stands before the command, such as a header's."""

    def error(self, message: str) -> NoReturn:
        found = _given.search(message)
        if found and not re.fullmatch("'[a-z]{1,12}'", found[0]):  # a mistyped command is shown
            message = message.replace(found[0], "...")
        super().error(message)


def parse(arguments: list[str] | None) -> Callable[[], int]:
    """Return what the arguments ask for, as a function that returns the exit status.

    :param arguments: those of the process, if left out.
    :raises SystemExit: for a bad argument, and after ``--help`` and ``--version``.
    """
    parser = _Parser(
        prog="cagent-session",
        description="Which agent session makes a call: try it, watch it, check a gateway for it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cagent-session {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    _add_demo(commands)
    _add_gateway(commands)
    _add_probe(commands)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_unrecognized(unknown))
    try:
        run: Callable[[], int] = options.prepare(options)
    except ValueError as error:
        # The error of Gateway(...) names what code would write.
        remedy = "--header-env Authorization=VARIABLE"
        options.parser.error(str(error).replace("Gateway(headers=...)", remedy))
    return run


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "demo",
        help="run a small agent, and show what each of its calls sends",
        description="Run a small agent against a local gateway, and show what each call sends.",
    )
    command.set_defaults(parser=command, prepare=lambda options: demo.main)


def _add_gateway(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "gateway",
        help="run a local models gateway, with a page for the browser",
        description="Run a local models gateway that answers chat completions and messages as "
        "providers do, and everything else with an echo, bills and limits each session, prints a "
        "line per call, and shows the sessions on a page.",
    )
    command.add_argument(
        "--port", type=_port, default=0, metavar="N", help="where to listen (default: a free port)"
    )
    command.add_argument(
        "--requests-per-minute", type=_positive, metavar="N", help="limit each session to N"
    )
    command.add_argument(
        "--session-header",
        default=SESSION_ID,
        metavar="NAME",
        help="the header that the session is read from (default: %(default)s)",
    )
    command.add_argument(
        "--parent-header",
        default=PARENT_SESSION_ID,
        metavar="NAME",
        help="the header that the session's parent is read from (default: %(default)s)",
    )
    command.set_defaults(parser=command, prepare=_prepare_gateway)


def _prepare_gateway(options: argparse.Namespace) -> Callable[[], int]:
    recording = gateway.ForegroundGateway(
        port=options.port,
        requests_per_minute=options.requests_per_minute,
        session_header=options.session_header,
        parent_header=options.parent_header,
    )
    return partial(gateway.main, recording, options.port)


def _add_probe(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "probe",
        help="send one request through a gateway, and show what comes back",
        description="Send one GET through a gateway in a session of its own, and show what was "
        "sent and what came back, without secrets. Give --forward for a docker-agent gateway, "
        "--session-header for any other.",
        allow_abbrev=False,  # the error for an ambiguous option would show its value
    )
    command.add_argument("url", metavar="URL", help="what to GET at the gateway")
    command.add_argument("--forward", metavar="URL", help="the provider's base URL to relay to")
    command.add_argument(
        "--session-header", metavar="NAME", help="the header to send the session in"
    )
    command.add_argument("--parent-header", metavar="NAME", help="the header to send a parent in")
    command.add_argument(
        "--session-id", type=_session_id, metavar="ID", help="the session (default: a UUID)"
    )
    command.add_argument(
        "--parent-id", type=_session_id, metavar="ID", help="its parent, with --parent-header"
    )
    command.add_argument(
        "--header",
        dest="headers",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a further header; its value is not shown",
    )
    command.add_argument(
        "--header-env",
        dest="headers",
        type=_header_from_environment,
        action="append",
        default=[],
        metavar="NAME=VARIABLE",
        help="a further header whose value is in an environment variable, so that a key is not in "
        "the shell's history",
    )
    command.set_defaults(parser=command, prepare=_prepare_probe)


def _prepare_probe(options: argparse.Namespace) -> Callable[[], int]:
    # To argparse, an unknown option with a blank in it is no option, but the missing URL.
    unknown = [each for each in (options.url, options.forward) if each and each.startswith("-")]
    if unknown:
        raise ValueError(_unrecognized(unknown))
    if options.forward is None and options.session_header is None:
        raise ValueError(_NEEDS_A_PROTOCOL)
    if options.parent_id is not None and options.parent_header is None:
        raise ValueError("argument --parent-id: needs --parent-header NAME, to be sent in")
    target = Gateway(
        options.url,
        forward=options.forward,
        session_header=SESSION_ID if options.session_header is None else options.session_header,
        parent_header=options.parent_header,
    )
    return partial(
        probe.main,
        target,
        session_id=options.session_id,
        parent_id=options.parent_id,
        headers=dict(options.headers),
    )


def _unrecognized(arguments: list[str]) -> str:
    return f"unrecognized arguments: {' '.join(map(_shown, arguments))}"


def _shown(argument: str) -> str:
    """Return the name of an unknown argument; the rest of it may be a secret."""
    name = re.match(r"--[\w-]+|-\w", argument, re.ASCII)
    return name[0] if name else "..."


def _session_id(text: str) -> str:
    try:
        return check_session_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"not a port from 0 to 65535: {text!a}")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"not a whole number from 1 on: {text!a}")
    return int(text)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not _is_name(name) or not _is_value(value):
        raise argparse.ArgumentTypeError(
            "a header must be given as 'Name: value', the value in Latin-1"
        )
    return name, value


def _header_from_environment(text: str) -> tuple[str, str]:
    name, _, variable = text.partition("=")
    if not variable or "=" in variable or not _is_name(name):  # a key may end with ==
        raise argparse.ArgumentTypeError(
            "a header must be given as NAME=VARIABLE, the name of an environment variable that "
            "has its value"
        )
    # Whoever wrote the key itself in place of a variable's name must not find it in the error.
    value = os.environ.get(variable, "").strip()
    if not value:
        raise argparse.ArgumentTypeError(
            f"the environment variable for {name!a} is not set: after = stands its name, without "
            "$, and it has to be exported"
        )
    if not _is_value(value):
        raise argparse.ArgumentTypeError(
            f"the environment variable for {name!a} has characters that no header can have"
        )
    return name, value


def _is_name(text: str) -> bool:
    try:
        check_name("header", text)
    except ValueError:
        return False
    return True
