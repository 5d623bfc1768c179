"""``cagent-session probe``: send one real request through a gateway, and report."""

from __future__ import annotations

import base64
import logging
import re
import threading
import uuid
from collections.abc import Iterable, Iterator
from urllib.parse import urljoin

import requests
from requests.utils import get_auth_from_url, get_environ_proxies
from urllib3.exceptions import IncompleteRead

from .. import Gateway, session_scope
from .._gate.urls import masked, origin_of, redacted
from ..headers import FORWARD
from .console import fail, printable, show
from .masking import Secrets, decoded_of_basic, readings_of, values_in_queries, words_of

TIMEOUT = 30  # seconds, for all of it
SHOWN_BODY = 8192  # bytes
SHOWN_LINE = 8192  # characters of anything else

_HOW_TO_PASS_A_KEY = (
    "with --header-env Authorization=VARIABLE, an environment variable that holds the header's "
    "whole value, such as 'Bearer ...'"
)
# What OpenSSL, older and newer, calls an answer without TLS.
_WITHOUT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")

_UNSEEN = logging.NullHandler()

_has_secret_value = re.compile(r"auth|cookie|key|secret|token", re.IGNORECASE).search
_HAVE_URLS = {"location", "content-location", "link", "refresh", FORWARD.lower()}


def main(
    gateway: Gateway,
    *,
    session_id: str | None,
    parent_id: str | None,
    headers: dict[str, str],
) -> int:
    """Send the request, print what was sent and what came back; return the exit status."""
    # The report has what the log says. Without a handler, logging would print warnings to stderr.
    logging.getLogger("cagent_session").addHandler(_UNSEEN)
    exchange = _Exchange(gateway, session_id or str(uuid.uuid4()), parent_id, headers)
    exchange.wait()
    response, problem = exchange.response, exchange.problem
    if response is None:
        return fail(f"no answer from {masked(gateway.url)}: {problem}")
    report = _Report(exchange, response)
    could_not_write = show("\n".join([*report.lines(), ""]))
    if could_not_write:
        return could_not_write
    if response.status_code in (401, 403):
        advice = "pass a key"
        if "Authorization" in response.request.headers:
            advice = "it refused the Authorization that was given: pass another"
        return fail(f"the gateway answered {report.status}; {advice} {_HOW_TO_PASS_A_KEY}")
    if not response.ok:
        return fail(f"the gateway answered {report.status}")
    return fail(f"the answer is not complete: {problem}") if problem else 0


