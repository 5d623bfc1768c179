"""urllib3: the values of identifiers that know the origin that they are for."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import pytest
from support.wire import Server, redirect
from urllib3._collections import HTTPHeaderDict

from cagent_session import Gateway, GatewayPoolManager
from cagent_session._gate.passage import Stamped, StampedBytes
from cagent_session._gate.routes import Library
from cagent_session._transports import homed_headers
from cagent_session._transports.homed_headers import origin_of

ROUTE = Gateway("http://gateway.example", session_header="X-Session-ID")._route
LIBRARY = Library({})
HOME = origin_of("http://gateway.example/x")


def homed(headers: Any) -> Any:
    plan = ROUTE.plan(LIBRARY, tuple(name for name, _ in headers.items()))
    return homed_headers.homed(headers, plan, HOME)


@pytest.mark.parametrize(
    "value", [bytearray(b"mine"), memoryview(b"mine"), collections.UserString("mine")]
)
def test_whatever_http_client_can_send_is_kept_from_other_origins(server: Server, value: object):
    gateway = Gateway(server.origin, session_header="X-Session-ID")
    with Server() as stranger, GatewayPoolManager(gateway) as http:
        server.respond = lambda request: redirect(302, stranger.at("localhost"))
        http.request("GET", server.origin, headers={"X-Session-ID": value})
        assert server.arrived[0].get("X-Session-ID") == "mine"
        assert stranger.arrived[0].get("X-Session-ID") is None


@pytest.mark.parametrize("value", ["mine", b"mine", Stamped("mine"), StampedBytes(b"mine")])
def test_a_value_is_pickled_as_an_ordinary_one(value: Any):
    made = homed({"X-Session-ID": value})["X-Session-ID"]
    assert made == value
    kind = bytes if isinstance(value, bytes) else str
    for each in (made, value):
        assert type(pickle.loads(pickle.dumps(each))) is kind


def test_a_value_that_cannot_be_sent_is_left_to_the_library():
    value = object()
    headers = {"X-Session-ID": value}
    assert homed(headers) is headers


def test_headers_without_identifiers_are_not_copied():
    headers = {"Accept": "*/*"}
    assert homed(headers) is headers


def test_several_values_of_one_name_are_kept():
    headers = HTTPHeaderDict({"X-Session-ID": "mine"})
    headers.add("X-A", "1")
    headers.add("X-A", "2")
    made = homed(headers)
    assert made.getlist("X-A") == ["1", "2"]
    assert made["X-A"] == "1, 2"
    assert made["X-Session-ID"] is made.getlist("X-Session-ID")[0]


def test_several_values_that_are_joined_keep_their_home():
    headers = HTTPHeaderDict({"X-Session-ID": "mine"})
    headers.add("X-Session-ID", "again")
    made = homed(headers)
    assert (made["X-Session-ID"], made["X-Session-ID"].home) == ("mine, again", HOME)
    made.getlist("X-Session-ID")  # each value can have a home of its own
    made._container["x-session-id"][1].home = origin_of("http://other.example")
    assert made["X-Session-ID"].home not in (HOME, origin_of("http://other.example"))


def test_two_spellings_of_one_name_in_a_dict_stay_two():
    made = homed({"Accept": "*/*", "accept": "mine/x", "X-Session-ID": "mine"})
    assert list(made.items())[:2] == [("Accept", "*/*"), ("accept", "mine/x")]


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("http://gateway.example/x", "HTTP://GATEWAY.EXAMPLE:80/y?z"),
        ("http://gateway.example", "gateway.example/x"),
        ("http://gateway.example", "//gateway.example/x"),
        ("http://gateway.example", "http://user:password@gateway.example/"),
        ("http://a%zz.example/x", "http://a%zz.example/y"),
    ],
)
def test_origins_as_urllib3_reads_them(url: str, other: str):
    assert origin_of(url) == origin_of(other)


@pytest.mark.parametrize("url", ["http://gateway.example:99999999/", "http://[", ""])
def test_what_urllib3_refuses_is_the_origin_of_nothing_else(url: str):
    assert origin_of(url) != origin_of("http://gateway.example/")


def test_two_doubtful_urls_have_no_origin_in_common():
    assert origin_of("") != origin_of("")


def test_names_in_bytes_are_known(server: Server):
    gateway = Gateway(server.origin, session_header="X-Session-ID")
    with Server() as stranger, GatewayPoolManager(gateway) as http:
        server.respond = lambda request: redirect(302, stranger.at("localhost"))
        http.request("GET", server.origin, headers={b"X-Session-ID": "mine"})
        assert server.arrived[0].get("X-Session-ID") == "mine"
        assert stranger.arrived[0].get("X-Session-ID") is None


def test_what_is_remembered_of_values_and_names_is_bounded():
    for number in range(3000):
        homed({f"X-{number}": "x", "X-Session-ID": f"s{number}"})
    assert homed_headers._texts_with_home.cache_info().currsize <= 256
    assert ROUTE.plan.cache_info().currsize <= 256
