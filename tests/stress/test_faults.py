"""A gateway that misbehaves: the caller gets what the plain transport gives, and no more."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import httpx
import pytest
import requests
import urllib3
from support.transports import Transport
from support.wire import Server, _read_request, response

from cagent_session import (
    Gateway,
    GatewayAdapter,
    GatewayPoolManager,
    current_session_id,
    session_scope,
)
from cagent_session.integrations.httpx import GatewayTransport

FORWARD = "https://api.openai.com/v1"


class Faulty(Server):
    """Reads a request, and then does ``fault(connection)``."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.let_go = threading.Event()

    def handle(self, connection):
        with connection.makefile("rb") as stream:
            while (request := _read_request(stream)) is not None:
                self.arrived.append(request)
                self.fault(self, connection)

    def __exit__(self, *exc_info):
        self.let_go.set()
        super().__exit__(*exc_info)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    raise OSError


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def reset_at_once(server, connection):
    reset(connection)


def close_at_once(server, connection):
    connection.shutdown(socket.SHUT_RDWR)


def reset_within_the_head(server, connection):
    connection.sendall(HEAD[:20])
    reset(connection)


def close_within_the_head(server, connection):
    connection.sendall(HEAD[:20])
    connection.shutdown(socket.SHUT_RDWR)


def close_within_the_body(server, connection):
    connection.sendall(HEAD + b"Content-Length: 100\r\n\r\nabc")
    connection.shutdown(socket.SHUT_RDWR)


def close_within_a_chunk(server, connection):
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\nabc")
    connection.shutdown(socket.SHUT_RDWR)


def answer_nonsense(server, connection):
    connection.sendall(b"nonsense\r\n\r\n")
    connection.shutdown(socket.SHUT_RDWR)


def answer_and_close(server, connection):
    connection.sendall(response())
    connection.shutdown(socket.SHUT_RDWR)


def answer_503(server, connection):
    connection.sendall(response(503))


FAULTS = [
    reset_at_once,
    close_at_once,
    reset_within_the_head,
    close_within_the_head,
    close_within_the_body,
    close_within_a_chunk,
    answer_nonsense,
    answer_and_close,
    answer_503,
]


def outcome(send, url: str):
    """The status or the type of the error, of each of two requests in a row."""
    seen = []
    for _ in range(2):
        # Time for the end of a connection to arrive: on one that is just ending, a second request
        # fails or does not as chance will have it.
        time.sleep(0.05)
        with session_scope("s1"):
            try:
                seen.append(send("GET", url))
            except Exception as error:  # whatever it is, it is to be the same
                seen.append(type(error))
            assert current_session_id() == "s1"
    assert current_session_id() is None
    return seen


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_caller_gets_what_the_plain_transport_gives(transport: Transport, fault):
    with Faulty(fault) as server:
        gateway = Gateway(server.origin, forward=FORWARD)
        with transport.open(plain=True) as send:
            plain = outcome(send, server.origin)
        attempts = len(server.arrived)
        with transport.open(gateway) as send:
            assert outcome(send, server.origin) == plain
    assert len(server.arrived) == 2 * attempts
    for request in server.arrived[attempts:]:
        assert request.session_id == "s1"


def test_a_gateway_that_is_not_there(transport: Transport):
    with Server() as server:
        origin = server.origin
    with transport.open(plain=True) as plain, transport.open() as ours:
        assert outcome(plain, origin) == outcome(ours, origin)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_gateway_that_stalls():
    def stall(server, connection):
        server.let_go.wait(10)

    with Faulty(stall) as server, contextlib.ExitStack() as stack:
        gateway = Gateway(server.origin, forward=FORWARD)
        http = stack.enter_context(requests.Session())
        http.mount("http://", GatewayAdapter(gateway))
        pools = stack.enter_context(GatewayPoolManager(gateway))
        client = stack.enter_context(httpx.Client(transport=GatewayTransport(gateway)))
        timed_out = {
            requests.ReadTimeout: lambda: http.get(server.origin, timeout=0.2),
            urllib3.exceptions.ReadTimeoutError: lambda: pools.request(
                "GET", server.origin, timeout=0.2, retries=False
            ),
            httpx.ReadTimeout: lambda: client.get(server.origin, timeout=0.2),
        }
        for error, call in timed_out.items():
            with session_scope("s1"), pytest.raises(error):
                call()
        assert [request.session_id for request in server.arrived] == ["s1"] * 3
