"""The HTTP server of the recording gateway, which answers broken clients with a 4xx."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .._gate.validation import PREFIX
from .._session.ids import InvalidSessionID, check_session_id
from ..headers import FORWARD, MODEL, PROVIDER
from ._answers import error, json_object
from ._messages import Answer, RecordedRequest

if TYPE_CHECKING:
    from ._page import Page

MAX_BODY = 16 * 1024 * 1024
MAX_CHUNK_LINE = 1024  # bytes of the line before a chunk: its length, and ignored extensions
MAX_LINE = 65536  # bytes of a trailer
MAX_TRAILERS = 100  # header lines after a chunked body
MAX_ID = 2048  # characters of a session header with a name of the gateway's own
LINGER = 5  # seconds

_PAGE = "/_sessions"

_Answering: TypeAlias = Callable[[RecordedRequest], Answer]

_is_session_value = re.compile(rf"[!-~](?:[ -~]{{0,{MAX_ID - 2}}}[!-~])?").fullmatch
_is_header = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*)?\r?\n").fullmatch
# http.server splits the line at whatever a str takes for white space, \x85 and \xa0 included.
_is_request_line = re.compile(rb"[^\0-\x20\x7f\x85\xa0][^\0-\x1f\x7f\x85\xa0]*\r?\n").fullmatch
_is_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n\0]*)?\r?\n").fullmatch


class _Refused(Exception):
    """A request that is answered with an error, after which the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Head:
    """A stream that notes whether all lines of a request's head are headers.

    http.server silently drops the first malformed line and all headers after it.
    """

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self.is_clear = True

    def readline(self, size: int) -> bytes:
        line = self._stream.readline(size)
        self.is_clear = self.is_clear and _is_header(line) is not None
        return line


