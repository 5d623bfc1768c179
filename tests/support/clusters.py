"""What an engine has to see of ``defined_in_main``: each its session and its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

OUTSIDE = [None, None]
DRIVEN = [["steps", None], ["inner", "steps"], ["steps", None]]
DRIVEN_BOUND = [["steps", "caller"], ["inner", "steps"], ["steps", "caller"]]

EVERYWHERE = {
    "plain": OUTSIDE,
    "scoped": ["scope", None],
    "fresh": [36, None],
    "by_argument": ["argument", None],
    "by_attribute": ["job", None],
    "outside": OUTSIDE,
    "driven": [[step, OUTSIDE] for step in DRIVEN],
    "driven_async": [[["argument", None], OUTSIDE]] * 2,
    "method": ["self", None],
    "bound": ["caller", "main"],
    "bound_scoped": ["scope", "caller"],
    "bound_outside": OUTSIDE,
    "bound_method": ["self", "caller"],
    "driven_bound": [[step, OUTSIDE] for step in DRIVEN_BOUND],
    "plain_again": OUTSIDE,
}
ACTORS = {
    "actor": {
        "step": ["self", None],
        "report": OUTSIDE,
        "of_class": ["class", None],
        "static": ["static", None],
        "plain": OUTSIDE,
    },
    "async_actor": {"step": ["self", None], "plain": OUTSIDE},
    "plain_after_all": OUTSIDE,
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
        # The warnings of an engine's processes are not about this package.
        env=os.environ | {"PYTHONWARNINGS": "default"} | environment,
    )
    return json.loads(finished.stdout)
