"""The gate under every HTTP client of this process.

Each library is patched at the lowest method that all its requests pass through, below the wrappers
of other libraries. A patch is never removed; it consults ``_switch`` at each call.
"""

from __future__ import annotations

import functools
import logging
import sys
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import requests  # not a module in it: two threads would wait for each other to import that
import urllib3

from .._gate.gateway import Gateway
from .._gate.routes import Router
from .._patching import Switch, patch, patch_on
from . import requests as for_requests
from . import urllib3 as for_urllib3
from .guarded_headers import GuardedHeaders
from .httpx import Httpx, gate_for
from .late_imports import when_imported

_log = logging.getLogger("cagent_session")
_warn_once = functools.cache(_log.warning)  # for each message and its arguments
_switch = Switch(off=None)  # its values are routers


def instrument(*gateways: Gateway | None) -> AbstractContextManager[object]:
    """Put the gate under every HTTP client of this process, made before or after the call.

    It covers requests, urllib3, httpx, httpx2 and aiohttp, including clients that an SDK or a
    framework makes: ``requests.get``, botocore, litellm. Each request is treated as a transport of
    this package would treat it, for the gateway that owns its URL. A request that a mounted adapter
    or a transport of this package has stamped is sent as it is.

    :param gateways: the gateways to route to; the one with the longest path wins. They replace
        those of an earlier call. With none, only requests that already carry the header
        ``X-Cagent-Forward`` are gateway-bound. ``None``, as :meth:`Gateway.from_env` returns where
        the environment names no gateway, counts as none.
    :returns: a context manager that restores at its end what was in force before the call:
        ``with instrument(gateway): ...``. Ignore it to keep the gateways for the whole process.
        Entered again, it puts its gateways in force again. Such a block is for the whole process:
        while two threads or tasks have one each, the gateways of the later one count for both.
    :raises ValueError: for two different gateways with one origin and path. Nothing is changed
        then. For several providers at one address, call ``instrument()`` without gateways, and
        give each call ``headers=gateway_headers(...)``.
    :raises TypeError: for anything but gateways and ``None``.

    ::

        instrument(Gateway("https://gateway.example", forward="https://api.openai.com/v1"))
        client = openai.OpenAI(base_url="https://gateway.example/v1")

    It does not reach test doubles, ASGI, WSGI and custom transports, unix sockets, other websocket
    clients, child processes and other interpreters.
    """
    wanted = Router(*gateways)
    by = "instrument()"
    patch(requests.adapters, "HTTPAdapter.send", _requests_patch, by=by)
    patch(urllib3, "HTTPConnectionPool.urlopen", _pool_patch, by=by)
    patch(urllib3, "PoolManager.urlopen", _manager_patch, by=by)
    patch(urllib3, "ProxyManager.urlopen", _manager_patch, by=by)
    when_imported("httpx", _patch_httpx)
    when_imported("httpx2", _patch_httpx)
    when_imported("aiohttp", _patch_aiohttp)
    return _switch.put(wanted)


def uninstrument() -> None:
    """Switch off what :func:`instrument` switched on, for the whole process.

    A call of aiohttp that is under way keeps its gateways to its end, redirects included.
    """
    _switch.put_for_good(None)


# Each patch below binds the original to self, and does not pass self as an argument. The original
# may be a wrapper of another library, which recognizes the call of a method by that.