class Server(ThreadingHTTPServer):
    """Read requests on 127.0.0.1, and send what ``answer`` returns for each.

    :param note_refusal: called with the method and path, the status and the reason for each
        request that is refused before ``answer`` is called.
    :param session_header: the name of the header that the session is read from.
    :param parent_header: the name of the header that its parent is read from, if any.
    :param page: what answers at and below ``/_sessions``, if anything does.
    """

    request_queue_size = 128

    def __init__(
        self,
        port: int,
        answer: _Answering,
        note_refusal: Callable[[str, int, str], None],
        session_header: str,
        parent_header: str | None,
        page: Page | None,
    ) -> None:
        self.answer = answer
        self.note_refusal = note_refusal
        self.session_header = session_header
        self.parent_header = parent_header
        self.page = page
        self._connections: set[socket.socket] = set()
        self._handlers: set[threading.Thread] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        if page is not None:
            page.open()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        # As in ThreadingMixIn, which would wait for the threads of handlers without a limit. They
        # are daemons, so that a process can end while a browser watches.
        handler = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        self._handlers.add(handler)
        handler.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._handlers.discard(threading.current_thread())

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # An OSError is a client that went away in the middle of a request.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Stop listening, let handlers end their answers, but not for long, end all connections."""
        if self.page is not None:
            self.page.close()
        self.shutdown()
        self._shut(socket.SHUT_RD)  # wakes the handlers that wait for more
        self.server_close()
        end = time.monotonic() + LINGER
        for handler in list(self._handlers):
            handler.join(max(0, end - time.monotonic()))
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(how)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    raw_requestline: bytes
    protocol_version = "HTTP/1.1"
    server_version = "RecordingGateway"
    timeout = 30
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        try:
            answer = self._answer()
        except _Refused as refused:
            self._refuse(refused.status, str(refused))
        else:
            self._write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve

    def parse_request(self) -> bool:
        if not _is_request_line(self.raw_requestline):
            self.command = self.requestline = self.path = ""
            self.send_error(400, "the request line is malformed")
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
        if is_read:
            self.path = self.requestline.split()[1]  # http.server makes one slash of several
        return is_read

    def log_message(self, *args: Any) -> None:
        """Log nothing: the audit log is the log."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.request_version = "HTTP/1.1"
        if code == 501 and self._is_for_the_page():
            code = 405
        # http.server calls an unknown method or version a fault of the server (501, 505).
        self._refuse(code if code < 500 else 400, message or "bad request")

    def _refuse(self, status: int, message: str) -> None:
        self.close_connection = True
        answer = error(status, message)
        if status == 405:
            answer.headers["Allow"] = "GET, HEAD"
        self._write(answer)
        # Closed at once, with more of the request on its way, the connection would be reset, and
        # the client would never see the answer.
        self.connection.shutdown(socket.SHUT_WR)
        end = time.monotonic() + LINGER
        while (left := end - time.monotonic()) > 0:
            self.connection.settimeout(left)
            if not self.connection.recv(65536):
                break

    def _answer(self) -> Answer:
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"
            raise _Refused(400, "HTTP/0.9 is not served")
        if self.server.page is not None and self._is_for_the_page():
            return self._answer_of(self.server.page)
        try:
            request = self._read()
        except _Refused as refused:
            path = self.path.partition("?")[0]
            self.server.note_refusal(f"{self.command} {path}", refused.status, str(refused))
            raise
        return self.server.answer(request)

    def _is_for_the_page(self) -> bool:
        path, _, _ = self.path.partition("?")
        return self.server.page is not None and (path == _PAGE or path.startswith(f"{_PAGE}/"))

    def _answer_of(self, page: Page) -> Answer:
        if self.command not in ("GET", "HEAD"):
            raise _Refused(405, "the page can only be read")
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            raise _Refused(400, "the page takes no body")
        self.close_connection = True
        hosts = self.headers.get_all("Host", [])
        path, _, query = self.path.partition("?")
        return page.answer(path, query, hosts[0] if len(hosts) == 1 else None)

    def _read(self) -> RecordedRequest:
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
        """Return the session, or the parent, that a header names."""
        value = self._single(name)
        if value is None:
            return None
        if not name.lower().startswith(PREFIX):
            # A gateway's own header may be made by a template or a function: a path, JSON.
            if not _is_session_value(value):
                raise _Refused(400, f"{name} is empty, too long, or not printable ASCII")
            return value
        try:
            return check_session_id(value, name)
        except InvalidSessionID as invalid:
            raise _Refused(400, str(invalid)) from None

    def _single(self, name: str) -> str | None:
        values = self.headers.get_all(name, [])
        if len(values) > 1:
            raise _Refused(400, f"{name} came more than once")
        # White space around a value is no part of it.
        return values[0].strip(" \t") if values else None

    def _read_body(self) -> bytes:
        length = self._single("Content-Length")
        encoding = self._single("Transfer-Encoding")
        if encoding is not None:
            if length is not None or encoding.lower() != "chunked":
                raise _Refused(400, "the length of the body is not clear")
            return self._read_chunks()
        if length is None:
            return b""
        if not re.fullmatch("[0-9]{1,16}", length):
            raise _Refused(400, "the length of the body is not a number")
        return self._read_exactly(int(length), MAX_BODY)

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while size := self._read_chunk_size():
            body += self._read_exactly(size, MAX_BODY - len(body))
            if self.rfile.read(2) != b"\r\n":
                raise _Refused(400, "a chunk of the body is malformed")
        self._skip_trailers()
        return bytes(body)

    def _read_chunk_size(self) -> int:
        line = self.rfile.readline(MAX_CHUNK_LINE + 1)
        if len(line) > MAX_CHUNK_LINE:
            raise _Refused(400, "the line before a chunk is too long")
        size = _is_chunk_line(line)
        if not size:
            raise _Refused(400, "a chunk of the body is malformed")
        return int(size[1], 16)

    def _skip_trailers(self) -> None:
        for _ in range(MAX_TRAILERS + 1):
            line = self.rfile.readline(MAX_LINE + 1)
            if len(line) > MAX_LINE:
                raise _Refused(431, "a trailer is too long")
            if not _is_header(line):
                raise _Refused(400, "a trailer is malformed, or the last one is missing its end")
            if not line.strip(b"\r\n"):
                return
        raise _Refused(431, "there are too many trailers")

    def _read_exactly(self, size: int, limit: int) -> bytes:
        if size > limit:
            raise _Refused(413, "the body is too large")
        body = self.rfile.read(size)
        if len(body) < size:
            raise _Refused(400, "the body is shorter than announced")
        return body

    def _write(self, answer: Answer) -> None:
        with contextlib.ExitStack() as stack:
            if isinstance(answer.chunks, Generator):
                stack.callback(answer.chunks.close)  # at once, even if the client has gone away
            self._write_head(answer)
            if self.command != "HEAD" and answer.has_body:
                self._write_body(answer)

    def _write_head(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self._is_chunked(answer):
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.streamed:
            self.close_connection = True
        elif answer.has_body:
            self.send_header("Content-Length", str(sum(map(len, answer.chunks))))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _write_body(self, answer: Answer) -> None:
        chunked = self._is_chunked(answer)
        for chunk in answer.chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _is_chunked(self, answer: Answer) -> bool:
        return answer.streamed and self.request_version == "HTTP/1.1"