class _OneRequest(requests.Session):
    """A ``requests.Session`` that ignores redirects: it would read the whole body of one."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _Exchange:
    """One request and as much of its answer as came in time."""

    def __init__(
        self, gateway: Gateway, session_id: str, parent_id: str | None, headers: dict[str, str]
    ) -> None:
        self.gateway = gateway
        self.session_id = session_id
        self.parent_id = parent_id
        self.headers = headers
        self.response: requests.Response | None = None
        self.body: bytes = b""
        self.problem: str | None = None
        self._failure: BaseException | None = None

    def wait(self) -> None:
        """Send the request, and read its answer."""
        # In a thread, because the timeouts of a socket cover neither a slow name server nor a
        # server that sends a byte a second.
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        thread.join(TIMEOUT)
        if thread.is_alive():
            self.problem = f"timed out after {TIMEOUT} s"
        elif isinstance(self._failure, Exception):
            # A proxy may repeat in its refusal what it was given.
            self.problem = self.secrets().masked(_reason(self._failure))
        elif self._failure is not None:
            raise self._failure

    def secrets(self, sent: Iterable[str] = ()) -> Secrets:
        """Return what must not be shown.

        :param sent: further secret values, those that were sent.
        """
        values = [*self.headers.values(), *sent]
        values += [decoded for value in values for decoded in decoded_of_basic(value)]
        values += _credentials_of_proxies(self.gateway.url)
        queries = values_in_queries(filter(None, [self.gateway.url, self.gateway.forward]))
        ids = filter(None, [self.session_id, self.parent_id])
        return Secrets(words_of([*values, *queries]) - set().union(*map(readings_of, ids)))

    def _run(self) -> None:
        try:
            with _OneRequest() as http, self._scope():
                self.gateway.mount(http)
                url = self.gateway.url
                request = http.prepare_request(requests.Request("GET", url, self.headers))
                settings = http.merge_environment_settings(url, {}, True, None, None)
                with http.send(
                    request, timeout=TIMEOUT, allow_redirects=False, **settings
                ) as response:
                    self.response = response
                    # Byte by byte, so that all that came is in the report when time is up.
                    for byte in response.iter_content(1):
                        self.body += byte
                        if len(self.body) > SHOWN_BODY:
                            break
                    else:
                        missing = response.raw.length_remaining
                        if missing:  # urllib3 1.26 does not raise this itself
                            raise IncompleteRead(len(self.body), missing)
        except BaseException as failure:
            self._failure = failure

    def _scope(self) -> session_scope:
        if self.parent_id is None:
            return session_scope(self.session_id)
        return session_scope(self.session_id, parent=self.parent_id)


class _Report:
    """The exchange as a person gets to see it.

    Values that were given in a header or a query are masked wherever they turn up, unless they
    are too short to be told from ordinary words.
    """

    def __init__(self, exchange: _Exchange, response: requests.Response) -> None:
        gateway = exchange.gateway
        self._exchange = exchange
        self._response = response
        self._sent = {
            name: value if isinstance(value, str) else value.decode("latin-1")
            for name, value in response.request.headers.items()
        }
        self._given = {name.lower(): value for name, value in exchange.headers.items()}
        self._is_stamped = (
            response.request.headers.get(FORWARD) != ""
            and response.request.headers.get(gateway.session_header) == exchange.session_id
        )
        ids = {
            exchange.session_id: gateway.session_header,
            exchange.parent_id: gateway.parent_header,
        }
        self._ids = {
            name.lower(): value for value, name in ids.items() if value is not None and name
        }
        self._secrets = exchange.secrets(filter(None, map(self._secret_value, self._sent)))
        self.status: str = self._shown(f"{response.status_code} {response.reason or ''}".strip())

    def lines(self) -> Iterator[str]:
        """Yield the lines about the request and the answer, and a last one with the outcome."""
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
        yield from self._notes()
        yield f"{self._stamping()}; {self._answering()}"

    def _secret_value(self, name: str) -> str | None:
        return self._sent[name] if _has_secret_value(name) else None

    def _header(self, name: str, value: str, was_given: bool) -> str:
        if self._is_stamped and self._ids.get(name.lower()) == value:
            return f"{name}: {value}"
        if value and (was_given or _has_secret_value(name)):
            value = "***"
        elif name.lower() in _HAVE_URLS:
            # A secret may have what the URL is cut at, so it is masked first.
            value = re.sub("//[^/?#]*@", "//***@", self._masked(value))
            value = re.sub(r"[?#].*", "?...", value)
        return self._shown(f"{name}: {value}")

    def _shown(self, text: str) -> str:
        shown = printable(self._masked(text))
        is_cut = len(text) > SHOWN_LINE
        return f"{shown} (cut off after {SHOWN_LINE} characters)" if is_cut else shown

    def _masked(self, text: str) -> str:
        return self._secrets.masked(text[:SHOWN_LINE], is_cut=len(text) > SHOWN_LINE)

    def _shown_body(self, body: bytes) -> str:
        is_cut = len(body) > SHOWN_BODY
        text = self._secrets.masked(
            _decoded(body, self._response.encoding), is_cut=is_cut or bool(self._exchange.problem)
        )
        shown = "\n".join(map(printable, re.split("\r?\n", text)))[:SHOWN_BODY]
        return f"{shown}\n(cut off after {SHOWN_BODY} bytes)" if is_cut else shown

    def _notes(self) -> Iterator[str]:
        """Yield a line for each header of the session that was not sent as given."""
        gateway = self._exchange.gateway
        options = {gateway.session_header: "--session-id", gateway.parent_header: "--parent-id"}
        for name, option in options.items():
            if name is None or not self._is_stamped:
                continue
            sent = self._response.request.headers.get(name)
            if self._given.get(name.lower(), sent) != sent:
                yield f"(the {name} that was given was not sent: {option} sets it)"
            elif sent is None:
                yield f"(no {name} was sent: {option} sets it)"

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
            target = _target(self._response.url, self._masked(location))
            said += f", which leads to {self._shown(target)} and was not followed"
            there = origin_of(target)
            if there is not None and there != origin_of(self._response.url):
                said += ": if the gateway listens there, write that URL"
        if self._exchange.problem:
            said += f", but not completely: {self._exchange.problem}"
        return said


def _credentials_of_proxies(url: str) -> Iterator[str]:
    """Yield what a proxy gets that the environment names for ``url``, plain and as it is sent."""
    for proxy in get_environ_proxies(url).values():
        try:
            plain = ":".join(get_auth_from_url(proxy))
        except ValueError:  # a malformed one, which is not asked
            continue
        yield plain
        yield base64.b64encode(plain.encode("latin-1", "replace")).decode()


def _decoded(body: bytes, encoding: str | None) -> str:
    try:
        return body.decode(encoding or "utf-8", "replace")
    except (LookupError, ValueError):  # the server may name any encoding
        return body.decode("utf-8", "replace")


def _target(url: str, location: str) -> str:
    try:
        return redacted(urljoin(url, location))
    except ValueError:
        return redacted("")


def _reason(failure: BaseException) -> str:
    """Return the innermost cause: the outer ones are long, and show the whole URL."""
    if isinstance(failure, requests.Timeout):
        return f"timed out after {TIMEOUT} s"
    where = "by the proxy: " if isinstance(failure, requests.exceptions.ProxyError) else ""
    cause = failure
    # urllib3 1.26 first tries an argument that http.client does not take.
    while cause.__context__ is not None and not isinstance(cause.__context__, TypeError):
        cause = cause.__context__
    if type(cause) is OSError and not cause.strerror:
        return where + printable(str(cause))  # from requests: a missing certificate file
    strerror = getattr(cause, "strerror", None)
    if strerror:
        is_plain = getattr(cause, "reason", None) in _WITHOUT_TLS
        return f"{where}{strerror}{'; does it speak http:// ?' if is_plain else ''}"
    return ", ".join(dict.fromkeys([type(failure).__name__, type(cause).__name__]))
