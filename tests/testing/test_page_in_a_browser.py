"""The page of the recording gateway in a real Chromium."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone

import pytest
import requests
from support.browser import Browser, Page, browser
from support.calls import audit_entry, call

from cagent_session import uninstrument
from cagent_session.testing import RecordingGateway

HOSTILE = [
    "<img/src=x/onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    "\"onmouseover='window.pwned=1'",
    "javascript:window.pwned=1",
    "${window.pwned=1}",
    "__proto__",
    "x" * 256,
]
PATH = f"/<b>{'y' * 100}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


@pytest.fixture
def recording() -> Iterator[RecordingGateway]:
    with RecordingGateway(page=True, requests_per_minute=3) as recording:
        yield recording


@pytest.fixture
def page(chromium: Browser, recording: RecordingGateway) -> Page:
    return opened(chromium, recording)


def opened(chromium: Browser, recording: RecordingGateway, **options) -> Page:
    page = chromium.page(**options)
    page.open(f"{recording.url}/_sessions")
    page.wait_for("document.querySelector('#live.on')")
    return page


def wait_for_sessions(page: Page, number: object) -> None:
    page.wait_for(f"document.getElementById('sessions').textContent == {str(number)!r}")


def tree(page: Page) -> list[tuple[str, int]]:
    """The visible sessions, each with its depth."""
    rows = page.evaluate("""
        [...document.querySelectorAll("#tree .session")].map(row =>
            [row.querySelector(".id").innerText, Number(row.style.getPropertyValue("--depth"))])
    """)
    return [(session_id, depth) for session_id, depth in rows]


def text(page: Page, selector: str) -> str:
    return page.evaluate(f"document.querySelector({selector!r}).innerText")


def color(page: Page, selector: str, name: str = "backgroundColor") -> str:
    return page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{name}")


def overflow(page: Page) -> int:
    """How many pixels of the page are to the right of the window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def fill(recording: RecordingGateway) -> None:
    """Calls as an agent makes them, and those of a hostile client."""
    call(recording, "main")
    call(recording, "sub", parent="main")
    call(recording, "sub-of-sub", parent="sub")
    for _ in range(4):
        call(recording, "limited")
    requests.get(f"{recording.url}/outside/{'long' * 100}", timeout=5)
    port = int(recording.url.rpartition(":")[2])
    for session_id in HOSTILE:
        headers = {"X-Cagent-Session-Id": session_id, "X-Cagent-Model": "<b>x</b>"}
        # requests would encode the path.
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", PATH, headers=headers)
            assert connection.getresponse().status == 200


def test_call_appears_without_a_reload(page, recording):
    assert "Waiting for the first call" in text(page, "#empty")
    page.evaluate("window.kept = true")
    call(recording, "session-1")
    wait_for_sessions(page, 1)
    assert tree(page) == [("session-1", 0)]
    assert page.evaluate("document.getElementById('empty').hidden")
    for _ in range(2):
        call(recording, "session-1")
    page.wait_for("document.getElementById('calls').textContent == '3'")
    assert text(page, "#in") == "15"
    assert page.evaluate("window.kept") is True


def test_sessions_are_a_tree_with_sums_of_the_family(page, recording):
    call(recording, "other")
    call(recording, "main")
    call(recording, "sub", parent="main")
    call(recording, "sub-of-sub", parent="sub")
    call(recording, "orphan", parent="never-called")
    wait_for_sessions(page, 5)
    assert tree(page) == [
        ("never-called", 0),
        ("orphan", 1),
        ("main", 0),
        ("sub", 1),
        ("sub-of-sub", 2),
        ("other", 0),
    ]
    sums = page.evaluate("""
        [...document.querySelectorAll("#tree .session")]
            .map(row => row.querySelector(".number").textContent)
    """)
    assert sums == ["0 callsΣ 1", "1 call", "1 callΣ 3", "1 callΣ 2", "1 call", "1 call"]


def test_parents_in_a_circle_are_shown_once(page, recording):
    for session_id, parent in (("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")):
        call(recording, session_id, parent=parent)
    wait_for_sessions(page, 4)
    assert sorted(session_id for session_id, _ in tree(page)) == ["a", "b", "c", "self"]