def _requests_patch(original: Any) -> Any:
    # The parameters are those of HTTPAdapter.send, to be given by position or by name.
    def send(
        self: requests.adapters.HTTPAdapter,
        request: Any,
        stream: Any = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Any:
        pass_on = original.__get__(self, type(self))
        options = {
            "stream": stream,
            "timeout": timeout,
            "verify": verify,
            "cert": cert,
            "proxies": proxies,
        }
        router = _switch.last.value
        if router is not None:
            return for_requests.send(router, pass_on, request, options, by_instrument=True)
        headers = request.headers
        if (
            isinstance(headers, GuardedHeaders)
            and headers.by_instrument
            and headers.are_callers_own(request)
        ):
            # They were guarded before uninstrument(). urllib3 sends a copy, which would lack the
            # caller's identifiers.
            request.headers = headers.plain()
        return pass_on(request, **options)

    return send


def _pool_patch(original: Any) -> Any:
    def urlopen(self: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
        pass_on = original.__get__(self, type(self))
        router, base = _switch.last.value, for_urllib3.base_of(self)
        if router is None:
            return for_urllib3.send_switched_off(self, base, pass_on, method, url, args, options)
        # "patch" is the layer of a Passage; that of a GatewayPool is "pool".
        return for_urllib3.send(router, self, base, pass_on, "patch", method, url, args, options)

    return urlopen


def _manager_patch(original: Any) -> Any:
    def urlopen(self: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
        router = _switch.last.value
        if router is not None:
            given = options.get("headers", self.headers)
            headers = for_urllib3.with_homes(router, url, given)
            if headers is not None:
                options["headers"] = headers
        return original.__get__(self, type(self))(method, url, *args, **options)

    return urlopen


def _patch_httpx(module: ModuleType) -> None:
    """Patch httpx or httpx2: its transports, and its asynchronous client."""
    gate, by = gate_for(module), "instrument()"
    patch(module, "HTTPTransport.handle_request", _transport_patch, gate, by=by)
    patch(module, "AsyncHTTPTransport.handle_async_request", _async_patch, gate, by=by)
    if hasattr(module.AsyncClient, "_send_single_request"):
        patch(module, "AsyncClient._send_single_request", _client_patch, gate, by=by)
    else:
        _warn_once(
            "instrument() cannot keep identifiers that you set from following a redirect of "
            "this %s over aiohttp",
            module.__name__,
        )
    # Where these are defined, because a test may have put a mock in the place of httpx.Client.
    clients = getattr(module, "_client", module)
    for kind, path, make_patch in (
        ("Client", "HTTPTransport.handle_request", _transport_patch),
        ("AsyncClient", "AsyncHTTPTransport.handle_async_request", _async_patch),
    ):
        choice = f"{kind}._transport_for_url"
        patch(clients, choice, _choice_patch, module, path, make_patch, gate)


def _transport_patch(original: Any, gate: Httpx) -> Any:
    def handle_request(self: Any, request: Any) -> Any:
        pass_on, router = original.__get__(self, type(self)), _switch.last.value
        if router is None or not gate.knows(request) or _is_unix_socket(self):
            return pass_on(request)
        return gate.send(router, request, pass_on, by_instrument=True)

    return handle_request


def _async_patch(original: Any, gate: Httpx) -> Any:
    async def handle_async_request(self: Any, request: Any) -> Any:
        pass_on, router = original.__get__(self, type(self)), _switch.last.value
        if router is None or not gate.knows(request) or _is_unix_socket(self):
            return await pass_on(request)
        return await gate.send_async(router, request, pass_on, by_instrument=True)

    return handle_async_request


def _choice_patch(original: Any, module: Any, path: str, make_patch: Any, gate: Httpx) -> Any:
    def _transport_for_url(self: Any, url: Any) -> Any:
        transport = original.__get__(self, type(self))(url)
        if _switch.last.value is not None:
            # instrument_client() of OpenTelemetry puts its wrapper on the transport of one client.
            patch_on(transport, module, path, make_patch, gate)
        return transport

    return _transport_for_url


def _is_unix_socket(transport: Any) -> bool:
    """Return whether an httpx transport sends to a unix socket, whatever host its URLs name."""
    return getattr(getattr(transport, "_pool", None), "_uds", None) is not None


def _client_patch(original: Any, gate: Httpx) -> Any:
    async def _send_single_request(self: Any, request: Any) -> Any:
        pass_on, router = original.__get__(self, type(self)), _switch.last.value
        if router is None:
            return await pass_on(request)
        gate.check_home(request)
        response = await pass_on(request)
        transport = self._transport_for_url(request.url)
        if type(transport) is not gate.module.AsyncHTTPTransport and not _is_unix_socket(transport):
            # httpx follows redirects above aiohttp. The patch of aiohttp sees each hop as a call of
            # its own, and cannot know which identifiers the caller had set for an earlier hop.
            gate.take_off_after_aiohttp(router, request, response)
        return response

    return _send_single_request


def _patch_aiohttp(module: ModuleType) -> None:
    if not hasattr(module, "ClientMiddlewareType"):
        _warn_once(
            "instrument() cannot reach aiohttp %s, which has no client middlewares: "
            "pip install 'aiohttp>=3.12'",
            module.__version__,
        )
        return
    from .aiohttp import Hops

    patch(module, "ClientSession._request", _aiohttp_patch, module, Hops, by="instrument()")


def _aiohttp_patch(original: Any, aiohttp: Any, hops: Any) -> Any:
    async def _request(
        self: Any,
        method: Any,
        str_or_url: Any,
        *,
        headers: Any = None,
        middlewares: Any = None,
        **options: Any,
    ) -> Any:
        pass_on, router = original.__get__(self, type(self)), _switch.last.value
        httpx = _httpx_of(headers)
        gate = None if httpx is None else gate_for(httpx)
        if (
            router is None
            or isinstance(self.connector, aiohttp.UnixConnector | aiohttp.NamedPipeConnector)
            or (gate is not None and gate.has_passed(router, headers, method, str_or_url))
        ):
            return await pass_on(
                method, str_or_url, headers=headers, middlewares=middlewares, **options
            )
        # Innermost: middlewares above it may send a request again, or another request.
        above = self._middlewares if middlewares is None else middlewares
        this_call = hops(router)
        if gate is not None:
            this_call.use_defaults_of(gate)
            headers = gate.less_stamp_of_another(router, headers, method, str_or_url)
        return await pass_on(
            method, str_or_url, headers=headers, middlewares=(*(above or ()), this_call), **options
        )

    return _request


def _httpx_of(headers: Any) -> ModuleType | None:
    """Return httpx or httpx2 if ``headers`` are its, so that it sends this call over aiohttp."""
    for name in ("httpx", "httpx2"):
        module = sys.modules.get(name)
        kind = getattr(module, "Headers", None)  # it may be being imported
        if isinstance(kind, type) and isinstance(headers, kind):
            return module
    return None
