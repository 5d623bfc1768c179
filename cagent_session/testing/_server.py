"""How the recording gateway speaks HTTP, with clients that do and with those that do not."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any, TypeAlias, cast

from .._session.ids import InvalidSessionID, check_session_id
from ..headers import FORWARD, MODEL, PROVIDER
from ._answers import error, json_object
from ._messages import Answer, RecordedRequest

MAX_BODY = 16 * 1024 * 1024
MAX_CHUNK_LINE = 1024  # the line before a chunk: its length, and extensions that nobody reads
LINGER = 5  # seconds

_Answering: TypeAlias = Callable[[RecordedRequest], Answer]

_is_header = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*)?\r?\n").fullmatch


class _Refused(Exception):
    """A request that is answered with an error, after which the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Head:
    """The lines of a head, and whether each is a header.

    http.server leaves out what it cannot read, with all headers that follow.
    """

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self.is_clear = True

    def readline(self, size: int) -> bytes:
        line = self._stream.readline(size)
        self.is_clear = self.is_clear and _is_header(line) is not None
        return line


class Server(ThreadingHTTPServer):
    """Reads requests on 127.0.0.1, and sends what ``answer`` makes of each.

    :param session_header: the name of the header that the session is read from.
    :param parent_header: that of its parent, if there is one.
    """

    daemon_threads = False  # so that server_close() waits for the handlers
    request_queue_size = 128

    def __init__(
        self, port: int, answer: _Answering, session_header: str, parent_header: str | None
    ) -> None:
        self.answer = answer
        self.session_header = session_header
        self.parent_header = parent_header
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away in the middle of a request is no news.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the handler that waits for more
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    raw_requestline: bytes
    protocol_version = "HTTP/1.1"
    server_version = "RecordingGateway"
    timeout = 30
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        try:
            request = self._read()
        except _Refused as refused:
            self._refuse(refused.status, str(refused))
        else:
            self._write(self.server.answer(request))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve

    def parse_request(self) -> bool:
        if not self.raw_requestline.strip():  # which http.server would leave without an answer
            self.command = self.requestline = ""
            self.send_error(400, "the request line is empty")
            return False
        stream, head = self.rfile, _Head(self.rfile)
        self.rfile = cast(BufferedIOBase, head)
        try:
            is_read = super().parse_request()
        finally:
            self.rfile = stream
        if is_read and not head.is_clear:
            self.send_error(400, "a header is malformed, or the last one is missing its end")
            return False
        return is_read

    def log_message(self, *args: Any) -> None:
        """The audit log is the log."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # What http.server cannot read is the client's fault here, whatever it thinks itself.
        self.request_version = "HTTP/1.1"
        self._refuse(code if code < 500 else 400, message or "bad request")

    def _refuse(self, status: int, message: str) -> None:
        self.close_connection = True
        self._write(error(status, message))
        # Closed at once, with more of the request on its way, the connection would be reset, and
        # the client would never see the answer.
        self.connection.shutdown(socket.SHUT_WR)
        end = time.monotonic() + LINGER
        while (left := end - time.monotonic()) > 0:
            self.connection.settimeout(left)
            if not self.connection.recv(65536):
                break

    def _read(self) -> RecordedRequest:
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"
            raise _Refused(400, "HTTP/0.9 is not served")
        session_id = self._id(self.server.session_header)
        parent_header = self.server.parent_header
        parent_session_id = None if parent_header is None else self._id(parent_header)
        try:
            body = self._read_body()
        except TimeoutError:
            raise _Refused(408, "the body did not come in time") from None
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
            parent_session_id=parent_session_id,
            forward=self._single(FORWARD),
            provider=self._single(PROVIDER),
            model=model if isinstance(model, str) else None,
        )

    def _id(self, name: str) -> str | None:
        value = self._single(name)
        if value is not None:
            try:
                check_session_id(value, name)
            except InvalidSessionID as invalid:
                raise _Refused(400, str(invalid)) from None
        return value

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
            return self._read_chunks()
        return self._read_exactly(0 if length is None else self._number(length, 10), MAX_BODY)

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while size := self._read_chunk_size():
            body += self._read_exactly(size, MAX_BODY - len(body))
            if self.rfile.read(2) != b"\r\n":
                raise _Refused(400, "a chunk of the body is malformed")
        try:
            http.client.parse_headers(self.rfile)  # the trailers
        except http.client.HTTPException:
            raise _Refused(431, "the trailers are too large") from None
        return bytes(body)

    def _read_chunk_size(self) -> int:
        line = self.rfile.readline(MAX_CHUNK_LINE + 1)
        if len(line) > MAX_CHUNK_LINE:
            raise _Refused(400, "the line before a chunk is too long")
        return self._number(line.decode("latin-1").partition(";")[0].strip(), 16)

    def _number(self, digits: str, base: int) -> int:
        if not re.fullmatch("[0-9]{1,16}" if base == 10 else "[0-9A-Fa-f]{1,16}", digits):
            raise _Refused(400, "the length of the body is not a number")
        return int(digits, base)

    def _read_exactly(self, size: int, limit: int) -> bytes:
        if size > limit:
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
        elif answer.has_body:
            self.send_header("Content-Length", str(sum(map(len, answer.chunks))))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD" or not answer.has_body:
            return
        for chunk in answer.chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
