"""The command ``cagent-session``, also as ``python -m cagent_session``."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import requests
from requests.exceptions import InvalidHeader
from requests.utils import check_header_validity

from . import Gateway, InvalidSessionID, __version__, session_scope
from .urls import masked

TIMEOUT = 30  # seconds
SHOWN_BODY = 2000  # characters
SECRET = 6  # characters


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; gives back the exit status."""
    parser = argparse.ArgumentParser(
        prog="cagent-session",
        description="The session of an agent, on every request to its models gateway.",
    )
    parser.add_argument("--version", action="version", version=f"cagent-session {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)

    demo = commands.add_parser("demo", help="run a small agent on a gateway of its own")
    demo.set_defaults(run=_demo)

    gateway = commands.add_parser("gateway", help="run the recording gateway, a line per call")
    gateway.add_argument(
        "--port", type=_port, default=0, metavar="N", help="where to listen (default: a free port)"
    )
    gateway.add_argument(
        "--requests-per-minute", type=_positive, metavar="N", help="limit each session to N"
    )
    gateway.set_defaults(run=_gateway)

    probe = commands.add_parser("probe", help="send one GET through a gateway, show both ways")
    probe.add_argument("url", metavar="URL", help="what to GET at the gateway")
    probe.add_argument(
        "--forward", required=True, metavar="URL", help="the provider's base URL to relay to"
    )
    probe.add_argument(
        "--session-id", type=_scope, default=session_scope(), metavar="ID", help="default: a UUID"
    )
    probe.add_argument(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a further header; its value is not shown",
    )
    probe.set_defaults(run=_probe)

    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except argparse.ArgumentTypeError as error:
        commands.choices[options.command].error(str(error))
    except KeyboardInterrupt:
        return 130
    return status


def _demo(options: argparse.Namespace) -> int:
    from . import demo

    return demo.main()


def _gateway(options: argparse.Namespace) -> int:
    from .testing import RecordingGateway

    recording = RecordingGateway(
        port=options.port, requests_per_minute=options.requests_per_minute, on_call=_print_call
    )
    try:
        with recording, contextlib.suppress(KeyboardInterrupt):
            print(f"listening on {recording.url}, Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except OSError as error:
        return _fail(f"cannot listen on port {options.port}: {error.strerror}")
    return 0


def _print_call(entry: dict[str, Any]) -> None:
    line = (
        "{time:.19}  {status}  session={session_id}  {method} {path}  forward={forward}  "
        "model={model}  tokens={prompt_tokens}+{completion_tokens}"
    ).format(**{key: "-" if value is None else value for key, value in entry.items()})
    # A client chooses most of it, and is not to choose what the terminal does.
    print(re.sub(r"[^ -~]", "?", line), flush=True)


def _probe(options: argparse.Namespace) -> int:
    try:
        gateway = Gateway(options.url, forward=options.forward)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    given = {name.lower() for name, _ in options.header}
    secrets = _secrets([value for _, value in options.header], options.url)
    with requests.Session() as http, options.session_id:
        gateway.mount(http)
        request = http.prepare_request(
            requests.Request("GET", options.url, headers=dict(options.header))
        )
        settings = http.merge_environment_settings(options.url, {}, False, None, None)
        try:
            response = http.send(request, timeout=TIMEOUT, allow_redirects=False, **settings)
        except requests.RequestException as error:
            return _fail(f"no answer from {masked(options.url)}: {_reason(error)}")
    sent = response.request
    status = _without_secrets(f"{response.status_code} {response.reason}", secrets)
    _print_message(f"> {sent.method} {masked(str(sent.url))}", sent.headers, given, secrets)
    _print_message(f"< {status}", response.headers, set(), secrets)
    print(_without_secrets(response.text[:SHOWN_BODY], secrets))
    return 0 if response.ok else _fail(f"the gateway answered {status}")


def _secrets(values: list[str], url: str) -> list[str]:
    """What is not to be shown when it comes back: all that was given, if it is long enough.

    Something shorter would turn up in the middle of other words.
    """
    query = url.partition("?")[2]
    values = [*values, *re.split("[&=]", query), *(value for _, value in parse_qsl(query))]
    words = {word for value in values for word in [value, *value.split()]}
    return sorted((word for word in words if len(word) >= SECRET), key=len, reverse=True)


def _print_message(
    first: str, headers: Mapping[str, str | bytes], given: set[str], secrets: list[str]
) -> None:
    print(first)
    for name, value in headers.items():
        text = value if isinstance(value, str) else value.decode("latin-1")
        if name.lower() in given or re.search(r"auth|cookie|key|secret|token", name, re.IGNORECASE):
            text = "***"
        print(f"{first[0]} {name}: {_without_secrets(text, secrets)}")
    print(first[0])


def _without_secrets(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return re.sub(r"[^\n -~]", "?", text)


def _reason(error: BaseException) -> str:
    """The innermost cause: the outer ones are long, and show the whole URL."""
    if isinstance(error, requests.Timeout):
        return f"timed out after {TIMEOUT} s"
    cause = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return getattr(cause, "strerror", None) or type(cause).__name__


def _fail(message: str) -> int:
    print(f"cagent-session: {message}", file=sys.stderr)
    return 1


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"not a port from 0 to 65535: {text!a}")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"not a whole number from 1 on: {text!a}")
    return int(text)


def _scope(text: str) -> session_scope:
    try:
        with session_scope(text):
            return session_scope(text)
    except InvalidSessionID as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    try:
        check_header_validity((name, value))
        valid = bool(colon and name)
    except InvalidHeader:
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError("a header must be given as 'Name: value'")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
