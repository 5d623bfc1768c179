"""Answers every request on every connection with the same bytes. Prints its port first."""

from __future__ import annotations

import socket
import threading

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
#: How the body of the benchmark's requests ends, and nothing else in them.
END = b"}]}"


def talk(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    while data := connection.recv(65536):
        received += data
        if received.endswith(END):
            received = b""
            connection.sendall(ANSWER)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=talk, args=(accepted,), daemon=True).start()
