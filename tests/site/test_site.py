"""The site that tox -e docs has built."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import sphobjinv
from support.public import public_names

SITE = Path(os.environ["DOCS_SITE"])


def test_reference_has_every_public_name():
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


def test_every_page_is_built():
    docs = Path(__file__).parent.parent.parent / "docs"
    for page in docs.glob("*.md"):
        assert (SITE / f"{page.stem}.html").exists()


@pytest.mark.parametrize("page", sorted(SITE.glob("*.html")), ids=lambda page: page.name)
def test_page_has_an_icon_a_description_and_copy_buttons(page):
    html = page.read_text(encoding="utf-8")
    assert 'icon" href="_static/favicon.svg"' in html
    assert "_static/copybutton.js" in html
    if page.name not in {"genindex.html", "py-modindex.html", "search.html"}:  # Sphinx' own
        assert re.search(r'<meta content="[^"]{50,}" name="description"', html)


def test_signature_has_a_line_with_a_type_for_each_parameter():
    html = (SITE / "reference.html").read_text(encoding="utf-8")
    _, _, signature = html.partition('id="cagent_session.Gateway"')
    signature, _, _ = signature.partition("</dt>")
    lines = [re.sub(r"<.*?>", "", line) for line in re.findall(r"<dd>(.*?)</dd>", signature)]
    assert lines[0] == "url: str,"
    assert "require_session: bool = False," in lines
    assert all(re.match(r"\w+: ", line) for line in lines if line != "*,")