def test_calls_outside_every_session_are_in_a_warning_colour(page, recording):
    call(recording, "session-1")
    wait_for_sessions(page, 1)
    assert page.evaluate("document.getElementById('outside').hidden")
    ordinary = color(page, "#list")
    requests.get(recording.url, timeout=5)
    page.wait_for("!document.getElementById('outside').hidden")
    assert "Outside every session" in text(page, "#outside")
    assert "session_scope" in text(page, "#outside")
    assert color(page, "#outside") != ordinary
    assert tree(page) == [("session-1", 0)]


def test_status_of_a_session_has_a_colour(page, recording):
    call(recording, "good")
    for _ in range(4):
        call(recording, "limited")
    recording.respond = lambda request: (500, {})
    call(recording, "bad")
    wait_for_sessions(page, 3)
    dots = page.evaluate("""
        [...document.querySelectorAll("#tree .session")].map(row =>
            [row.querySelector(".id").innerText, row.querySelector(".dot").className,
             row.querySelector(".tag").innerText])
    """)
    assert dots == [
        ["bad", "dot bad", "500"],
        ["limited", "dot slow", "429"],
        ["good", "dot ok", ""],
    ]
    assert text(page, "#errors") == "2"


def test_click_shows_the_calls_of_a_session_and_keeps_them_up_to_date(page, recording):
    call(recording, "session-1")
    wait_for_sessions(page, 1)
    page.evaluate("document.querySelector('#tree .row').click()")
    page.wait_for("document.querySelectorAll('#tree .calls li').length == 1")
    shown = text(page, "#tree .calls li")
    for part in ("200", "POST /v1/chat/completions", "gpt-x", "5 + 5 tokens"):
        assert part in shown
    call(recording, "session-1")
    page.wait_for("document.querySelectorAll('#tree .calls li').length == 2")
    page.evaluate("document.querySelector('#tree .row').click()")
    assert page.evaluate("document.querySelector('#tree .calls').hidden")


def test_values_of_requests_stay_text(page, recording):
    fill(recording)
    wait_for_sessions(page, 4 + len(HOSTILE))
    shown = [session_id for session_id, _ in tree(page)]
    assert sorted(shown) == sorted(["main", "sub", "sub-of-sub", "limited", *HOSTILE])
    page.evaluate("document.querySelectorAll('.row').forEach(row => row.click())")
    page.wait_for("document.querySelectorAll('.calls .what').length == 15")
    assert page.evaluate("typeof window.pwned") == "undefined"
    assert page.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0
    assert f"GET {PATH}" in text(page, "main")
    assert "<b>x</b>" in text(page, "main")


def test_page_asks_no_other_host(page, recording):
    fill(recording)
    wait_for_sessions(page, 4 + len(HOSTILE))
    asked = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(url.startswith((f"{recording.url}/_sessions", "data:")) for url in asked)
    assert len(recording.requests) == 15  # no favicon among them


@pytest.mark.parametrize("width", [320, 360, 390, 640, 768, 1280])
def test_nothing_is_cut_off_at_any_width(chromium, recording, width):
    page = opened(chromium, recording, width=width)
    assert overflow(page) == 0
    fill(recording)
    wait_for_sessions(page, 4 + len(HOSTILE))
    assert overflow(page) == 0
    page.evaluate("document.querySelectorAll('.row').forEach(row => row.click())")
    page.wait_for("document.querySelectorAll('.calls .what').length == 15")
    assert overflow(page) == 0
    assert (
        page.evaluate("""
        [...document.querySelectorAll("main *")].filter(element =>
            element.getClientRects().length &&
            element.getBoundingClientRect().right > document.documentElement.clientWidth).length
    """)
        == 0
    )


@pytest.mark.parametrize("width", [700, 1280])
def test_last_call_stands_apart_from_the_tokens(chromium, recording, width):
    time = (datetime.now(timezone.utc) - timedelta(minutes=44)).isoformat()
    recording._page.add(audit_entry(time=time, completion_tokens=123_456_789))
    page = opened(chromium, recording, width=width)
    wait_for_sessions(page, 1)
    tokens, last = page.evaluate("""
        ["#tree .number:nth-child(4)", "#tree .last"].map(selector => {
            const text = document.createRange();
            text.selectNodeContents(document.querySelector(selector));
            return text.getBoundingClientRect().toJSON();
        })
    """)
    assert text(page, "#tree .last") == "44 min ago"
    assert last["left"] - tokens["right"] >= 16


