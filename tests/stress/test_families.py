"""Random trees of sessions over threads, processes and Celery: not one wrong parent.

``FAMILY_NODES`` says how large a tree is.
"""

from __future__ import annotations

import collections
import importlib
import os
import random
import sys
import time
from pathlib import Path

import pytest
from support.services import running
from support.wire import Arrived, Server

from cagent_session import current_session_id

NODES = int(os.environ.get("FAMILY_NODES", "250"))
NOBODY = (None, None)


class Tree:
    """A model of the rules: each node knows the session and the ancestors that it has to have."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.root = self.node(0, "here", "main", NOBODY)
        nodes = [self.root]
        while len(nodes) < NODES:
            # Often the newest, so that the tree is deep as well as wide.
            parent = nodes[-1] if self.random.random() < 0.3 else self.random.choice(nodes)
            ways = ["here", "thread", "pool", "celery"]
            if parent["where"] == "main":
                ways += ["process", "process"]  # whose workers have no pools of their own
            way = self.random.choice(ways)
            where = way if way in ("process", "celery") else parent["where"]
            known = parent["lineage"]
            if way == "celery":
                known = (*known[:2], None)  # a message names a session and its parent
            nodes.append(self.node(len(nodes), way, where, known))
            parent["children"].append(nodes[-1])
        self.nodes = nodes

    def node(self, number: int, way: str, where: str, known: tuple) -> dict:
        scopes, lineage = self.scopes(f"s{number}", known)
        return {
            "number": number,
            "way": way,
            "where": where,
            "body": self.random.choice(["function", "generator", "coroutine", "async_generator"]),
            "scopes": scopes,
            "lineage": lineage,
            "expected": lineage[:2],
            "children": [],
        }

    def scopes(self, new: str, known: tuple) -> tuple[list, tuple]:
        """The scopes of a node, outermost first, and the session and ancestors it then has."""
        ancestors = [session_id for session_id in known if session_id is not None]
        rule = self.random.choice(["new"] * 4 + ["again", "ancestor", "named", "apart", "nobody"])
        if rule in ("again", "ancestor") and not ancestors:
            rule = "new"
        if rule == "again":
            return [(known[0], {})], known
        if rule == "ancestor":
            ancestor = self.random.choice(ancestors)
            return [(ancestor, {})], known[known.index(ancestor) :]
        if rule == "named":
            named = self.random.choice([*ancestors, "named"])
            of_named = known[known.index(named) :] if named in known else (named, *NOBODY)
            return [(new, {"parent": named})], (new, *of_named)
        if rule == "apart":
            return [(None, {}), (new, {})], (new, *NOBODY)
        if rule == "nobody":
            return [(None, {})], NOBODY
        return [(new, {})], (new, *known)


class Checked:
    """Takes the place of the server's list, and keeps what is wrong alone."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.calls: collections.Counter[str] = collections.Counter()

    def append(self, request: Arrived) -> None:
        session_id, parent, number = request.path.split("/")[1:]
        found = str(request.session_id), str(request.get("X-Cagent-Parent-Session-Id"))
        if found != (session_id, parent):
            self.wrong.append(f"{request.path} came with {found}")
        self.calls[number] += 1


@pytest.fixture
def checked(redis, tmp_path, monkeypatch):
    """What arrives at the gateway, while two workers of Celery wait for parts of the trees."""
    checked = Checked()
    here = Path(__file__).parent
    with Server() as server:
        server.arrived = checked
        monkeypatch.setenv("BROKER_URL", redis)
        monkeypatch.setenv("GATEWAY_URL", server.origin)
        trees = importlib.import_module("family_trees")
        with worker("prefork", here, tmp_path), worker("threads", here, tmp_path):
            yield checked
        for pool in (trees.threads, trees.processes):
            pool.shutdown()
        trees.app.close()
        trees.http.close()


def worker(kind: str, here: Path, folder: Path):
    command = [sys.executable, "-m", "celery", "-A", "family_trees", "worker", "--loglevel=INFO"]
    command += [f"--pool={kind}", "--concurrency=2", f"--hostname={kind}"]
    command += ["--without-mingle", "--without-gossip"]
    environment = os.environ | {"PYTHONWARNINGS": "default"}  # its warnings are Celery's affair
    return running(command, folder / f"{kind}.log", cwd=here, env=environment)


@pytest.mark.filterwarnings("default")
def test_not_one_call_has_a_wrong_parent(checked):
    import family_trees

    trees = [Tree(seed) for seed in range(3)]
    for tree in trees:
        family_trees.visit(tree.root)
        assert current_session_id() is None
    deadline = time.monotonic() + 120 + NODES / 10
    while sum(checked.calls.values()) < 2 * NODES * len(trees):
        assert time.monotonic() < deadline, sum(checked.calls.values())
        for future in list(family_trees.futures):
            if future.done():
                future.result()
        time.sleep(0.02)
    assert checked.wrong == []
    # Each node calls twice, in each tree.
    assert set(checked.calls.values()) == {2 * len(trees)}
    assert len(checked.calls) == NODES
