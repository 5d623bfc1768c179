"""docker-agent's protocol: the headers that make a request gateway-bound and say who sends it."""

from __future__ import annotations

import platform
import re
import sys

from .._version import __version__
from ..headers import FORWARD, MODEL, MODEL_NAME, PROVIDER
from . import urls
from .validation import check_value, plain_text


def goos(system: str) -> str:
    """Return Go's name for the operating system that Python calls ``system`` (``sys.platform``)."""
    if system in ("win32", "cygwin"):
        return "windows"
    if system == "sunos5":
        return "solaris"
    return system.rstrip("0123456789")  # freebsd14


def goarch(machine: str) -> str:
    """Return Go's name for the architecture that ``uname -m`` calls ``machine``."""
    machine = machine.lower()
    if re.fullmatch(r"i[3-6]86|x86", machine):
        return "386"
    if machine.startswith("armv"):
        return "arm"
    return {"x86_64": "amd64", "aarch64": "arm64", "loongarch64": "loong64"}.get(machine, machine)


OS = goos(sys.platform)
ARCH = goarch(platform.machine()) or "unknown"
USER_AGENT = f"cagent-session/{__version__} ({OS}; {ARCH})"
#: What the sender runs on. No session or parent header can have one of these names: PROTOCOL_NAMES
#: in validation.py lists them, too.
RUNTIME = {
    "X-Cagent-Lang": "python",
    "X-Cagent-OS": OS,
    "X-Cagent-Arch": ARCH,
    "X-Cagent-Runtime": "cagent-session",
    "X-Cagent-Runtime-Version": __version__,
}


def gateway_headers(
    forward: str,
    *,
    provider: str | None = None,
    model: str | None = None,
    model_name: str | None = None,
) -> dict[str, str]:
    """Return the headers that make a single request gateway-bound.

    For callers with several providers or models over one client, who pass them with each call. The
    session is not among them: the transport adds it. On a client that has a :class:`Gateway`, they
    win over its headers for this call; its ``provider``, ``model`` and ``model_name`` are still
    sent where these headers have none.

    :param forward: the provider's base URL, to which the gateway relays the request.
    :param provider: the provider's name. An empty one is left out of the headers, as are an empty
        ``model`` and ``model_name``.
    :param model: the model's ID.
    :param model_name: the model's name in the agent's configuration.
    :raises ValueError: for a ``forward`` that :class:`Gateway` would refuse, or a value that
        cannot be sent in a header.

    ::

        http.mount("https://gateway.example", GatewayAdapter())
        url = "https://gateway.example/v1/chat/completions"
        http.post(url, json=prompt, headers=gateway_headers("https://api.openai.com/v1"))
    """
    urls.check("forward URL", forward)
    headers = {FORWARD: plain_text(forward)}
    for what, name, value in (
        ("provider", PROVIDER, provider),
        ("model", MODEL, model),
        ("model_name", MODEL_NAME, model_name),
    ):
        if value is not None and check_value(what, value):
            headers[name] = plain_text(value)
    return headers | RUNTIME
