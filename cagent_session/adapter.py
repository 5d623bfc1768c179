"""requests: the gate as a transport adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from requests.models import REDIRECT_STATI
from requests.sessions import SessionRedirectMixin
from requests.structures import CaseInsensitiveDict
from requests.utils import default_headers

from . import urls
from .gateway import Gateway, check_gateway, gate, without_identifiers
from .headers import by_lower_name

if TYPE_CHECKING:
    # To a type checker the mixin is the adapter that it is always mixed into.
    _Adapter = HTTPAdapter
else:
    _Adapter = object

_DEFAULT_ENCODING = default_headers()["Accept-Encoding"]
# Where User-Agent has been taken out, urllib3 puts its own default in.
_DEFAULT_AGENTS = (default_headers()["User-Agent"], None)
_redirects = SessionRedirectMixin()


class GatewayMixin(_Adapter):
    """What :class:`GatewayAdapter` does, for any other ``HTTPAdapter`` subclass.

    :param gateway: the gateway whose URLs are to be marked; see :class:`GatewayAdapter`.
    :param adapter_kwargs: what the class that it is mixed into takes.

    ::

        class CachedAdapter(GatewayMixin, CacheControlAdapter):
            pass

        http.mount("https://", CachedAdapter(gateway, cache=FileCache(".cache")))
    """

    def __init__(self, gateway: Gateway | None = None, **adapter_kwargs: Any) -> None:
        self.gateway = check_gateway(gateway)
        super().__init__(**adapter_kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state | {"gateway": self.gateway}

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Response:
        """Send ``request``, or a stamped copy of it if it is gateway-bound.

        The session is the one that is current in the calling thread, now.
        """
        headers = _headers_of(request)
        stamp = gate(request.url or "", headers, self.gateway, _DEFAULT_AGENTS)
        if stamp is None:
            return super().send(
                request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
            )
        url, stamped = stamp
        if stream and headers.get("accept-encoding", ("", ""))[1] == _DEFAULT_ENCODING:
            # A compressor holds server-sent events back until its block is full.
            stamped["accept-encoding"] = ("Accept-Encoding", "identity")
        outgoing = _Outgoing.of(request)
        outgoing.url = url
        outgoing.headers = _request_headers({**headers, **stamped})
        response = super().send(
            outgoing, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
        )
        if response.status_code in REDIRECT_STATI and _leaves_origin(url, response):
            outgoing.withdraw(self.gateway)
        return response


class GatewayAdapter(GatewayMixin, HTTPAdapter):
    """A transport adapter that says on every gateway-bound request which session sent it.

    :param gateway: requests to its URLs are marked as gateway-bound, and stamped with the
        session in scope. Without a gateway nothing is marked, and only those requests are
        stamped that carry the marker ``X-Cagent-Forward`` already.
    :param adapter_kwargs: what ``requests``' ``HTTPAdapter`` takes.

    All other requests leave as they would through ``HTTPAdapter``. The caller's request is
    never changed: ``response.request`` is the stamped copy that was sent. When the gateway
    redirects to another origin, the marker and the session stay behind. ::

        http = requests.Session()
        http.mount("https://", GatewayAdapter(gateway))     # or: gateway.mount(http)

        with session_scope("order-4711"):
            http.post(gateway.endpoint("v1/chat/completions"), json=prompt)
    """


class _Outgoing(PreparedRequest):
    """The copy of a request that is stamped and sent.

    It knows its ``source``, because that is what requests copies for the next hop, also after
    an authentication handler has copied this copy and sent the request again.
    """

    source: PreparedRequest

    @classmethod
    def of(cls, source: PreparedRequest) -> _Outgoing:
        # Everything is shared, as it would be without us, and the caller of this puts headers of
        # its own in. PreparedRequest.copy() copies the cookie jar, too, which takes longer than
        # all the rest.
        outgoing = cls.__new__(cls)
        vars(outgoing).update(vars(source))
        outgoing.source = source
        return outgoing

    def copy(self) -> PreparedRequest:
        copy = self.of(super().copy())
        copy.source = self.source
        return copy

    def __reduce__(self) -> Any:
        state = {name: value for name, value in vars(self).items() if name != "source"}
        return PreparedRequest, (), state

    def withdraw(self, gateway: Gateway | None) -> None:
        """Take the identifiers for ``gateway`` off the request of the caller."""
        source: PreparedRequest | None = self.source
        while source is not None:
            # Replaced, not changed: another thread may be reading them.
            kept = without_identifiers(source.headers.items(), gateway)
            source.headers = CaseInsensitiveDict(kept)
            source = getattr(source, "source", None)


def _headers_of(request: PreparedRequest) -> dict[str, tuple[str, Any]]:
    if isinstance(request.headers, CaseInsensitiveDict):
        # All that it has in public is slower than the rest of the gate.
        return request.headers._store
    return by_lower_name(request.headers.items())  # some other mapping, put there by the caller


def _request_headers(headers: dict[str, Any]) -> CaseInsensitiveDict[str | bytes]:
    made: CaseInsensitiveDict[str | bytes] = CaseInsensitiveDict.__new__(CaseInsensitiveDict)
    made._store = headers  # type: ignore[assignment]
    return made


def _leaves_origin(url: str, response: Response) -> bool:
    try:
        target = urljoin(url, _redirects.get_redirect_target(response) or "")
    except ValueError:
        return True  # a target that requests refuses, too
    return urls.leaves_origin(url, target)
