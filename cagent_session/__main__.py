"""The command ``cagent-session``, also as ``python -m cagent_session``."""

from __future__ import annotations

import sys

from ._cli.arguments import parse
from ._cli.console import fail, show, unwritable


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        run = parse(arguments)
    except SystemExit as ended:
        # --help and --version print to a buffer, which may turn out not to be writable.
        raise SystemExit(ended.code or show("")) from None
    except OSError as error:
        raise SystemExit(unwritable(error)) from None  # argparse of Python 3.10
    try:
        return run()
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
