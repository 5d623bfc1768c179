"""The site that tox -e docs has built."""

from __future__ import annotations

import os
from pathlib import Path

import sphobjinv
from support.public import public_names

SITE = Path(os.environ["DOCS_SITE"])


def test_the_reference_has_all_public_names():
    inventory = sphobjinv.Inventory(SITE / "objects.inv")
    there = {
        entry.name: entry.uri_expanded.partition("#")[0]
        for entry in inventory.objects
        if entry.domain == "py"
    }
    names = dict(public_names())
    assert len(names) > 30
    assert {name: there.get(name) for name in names} == dict.fromkeys(names, "reference.html")
    assert {"cagent_session.Gateway.mount", "cagent_session.Gateway.from_env"} <= there.keys()


def test_every_page_has_been_built():
    docs = Path(__file__).parent.parent.parent / "docs"
    for page in docs.glob("*.md"):
        assert (SITE / f"{page.stem}.html").exists()
