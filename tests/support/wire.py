"""Servers on loopback that keep what really arrived, byte for byte."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arrived:
    """One request as it was on the wire."""

    raw: bytes
    method: str
    target: str
    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def session_id(self) -> str | None:
        return self.get("X-Cagent-Session-Id")

    @property
    def forward(self) -> str | None:
        return self.get("X-Cagent-Forward")

    @property
    def identifiers(self) -> dict[str, str]:
        return {k.lower(): v for k, v in self.headers if k.lower().startswith("x-cagent-")}


def response(
    status: int = 200, body: bytes = b"{}", headers: dict[str, str] | None = None
) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def redirect(status: int, location: str) -> bytes:
    return response(status, b"", {"Location": location})


class Server:
    """Answers each request with what ``respond`` gives, and keeps all that arrived.

    ``respond`` gives the bytes of the response, or ``None`` to close the connection without one.
    """

    def __init__(
        self,
        respond: Callable[[Arrived], bytes | None] = lambda request: response(),
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.respond = respond
        self.arrived: list[Arrived] = []
        self.connections = 0
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family)
        self._listener.bind((host, 0))
        self._listener.listen(128)
        self.host = f"[{host}]" if ":" in host else host
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    def at(self, host: str) -> str:
        """The origin under another name of this machine."""
        return self.origin.replace(self.host, host)

    def __enter__(self) -> Server:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Wakes accept(), which closing alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)  # that accepts connections, so that none comes after these
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self._open.add(connection)
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self.connections += 1
        try:
            connection.settimeout(20)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._open.add(connection)
            self.handle(connection)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def handle(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while (request := _read_request(stream)) is not None:
                with self._lock:
                    self.arrived.append(request)
                answer = self.respond(request)
                if answer is None:
                    return
                connection.sendall(answer)


def _read_request(stream) -> Arrived | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline(65537)
        if not line:
            return None
        head += line
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name, value.strip(" \t")))
    names = {name.lower(): value for name, value in headers}
    body = b"".join(_read_body(stream, names))
    return Arrived(head + body, method, target, headers, body)


def _read_body(stream, names: dict[str, str]) -> Iterator[bytes]:
    if names.get("transfer-encoding") == "chunked":
        size = None
        while size != 0:
            line = stream.readline()
            size = int(line, 16)
            yield line + stream.read(size) + stream.readline()
    else:
        yield stream.read(int(names.get("content-length", 0)))


class Proxy(Server):
    """An HTTP proxy: forwards what has a full URL, and tunnels on CONNECT."""

    def handle(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while (request := _read_request(stream)) is not None:
                with self._lock:
                    self.arrived.append(request)
                if request.method == "CONNECT":
                    self._tunnel(connection, request.target)
                    return
                connection.sendall(_forward(request))

    def _tunnel(self, client: socket.socket, target: str) -> None:
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as upstream:
            client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = self._start(_pump, upstream, client)
            _pump(client, upstream)
            back.join()  # closing a socket does not wake a thread that reads from it


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _forward(request: Arrived) -> bytes:
    if not request.target.startswith("http://"):
        return response(502)
    scheme_and_host, _, path = request.target.removeprefix("http://").partition("/")
    host, _, port = scheme_and_host.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as upstream:
        raw = request.raw.replace(request.target.encode(), b"/" + path.encode(), 1)
        head, separator, rest = raw.partition(b"\r\n")
        upstream.sendall(head + separator + b"Connection: close\r\n" + rest)
        upstream.shutdown(socket.SHUT_WR)
        answer = b""
        while data := upstream.recv(65536):
            answer += data
    return answer