def test_dark_and_light_follow_the_system_and_are_legible(chromium, recording):
    page = opened(chromium, recording, dark=True)
    fill(recording)
    wait_for_sessions(page, 4 + len(HOSTILE))
    for scheme, is_dark in (("dark", True), ("light", False)):
        page.prefer(scheme)
        assert (luminance(color(page, "body")) < 0.1) == is_dark
        for selector, background in (
            ("#tree .id", "#list"),
            ("#tree .last", "#list"),
            ("#sums dt", "#sums"),
            ("#outside .id", "#outside"),
            (".hint", "#outside"),
            ("footer", "body"),
            (".tag.slow", ".tag.slow"),
        ):
            front, back = color(page, selector, "color"), color(page, background)
            assert contrast(front, back) >= 4.5, (scheme, selector)


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in color.removeprefix("rgb(").rstrip(")").split(", ")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_filter_shows_matching_sessions_with_their_parents_and_children(page, recording):
    call(recording, "main")
    call(recording, "sub", parent="main")
    call(recording, "sub-of-sub", parent="sub")
    call(recording, "sibling", parent="main")
    call(recording, "other")
    wait_for_sessions(page, 5)
    search = """
        (wanted => {
            const filter = document.getElementById("filter");
            filter.value = wanted;
            filter.dispatchEvent(new Event("input"));
        })"""
    page.evaluate(f"{search}(' SUB ')")
    page.wait_for("document.querySelectorAll('#tree .session').length == 3")
    assert tree(page) == [("main", 0), ("sub", 1), ("sub-of-sub", 2)]
    page.evaluate(f"{search}('nonsense')")
    page.wait_for("!document.getElementById('none').hidden")
    assert tree(page) == []
    page.evaluate(f"{search}('')")
    page.wait_for("document.querySelectorAll('#tree .session').length == 5")


def test_thousands_of_sessions_are_shown_in_portions(chromium):
    with RecordingGateway(page=True) as recording:
        for number in range(10_050):
            # A star, a chain, and sessions on their own.
            parents = ["root", f"session-{number - 3}", None]
            recording._page.add(
                audit_entry(session_id=f"session-{number}", parent_session_id=parents[number % 3])
            )
        page = opened(chromium, recording)
        wait_for_sessions(page, "10,000")
        assert len(tree(page)) == 300
        assert "The last 10,000 of 10,050 calls" in text(page, "footer")
        page.evaluate("document.getElementById('more').click()")
        page.wait_for("document.querySelectorAll('#tree .session').length == 600")
        assert overflow(page) == 0


def test_page_says_when_the_gateway_has_ended_and_comes_back(chromium):
    with RecordingGateway(page=True) as recording:
        call(recording, "first")
        page = opened(chromium, recording)
        wait_for_sessions(page, 1)
        port = int(recording.url.rpartition(":")[2])
    page.wait_for("document.getElementById('live').innerText == 'reconnecting'")
    with RecordingGateway(page=True, port=port) as recording:
        call(recording, "second")
        page.wait_for("document.getElementById('live').innerText == 'live'")
        page.wait_for("document.querySelector('#tree .id').innerText == 'second'")
        assert tree(page) == [("second", 0)]


@pytest.mark.parametrize("header", ["X-Cagent-Session-Id", "X-LiteLLM-Session-Id"])
def test_example_runs_when_pasted_and_fits_a_phone(chromium, header):
    with RecordingGateway(page=True, session_header=header) as recording:
        page = opened(chromium, recording, width=390)
        page.wait_for("document.getElementById('example').textContent")
        assert page.evaluate("""
            (example => example.scrollWidth <= example.clientWidth)(
                document.getElementById("example"))
        """)
        try:
            exec(text(page, "#example"), {})
        finally:
            uninstrument()
        (request,) = recording.requests
        assert (request.session_id, request.path) == ("session-1", "/v1/chat/completions")
        assert recording.sessions["session-1"].prompt_tokens == 1
        wait_for_sessions(page, 1)


def test_clear_empties_the_page(page, recording):
    call(recording, "session-1")
    wait_for_sessions(page, 1)
    recording.clear()
    page.wait_for("!document.getElementById('empty').hidden")
    assert tree(page) == []
