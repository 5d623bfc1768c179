"""Random trees of sessions over threads, processes and Celery: not one wrong parent or root.

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
        self.first = self.node(0, "here", "main", NOBODY, None)
        nodes = [self.first]
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
                known = (*known[:2], None)  # a message names a session, its parent and its root
            nodes.append(self.node(len(nodes), way, where, known, parent["root"]))
            parent["children"].append(nodes[-1])
        self.nodes = nodes

    def node(self, number: int, way: str, where: str, known: tuple, root: str | None) -> dict:
        scopes, lineage, root = self.scopes(f"s{number}", known, root)
        return {
            "number": number,
            "way": way,
            "where": where,
            "body": self.random.choice(["function", "generator", "coroutine", "async_generator"]),
            "scopes": scopes,
            "lineage": lineage,
            "root": root,
            "expected": (*lineage[:2], root),
            "children": [],
        }

    def scopes(self, new: str, known: tuple, root: str | None) -> tuple[list, tuple, str | None]:
        """Return the scopes of a node, outermost first; its session and ancestors; its root."""
        ancestors = [session_id for session_id in known if session_id is not None]
        if root is not None:
            ancestors.append(root)
        rule = self.random.choice(["new"] * 4 + ["again", "ancestor", "named", "apart", "nobody"])
        if rule in ("again", "ancestor") and not ancestors:
            rule = "new"
        if rule == "again":
            return [(known[0], {})], known, root
        if rule == "ancestor":
            ancestor = self.random.choice(ancestors)
            return [(ancestor, {})], part(known, ancestor), root
        if rule == "named":
            named = self.random.choice([*ancestors, "named"])
            root = root if named in ancestors else named
            return [(new, {"parent": named})], (new, *part(known, named)), root
        if rule == "apart":
            return [(None, {}), (new, {})], (new, *NOBODY), new
        if rule == "nobody":
            return [(None, {})], NOBODY, None
        return [(new, {})], (new, *known), root or new


def part(known: tuple, session_id: str) -> tuple:
    """Return the session and ancestors of one that may be known by its name alone."""
    return known[known.index(session_id) :] if session_id in known else (session_id, *NOBODY)


class Checked:
    """Takes the place of the server's list, and keeps what is wrong alone."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.calls: collections.Counter[str] = collections.Counter()

    def append(self, request: Arrived) -> None:
        *expected, number = request.path.split("/")[1:]
        names = ("X-Cagent-Session-Id", "X-Cagent-Parent-Session-Id", "X-Root")
        found = [str(request.get(name)) for name in names]
        if found != expected:
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
def test_not_one_call_has_a_wrong_parent_or_root(checked):
    import family_trees

    trees = [Tree(seed) for seed in range(3)]
    for tree in trees:
        family_trees.visit(tree.first)
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
