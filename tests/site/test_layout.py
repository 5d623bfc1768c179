"""The layout of the site in Chromium: nothing is cut off, nothing overlaps, at any width."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser, browser

SITE = Path(os.environ["DOCS_SITE"])
PAGES = sorted(page.name for page in SITE.glob("*.html"))
WIDTHS = [360, 768, 1024, 1100, 1280, 1366, 1440, 1920]

# Every line of text that the reader cannot see whole: it reaches beyond the window, or beyond an
# ancestor that cuts it off. What is in a box that scrolls counts as that box does. Drawers that
# wait outside the window, and what is there for screen readers only, are meant to be out of sight.
CUT_OFF = """(() => {
    const width = document.documentElement.clientWidth;
    const waiting = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const style = getComputedStyle(e), box = e.getBoundingClientRect();
            if (style.visibility == "hidden" || style.display == "none") return true;
            if (style.position == "fixed" && (box.right <= 0 || box.left >= width)) return true;
            if (box.bottom <= 0 && style.position == "fixed") return true;
            if (e.matches(".visually-hidden, .skip-to-content")) return true;
        }
        return false;
    };
    const cut = (box, element) => {
        for (let e = element; e && e != document.body; e = e.parentElement) {
            const style = getComputedStyle(e), edge = e.getBoundingClientRect();
            if (["auto", "scroll"].includes(style.overflowX)) box = edge;
            else if (style.overflowX != "visible" && box.right > edge.right + 1) return true;
        }
        return box.left < -1 || box.right > width + 1;
    };
    const lines = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode, parent = node.parentElement;
        if (!node.data.trim() || parent.closest("script, style, svg, noscript")) continue;
        if (waiting(parent)) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        if ([...range.getClientRects()].some((box) => cut(box, parent)))
            lines.push(node.data.trim().slice(0, 60));
    }
    for (const picture of document.images)
        if (!waiting(picture) && cut(picture.getBoundingClientRect(), picture))
            lines.push(picture.src);
    return lines;
})()"""

# Columns that are both in sight, and lie over each other.
OVERLAPS = """(() => {
    const columns = [...document.querySelectorAll(".sidebar-drawer, .content, .toc-drawer")]
        .filter((e) => getComputedStyle(e).position != "fixed" && e.clientWidth)
        .map((e) => ({name: e.className, box: e.getBoundingClientRect()}));
    const over = (a, b) => a.right > b.left + 1 && b.right > a.left + 1 && a.bottom > b.top + 1
        && b.bottom > a.top + 1;
    return columns.flatMap((one, i) => columns.slice(i + 1)
        .filter((other) => over(one.box, other.box))
        .map((other) => one.name + " over " + other.name));
})()"""

# The page itself does not scroll sideways.
SCROLLS = "document.scrollingElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_every_width(chromium, name):
    page = chromium.page()
    page.open((SITE / name).as_uri())
    for width in WIDTHS:
        page.resize(width)
        assert page.evaluate(CUT_OFF) == [], f"{name} at {width} px"
        assert page.evaluate(OVERLAPS) == [], f"{name} at {width} px"
        assert page.evaluate(SCROLLS) == 0, f"{name} at {width} px"
