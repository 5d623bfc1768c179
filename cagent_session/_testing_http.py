"""How the recording gateway speaks HTTP, with clients that do and with those that do not."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast

from ._testing_models import Answer, error, json_object
from .headers import FORWARD, MODEL, PROVIDER, SESSION_ID, InvalidSessionID, check_session_id

if TYPE_CHECKING:
    from .testing import RecordingGateway

MAX_BODY = 16 * 1024 * 1024


@dataclass(frozen=True)
class RecordedRequest:
    """One request, as it arrived."""

    method: str
    path: str
    query: str
    headers: Message  #: case-insensitive; ``None`` for a header that is missing
    body: bytes
    json: dict[str, Any]  #: the body, if it is a JSON object, else empty
    session_id: str | None
    forward: str | None
    provider: str | None
    model: str | None  #: of the header, else of the JSON body


class _Refused(Exception):
    """A request that is answered with an error, after which the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() waits for the handlers
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], gateway: RecordingGateway) -> None:
        self.gateway = gateway
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle of a request is no news."""

    def stop(self) -> None:
        self.shutdown()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the handler that waits for more
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "RecordingGateway"
    timeout = 30
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        try:
            answer = cast(Server, self.server).gateway._answer(self._read())
        except _Refused as refused:
            self.close_connection = True
            answer = error(refused.status, str(refused))
        self._write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve

    def log_message(self, *args: Any) -> None:
        """The audit log is the log."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # What http.server cannot read is the client's fault here, whatever it thinks itself.
        self.request_version = "HTTP/1.1"
        self.close_connection = True
        self._write(error(code if code < 500 else 400, message or "bad request"))

    def _read(self) -> RecordedRequest:
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"
            raise _Refused(400, "HTTP/0.9 is not served")
        session_id = self._single(SESSION_ID)
        if session_id is not None:
            try:
                check_session_id(session_id)
            except InvalidSessionID as invalid:
                raise _Refused(400, str(invalid)) from None
        body = self._read_body()
        path, _, query = self.path.partition("?")
        content = json_object(body)
        model = self._single(MODEL) or content.get("model")
        return RecordedRequest(
            method=self.command,
            path=path,
            query=query,
            headers=self.headers,
            body=body,
            json=content,
            session_id=session_id,
            forward=self._single(FORWARD),
            provider=self._single(PROVIDER),
            model=model if isinstance(model, str) else None,
        )

    def _single(self, name: str) -> str | None:
        values = self.headers.get_all(name, [])
        if len(values) > 1:
            raise _Refused(400, f"{name} came more than once")
        return values[0] if values else None

    def _read_body(self) -> bytes:
        length = self._single("Content-Length")
        encoding = self._single("Transfer-Encoding")
        if encoding is not None:
            if length is not None or encoding.lower() != "chunked":
                raise _Refused(400, "the length of the body is not clear")
            return b"".join(self._read_chunks())
        return self._read_exactly(self._number(length or "0", 10))

    def _read_chunks(self) -> Iterator[bytes]:
        total = 0
        while True:
            line = self.rfile.readline(1024).decode("latin-1")
            size = self._number(line.partition(";")[0].strip(), 16)
            total += size
            if total > MAX_BODY:
                raise _Refused(413, "the body is too large")
            if size == 0:
                break
            yield self._read_exactly(size)
            if self.rfile.readline(3) != b"\r\n":
                raise _Refused(400, "a chunk of the body is malformed")
        while self.rfile.readline(65536).strip():
            pass  # trailers

    def _number(self, digits: str, base: int) -> int:
        if not (digits.isascii() and digits.isalnum() and len(digits) <= 16):
            raise _Refused(400, "the length of the body is not a number")
        try:
            return int(digits, base)
        except ValueError:
            raise _Refused(400, "the length of the body is not a number") from None

    def _read_exactly(self, size: int) -> bytes:
        if size > MAX_BODY:
            raise _Refused(413, "the body is too large")
        body = self.rfile.read(size)
        if len(body) < size:
            raise _Refused(400, "the body is shorter than announced")
        return body

    def _write(self, answer: Answer) -> None:
        chunked = answer.streamed and self.request_version == "HTTP/1.1"
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.streamed:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(sum(map(len, answer.chunks))))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        for chunk in answer.chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
