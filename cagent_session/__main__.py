"""The command ``cagent-session``, also as ``python -m cagent_session``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

from . import __version__
from ._cli import demo, probe
from ._cli import gateway as _foreground
from ._cli.console import fail, show, unwritable
from ._gate import urls
from ._session.ids import check_session_id
from .headers import check_name

_DOCUMENTATION = """\
The documentation travels in the source distribution, and tox -e docs makes a site of it:
  README.md                first steps, and what is sent when
  docs/context.md          sessions in threads, generators, coroutines and processes
  docs/clients.md          the SDKs of the providers, and other clients
  docs/frameworks.md       what agents are built on
  docs/integrations.md     logging, tracing, web services, queues and clusters
  docs/gateways.md         gateways and routers that exist
  docs/testing.md          how to test an agent
  docs/troubleshooting.md  why a header is missing
  docs/comparison.md       other ways, and what each loses or leaks
  docs/reference.md        every public name, and what a version number promises
  docs/security.md         what is guaranteed
  docs/performance.md      what it costs
  docs/design.md           how it is built
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; gives back the exit status."""
    parser = _parser()
    try:
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(map(_shown, unknown))}")
    except SystemExit as ended:
        # --help and --version have printed what may not have been written yet.
        raise SystemExit(ended.code or show("")) from None
    except OSError as error:
        raise SystemExit(unwritable(error)) from None  # argparse of Python 3.10
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return fail(str(error))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cagent-session",
        description="The session of an agent, on every request to its models gateway.",
        epilog=_DOCUMENTATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cagent-session {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)

    command = commands.add_parser("demo", help="run a small agent on a gateway of its own")
    command.set_defaults(run=lambda options: demo.main())

    command = commands.add_parser("gateway", help="run the recording gateway, a line per call")
    command.add_argument(
        "--port", type=_port, default=0, metavar="N", help="where to listen (default: a free port)"
    )
    command.add_argument(
        "--requests-per-minute", type=_positive, metavar="N", help="limit each session to N"
    )
    command.set_defaults(
        run=lambda options: _foreground.main(options.port, options.requests_per_minute)
    )

    command = commands.add_parser(
        "probe",
        help="send one GET through a gateway, and report",
        allow_abbrev=False,  # what an ambiguous option was given would be in the error
    )
    command.add_argument("url", type=_gateway, metavar="URL", help="what to GET at the gateway")
    command.add_argument(
        "--forward",
        type=_forward,
        required=True,
        metavar="URL",
        help="the provider's base URL to relay to",
    )
    command.add_argument("--session-id", type=_session_id, metavar="ID", help="default: a UUID")
    command.add_argument(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a further header; its value is not shown",
    )
    command.set_defaults(
        run=lambda options: probe.main(
            options.url, options.forward, options.session_id, options.header
        )
    )
    return parser


def _shown(argument: str) -> str:
    """An argument that nobody knows: its name, as the rest may be a secret."""
    name = re.match(r"--[\w-]+|-\w", argument, re.ASCII)
    return name[0] if name else "..."


def _checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """An argument's type: a ``str`` that ``check`` has nothing against."""

    def checked(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return checked


_gateway = _checked(lambda text: urls.check("gateway URL", text))
_forward = _checked(lambda text: urls.check("forward URL", text))
_session_id = _checked(check_session_id)


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
    try:
        check_name("header", name)
    except ValueError:
        colon = ""
    if not colon or not re.fullmatch(r"[\t -~\xa0-\xff]*", value):
        raise argparse.ArgumentTypeError(
            "a header must be given as 'Name: value', the value in Latin-1"
        )
    return name, value


if __name__ == "__main__":
    sys.exit(main())
