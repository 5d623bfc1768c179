"""``cagent-session probe``: one real request through a gateway, and what came of it."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl, quote, urljoin

import requests
from urllib3.exceptions import IncompleteRead

from .. import Gateway, session_scope
from .._gate.urls import bare, masked
from ..headers import FORWARD, SESSION_ID
from .console import fail, printable, show

TIMEOUT = 30  # seconds, for all of it
SHOWN_BODY = 8192  # bytes
SECRET = 6  # characters

_has_secret_value = re.compile(r"auth|cookie|key|secret|token", re.IGNORECASE).search
_HAVE_URLS = {"location", "content-location", "link", "refresh", FORWARD.lower()}


def main(url: str, forward: str, session_id: str | None, headers: list[tuple[str, str]]) -> int:
    """Send the request, print what went out and what came back; gives back the exit status."""
    exchange = _Exchange(url, forward, session_id or str(uuid.uuid4()), dict(headers))
    exchange.wait()
    response, problem = exchange.response, exchange.problem
    if response is None:
        return fail(f"no answer from {masked(url)}: {problem}")
    report = _Report(exchange, response, [url, forward])
    could_not_write = show("\n".join([*report.lines(), ""]))
    if could_not_write:
        return could_not_write
    if not response.ok:
        return fail(f"the gateway answered {report.status}")
    return fail(f"the answer is not complete: {problem}") if problem else 0


class _OneRequest(requests.Session):
    """A session that leaves redirects alone: requests reads the whole body of one otherwise."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _Exchange:
    """One request and its answer, as far as that came in time."""

    def __init__(self, url: str, forward: str, session_id: str, headers: dict[str, str]) -> None:
        self.session_id = session_id
        self.headers = headers
        self.response: requests.Response | None = None
        self.body: bytes = b""
        self.problem: str | None = None
        self._gateway = Gateway(url, forward=forward)
        self._failure: BaseException | None = None

    def wait(self) -> None:
        """Send the request, and read its answer."""
        # In a thread of its own, as the timeouts of sockets know nothing of a slow name server,
        # nor of a server that sends a byte a second.
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        thread.join(TIMEOUT)
        if thread.is_alive():
            self.problem = f"timed out after {TIMEOUT} s"
        elif isinstance(self._failure, Exception):
            self.problem = _reason(self._failure)
        elif self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with _OneRequest() as http, session_scope(self.session_id):
                self._gateway.mount(http)
                url = self._gateway.url
                request = http.prepare_request(requests.Request("GET", url, self.headers))
                settings = http.merge_environment_settings(url, {}, True, None, None)
                with http.send(
                    request, timeout=TIMEOUT, allow_redirects=False, **settings
                ) as response:
                    self.response = response
                    # Byte by byte, so that what has come is here when the time is over.
                    for byte in response.iter_content(1):
                        self.body += byte
                        if len(self.body) > SHOWN_BODY:
                            break
                    else:
                        missing = response.raw.length_remaining
                        if missing:  # urllib3 1.26 says nothing of its own
                            raise IncompleteRead(len(self.body), missing)
        except BaseException as failure:
            self._failure = failure


