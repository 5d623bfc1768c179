"""What an engine has to see of ``defined_in_main``: each its session and its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

NOBODY = [None, None]
DRIVEN = [["steps", None], ["inner", "steps"], ["steps", None]]
DRIVEN_BOUND = [["steps", "caller"], ["inner", "steps"], ["steps", "caller"]]

EVERYWHERE = {
    "bare": NOBODY,
    "scoped": ["scope", None],
    "fresh": [36, None],
    "by_argument": ["argument", None],
    "by_attribute": ["job", None],
    "outside": NOBODY,
    "driven": [[step, NOBODY] for step in DRIVEN],
    "driven_async": [[["argument", None], NOBODY]] * 2,
    "method": ["self", None],
    "bound": ["caller", "main"],
    "bound_scoped": ["scope", "caller"],
    "bound_outside": NOBODY,
    "bound_method": ["self", "caller"],
    "driven_bound": [[step, NOBODY] for step in DRIVEN_BOUND],
    "bare_again": NOBODY,
}
ACTORS = {
    "actor": {
        "step": ["self", None],
        "report": NOBODY,
        "of_class": ["class", None],
        "static": ["static", None],
        "bare": NOBODY,
    },
    "async_actor": {"step": ["self", None], "bare": NOBODY},
    "bare_after_all": NOBODY,
}
COROUTINES = {"coroutine": ["coroutine", None], "bound_coroutine": ["coroutine", "caller"]}
STREAMS = {
    "steps": DRIVEN,
    "actor_steps": [["self", None]] * 2,
    "async_actor_steps": [["self", None]] * 2,
}


def run_in_main(engine: str, **environment: str) -> dict[str, object]:
    """What ``defined_in_main`` saw, as a script of its own, on ``engine``."""
    script = Path(__file__).parent / "defined_in_main.py"
    finished = subprocess.run(
        [sys.executable, script, engine],
        check=True,
        stdout=subprocess.PIPE,
        timeout=200,
        # What the processes of an engine warn of is the engine's affair.
        env=os.environ | {"PYTHONWARNINGS": "default"} | environment,
    )
    return json.loads(finished.stdout)
