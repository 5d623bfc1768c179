"""Ray: its tasks, its actors, and the lines of the page."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys

from support import clusters, pages

# Without these it reports to its makers, listens to the network, whatever address it is told, and
# writes a token into the home directory.
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def test_functions_decorated_in_main_run_in_their_sessions():
    expected = clusters.EVERYWHERE | clusters.ACTORS | clusters.STREAMS
    assert clusters.run_in_main("ray", **ENVIRONMENT) == expected


AS_ON_THE_PAGE = """
import json, tempfile
from cagent_session import current_session_id


def ask(prompt):
    return prompt, current_session_id()


{snippet}

with tempfile.TemporaryDirectory(prefix="ray") as folder:
    ray.init(
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        include_dashboard=False,
        log_to_driver=False,
        num_cpus=2,
    )
    print(json.dumps(in_two_sessions("hello")))
    ray.shutdown()
"""


def test_task_and_actor_of_the_page_run_in_their_sessions(tmp_path):
    (snippet,) = pages.snippets("integrations.md", "Ray")
    script = tmp_path / "script.py"
    script.write_text(AS_ON_THE_PAGE.format(snippet=snippet), encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, script],
        check=True,
        stdout=subprocess.PIPE,
        timeout=200,
        env=os.environ | {"PYTHONWARNINGS": "default"} | ENVIRONMENT,
    )
    assert json.loads(finished.stdout) == [["hello", "session-1"], ["hello", "session-2"]]
