"""The gate under every client of this process, whoever made it.

The seams are those methods of the HTTP libraries through which each request of theirs goes out. A
seam is patched once and stays so: what it does, it reads from one variable at every request, so
that there is nothing to restore that another library may have wrapped in the meantime.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
import types
from collections.abc import Callable
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool

from .._gate import urls
from .._gate.gate import PassingOn, passing
from .._gate.gateway import Gateway
from .._gate.routes import Gateways
from . import requests as adapter
from . import urllib3 as poolmanager
from .guarded_headers import SentHeaders
from .httpx import Library, library_of

_IS_SEAM = "_cagent_session_seam"

_log = logging.getLogger("cagent_session")
_in_force: Gateways | None = None
_changing = threading.RLock()


def _renew_lock() -> None:
    global _changing
    _changing = threading.RLock()  # another thread may have held it when this process was forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Instrumentation:
    """What :func:`instrument` gives: a context manager that puts back what was in force before."""

    def __init__(self, before: Gateways | None) -> None:
        self._before = before

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        _put_in_force(self._before)


def instrument(*gateways: Gateway) -> Instrumentation:
    """Put the gate under every HTTP client of this process, made before or after, by whoever.

    Under requests, urllib3, httpx and httpx2, as far as they are installed: ``requests.get``, an
    SDK's own client, botocore. Each request is marked and stamped as a transport of this package
    would do it, for the gateway that owns its URL; what a mounted adapter or a transport of this
    package has decided stays.

    :param gateways: those to route to; the longest path wins. Called again, it replaces them.
        Without any it is the bare gate, which stamps what carries ``X-Cagent-Forward`` already.
    :returns: a context manager, for those who want an end: ``with instrument(gateway): ...`` puts
        back what was in force before.
    :raises ValueError: for two different gateways with one origin and path. Nothing has changed.

    ::

        instrument(Gateway("https://gateway.example", forward="https://api.openai.com/v1"))
        client = openai.OpenAI(base_url="https://gateway.example/v1")

    What never reaches the network is not reached: answers that test doubles make up, ASGI and WSGI
    transports. Nor are aiohttp, raw sockets and child processes.
    """
    wanted = Gateways(*gateways)
    with _changing:
        _patch(HTTPAdapter, "send", _requests_seam)
        _patch(HTTPConnectionPool, "urlopen", _urllib3_seam)
        for name in ("httpx", "httpx2"):
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            library = library_of(module)
            _patch(module.HTTPTransport, "handle_request", _httpx_seam, library)
            _patch(module.AsyncHTTPTransport, "handle_async_request", _async_httpx_seam, library)
        passing.is_watched = True
        return Instrumentation(_put_in_force(wanted))


def uninstrument() -> None:
    """Switch off what :func:`instrument` switched on, for the whole process."""
    _put_in_force(None)


def _put_in_force(gateways: Gateways | None) -> Gateways | None:
    global _in_force
    with _changing:
        before, _in_force = _in_force, gateways
    return before


def _patch(owner: Any, name: str, seam: Callable[..., Any], *arguments: Any) -> None:
    """Put ``seam`` in place of a method, below the wrappers that other libraries have put on it.

    On top of OpenTelemetry's, for example, it would keep that one from being taken off.
    """
    holder, attribute, method = owner, name, vars(owner)[name]
    if getattr(method, _IS_SEAM, False) is True:  # ours, or a wrapper that shows what it wraps
        return
    while type(method) is not types.FunctionType and hasattr(method, "__wrapped__"):
        holder, attribute, method = method, "__wrapped__", method.__wrapped__
    if getattr(method, "__globals__", None) is not owner.__init__.__globals__:
        _log.warning(
            "%s.%s is not the library's own, but %r: when that is taken back, instrument() has to "
            "be called again",
            owner.__name__,
            name,
            method,
        )
    if not hasattr(type(method), "__get__"):  # a mock, which is not called with self
        return
    patched = functools.wraps(method)(seam(method, *arguments))
    setattr(patched, _IS_SEAM, True)
    setattr(holder, attribute, patched)


def _requests_seam(original: Any) -> Any:
    def send(self: HTTPAdapter, request: Any, *args: Any, **options: Any) -> Any:
        # Bound, and not called with self: a wrapper of another library may tell by it.
        pass_on = original.__get__(self, type(self))
        gateways = _in_force
        if gateways is None:
            headers = request.headers
            if isinstance(headers, SentHeaders) and headers.are_of(request):
                # What the caller marked while the gate was here leaves as if it had never been.
                request.headers = headers.plain()
            return pass_on(request, *args, **options)
        if passing.has(request):
            with PassingOn(request):
                return pass_on(request, *args, **options)
        stream = args[0] if args else options.get("stream", False)
        outgoing = adapter.through_gate(gateways, request, stream)
        stamped: Any = outgoing.headers
        try:
            with PassingOn(outgoing):
                return pass_on(outgoing, *args, **options)
        finally:
            if outgoing is not request:
                adapter.was_sent(outgoing, stamped)

    return send


def _urllib3_seam(original: Any) -> Any:
    def urlopen(
        self: Any,
        method: str,
        url: str,
        body: Any = None,
        headers: Any = None,
        retries: Any = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        urlopen = original.__get__(self, type(self))
        gateways, request = _in_force, passing.request.get()
        if isinstance(request, PreparedRequest) and (
            headers is request.headers or _is_copied(request, self, method, url, body)
        ):
            # A transport above has decided, for this pool and its retries.
            with PassingOn(self):
                return poolmanager.pass_on(
                    urlopen, method, url, body, headers, retries, *args, **options
                )
        if not (gateways is None or request is self or isinstance(self, poolmanager.GatewayPool)):
            headers = self.headers if headers is None else headers
            url, headers = poolmanager.through_gate(gateways, self, url, headers, retries)
        return poolmanager.pass_on(urlopen, method, url, body, headers, retries, *args, **options)

    return urlopen


def _is_copied(request: PreparedRequest, pool: Any, method: str, target: str, body: Any) -> bool:
    """Whether a pool is called for ``request``, by somebody who has copied its headers."""
    return (
        body is request.body
        and method == request.method
        and target in (request.path_url, request.url)
        and urls.same_origin(poolmanager.full_url(pool, target), request.url or "")
    )


def _httpx_seam(original: Any, library: Library) -> Any:
    def handle_request(self: Any, request: Any) -> Any:
        pass_on = original.__get__(self, type(self))
        gateways = _in_force
        if gateways is None or passing.has(request) or not library.knows(request):
            return pass_on(request)
        outgoing, names = library.through_gate(gateways, request)
        with PassingOn(outgoing):
            response = pass_on(outgoing)
        return response if names is None else library.answered(request, response, names)

    return handle_request


def _async_httpx_seam(original: Any, library: Library) -> Any:
    async def handle_async_request(self: Any, request: Any) -> Any:
        pass_on = original.__get__(self, type(self))
        gateways = _in_force
        if gateways is None or passing.has(request) or not library.knows(request):
            return await pass_on(request)
        outgoing, names = library.through_gate(gateways, request)
        with PassingOn(outgoing):
            response = await pass_on(outgoing)
        return response if names is None else library.answered(request, response, names)

    return handle_async_request
