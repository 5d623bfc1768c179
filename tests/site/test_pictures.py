"""The pictures of the documentation are legible on a phone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser, browser

SITE = Path(os.environ["DOCS_SITE"])


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


PICTURES = "[...document.images].map((i) => ({src: i.src, width: i.clientWidth}))"
# The smallest letters, as a share of the picture's width.
LETTERS = """(() => {
    const svg = document.documentElement;
    const sizes = [...svg.querySelectorAll("text, tspan")].map((e) =>
        parseFloat(getComputedStyle(e).fontSize));
    return Math.min(...sizes) / svg.viewBox.baseVal.width;
})()"""


def test_letters_of_pictures_are_legible_on_a_phone(chromium):
    page = chromium.page(390)
    drawn = {}
    for name in SITE.glob("*.html"):
        page.open(name.as_uri())
        for picture in page.evaluate(PICTURES):
            drawn[picture["src"]] = picture["width"]
    assert len(drawn) >= 3
    for source, width in drawn.items():
        assert width <= 390
        if source.endswith(".svg"):
            page.open(source)
            assert page.evaluate(LETTERS) * width >= 9, source
