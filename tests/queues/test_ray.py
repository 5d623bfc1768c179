"""Ray: its tasks, its actors, and the lines of the page."""

from __future__ import annotations

import secrets

from support import clusters

# Without these it reports to its makers, and writes a token into the home directory.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def test_what_is_decorated_in_main():
    expected = clusters.EVERYWHERE | clusters.ACTORS | clusters.STREAMS
    assert clusters.run_in_main("ray", **ENVIRONMENT) == expected