class _Report:
    """What a person gets to see of an exchange.

    Not shown, wherever it turns up, is what was given in a header or a query, if it is long
    enough: something shorter would be in the middle of other words.
    """

    def __init__(
        self, exchange: _Exchange, response: requests.Response, urls: Iterable[str]
    ) -> None:
        self._exchange = exchange
        self._response = response
        self._sent = {
            name: value if isinstance(value, str) else value.decode("latin-1")
            for name, value in response.request.headers.items()
        }
        self._given = {name.lower(): value for name, value in exchange.headers.items()}
        self._is_stamped = (
            response.request.headers.get(FORWARD) != ""
            and response.request.headers.get(SESSION_ID) == exchange.session_id
        )
        values = [*self._given.values(), *filter(None, map(self._secret_value, self._sent))]
        words = _spellings([*values, *_in_queries(urls)]) - {exchange.session_id}
        self._secrets = sorted(words, key=len, reverse=True)
        self.status: str = self._shown(f"{response.status_code} {response.reason or ''}".strip())

    def lines(self) -> Iterator[str]:
        """The request, the answer, and what is to be said about them."""
        request = self._response.request
        yield f"> {request.method} {self._shown(masked(str(request.url)))}"
        for name, value in self._sent.items():
            was_given = self._given.get(name.lower()) == value
            yield f"> {self._header(name, value, was_given)}"
        yield ">"
        yield f"< {self.status}"
        for name, value in self._response.headers.items():
            yield f"< {self._header(name, value, was_given=False)}"
        yield "<"
        yield self._shown_body(self._exchange.body)
        yield f"{self._stamping()}; {self._answering()}"

    def _secret_value(self, name: str) -> str | None:
        return self._sent[name] if _has_secret_value(name) else None

    def _header(self, name: str, value: str, was_given: bool) -> str:
        if name.lower() == SESSION_ID.lower() and self._is_stamped:
            return f"{name}: {value}"
        if value and (was_given or _has_secret_value(name)):
            value = "***"
        elif name.lower() in _HAVE_URLS:
            value = re.sub(r"[?#].*", "?...", re.sub("//[^/?#]*@", "//***@", value))
        return self._shown(f"{name}: {value}")

    def _shown(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return printable(text)

    def _shown_body(self, body: bytes) -> str:
        text = _decoded(body, self._response.encoding)
        is_cut = len(body) > SHOWN_BODY
        if is_cut or self._exchange.problem:
            # What is at the end may be the beginning of a secret.
            ends = (secret[:n] for secret in self._secrets for n in range(1, len(secret)))
            text = text.removesuffix(max(filter(text.endswith, ends), key=len, default=""))
        shown = "\n".join(map(self._shown, re.split("\r?\n", text)))[:SHOWN_BODY]
        return f"{shown}\n(cut off after {SHOWN_BODY} bytes)" if is_cut else shown

    def _stamping(self) -> str:
        if self._is_stamped:
            return f"stamped with session {self._exchange.session_id}"
        if self._sent.get(FORWARD) == "":
            return f"not stamped, as an empty {FORWARD} opts out of it"
        return "not stamped"

    def _answering(self) -> str:
        said = f"answered {self.status}"
        location = self._response.headers.get("Location")
        if location is not None and 300 <= self._response.status_code < 400:
            said += f", which leads to {self._shown(_target(self._response.url, location))}"
            said += " and was not followed"
        if self._exchange.problem:
            said += f", but not completely: {self._exchange.problem}"
        return said


def _in_queries(urls: Iterable[str]) -> Iterator[str]:
    for url in urls:
        query = url.partition("?")[2]
        yield from re.split("[&=]", query)
        yield from (value for _, value in parse_qsl(query))


def _spellings(values: Iterable[str]) -> set[str]:
    """The words of some values, as they are, and as URLs and JSON spell them."""
    words = {word for value in values for word in [value, *value.split()] if len(word) >= SECRET}
    return {
        spelling
        for word in words
        for spelling in (word, quote(word, safe=""), json.dumps(word)[1:-1])
    }


def _decoded(body: bytes, encoding: str | None) -> str:
    try:
        return body.decode(encoding or "utf-8", "replace")
    except (LookupError, ValueError):  # the server chose it
        return body.decode("utf-8", "replace")


def _target(url: str, location: str) -> str:
    try:
        return bare(urljoin(url, location))
    except ValueError:
        return bare("")


def _reason(failure: BaseException) -> str:
    """The innermost cause: the outer ones are long, and show the whole URL."""
    if isinstance(failure, requests.Timeout):
        return f"timed out after {TIMEOUT} s"
    where = "by the proxy: " if isinstance(failure, requests.exceptions.ProxyError) else ""
    cause = failure
    # urllib3 1.26 first tries an argument that http.client does not have.
    while cause.__context__ is not None and not isinstance(cause.__context__, TypeError):
        cause = cause.__context__
    if type(cause) is OSError and not cause.strerror:
        return where + printable(str(cause))  # requests misses a file of certificates
    strerror = getattr(cause, "strerror", None)
    if strerror:
        return f"{where}{strerror}"
    return ", ".join(dict.fromkeys([type(failure).__name__, type(cause).__name__]))
