"""The gate as a transport, for httpx and for httpx2, its successor with the same interface.

What the two libraries' modules share; each adds its own base classes and types.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .. import urls
from ..gateway import Gateway, check_gateway, gate, without_identifiers
from ..headers import by_lower_name, lower


class Shell:
    """Stamps requests on their way to another transport, and looks at what comes back."""

    library: ModuleType
    response_class: type[Any]

    def __init__(self, gateway: Gateway | None, transport: Any) -> None:
        self.gateway = check_gateway(gateway)
        self._transport = transport
        agent = f"python-{self.library.__name__}/{self.library.__version__}"
        self._default_agents = (agent.encode(),)

    def _stamped(self, request: Any) -> Any:
        """The request to send in place of ``request``, or ``None`` if that is to go itself."""
        if not isinstance(request, self.library.Request):
            raise TypeError(
                f"this transport is for clients of {self.library.__name__}, not of "
                f"{type(request).__module__.partition('.')[0]}"
            )
        url = str(request.url)
        raw = request.headers.raw
        stamp = gate(url, by_lower_name(raw), self.gateway, self._default_agents)
        if stamp is None:
            return None
        stamped_url, stamped = stamp
        # All but the headers and the URL is shared: a body that streams can be read only once.
        outgoing = object.__new__(type(request))
        vars(outgoing).update(vars(request))
        kept = [item for item in raw if lower(item[0]) not in stamped]
        outgoing.headers = self.library.Headers(
            [*kept, *stamped.values()], request.headers.encoding
        )
        if stamped_url != url:
            outgoing.url = self.library.URL(stamped_url)
        return outgoing

    def _answered(self, response: Any, outgoing: Any, request: Any) -> Any:
        """``response``, which came for ``outgoing``, which was sent in place of ``request``."""
        if response.has_redirect_location and self._leaves_origin(outgoing, response):
            # The client builds the next hop from the caller's request. Its headers are replaced,
            # not changed, as another task may be reading them.
            kept = without_identifiers(request.headers.raw, self.gateway)
            request.headers = self.library.Headers(kept, request.headers.encoding)
        response.request = outgoing
        if type(response) is self.library.Response:
            response.__class__ = self.response_class
        return response

    def _leaves_origin(self, outgoing: Any, response: Any) -> bool:
        try:
            target = outgoing.url.join(response.headers["Location"])
        except (self.library.InvalidURL, ValueError):
            return True  # a target that the client refuses, too
        return urls.leaves_origin(str(outgoing.url), str(target))


class SyncShell(Shell):
    """The blocking half."""

    def handle_request(self, request: Any) -> Any:
        """Send ``request``, or a stamped copy of it if it is gateway-bound."""
        outgoing = self._stamped(request)
        if outgoing is None:
            return self._transport.handle_request(request)
        return self._answered(self._transport.handle_request(outgoing), outgoing, request)

    def __enter__(self) -> Any:
        self._transport.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._transport.__exit__(*exc_info)

    def close(self) -> None:
        """Close the transport that sends."""
        self._transport.close()


class AsyncShell(Shell):
    """The asynchronous half."""

    async def handle_async_request(self, request: Any) -> Any:
        """Send ``request``, or a stamped copy of it if it is gateway-bound."""
        outgoing = self._stamped(request)
        if outgoing is None:
            return await self._transport.handle_async_request(request)
        response = await self._transport.handle_async_request(outgoing)
        return self._answered(response, outgoing, request)

    async def __aenter__(self) -> Any:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._transport.__aexit__(*exc_info)

    async def aclose(self) -> None:
        """Close the transport that sends."""
        await self._transport.aclose()


class KeepsRequest:
    """A response that keeps the request that was sent, where the client would put the caller's."""

    _request: Any

    @property
    def request(self) -> Any:
        """The request that really went out, stamped headers included."""
        return self._request

    @request.setter
    def request(self, value: Any) -> None:
        pass
