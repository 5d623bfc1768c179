"""instrument() and carry_session() where other code has replaced a library's class or __init__."""

from __future__ import annotations

import subprocess
import sys

import pytest

PREPARE = """
import asyncio, functools, logging, sys, warnings
logging.basicConfig(stream=sys.stdout)
logging.getLogger("asyncio").disabled = True  # it reports slow steps, if asked to debug
warnings.simplefilter("ignore")  # aiohttp's, of a subclass
"""
# A subclass in the library's place, one without a method of its own, and an __init__ that is no
# function.
REPLACED = {
    "subclass": """
class Replaced({original}):
    {define} {method}(self, *args, **options):
        return {wait}super().{method}(*args, **options)
{original} = Replaced
""",
    "empty subclass": """
class Replaced({original}):
    pass
{original} = Replaced
""",
    "partial __init__": """
{original}.__init__ = functools.partialmethod({original}.__init__, **{options})
""",
    # openai does that to classes of httpx that it exports.
    "base of another module": """
for base in {original}.__mro__[1:-1]:
    base.__module__ = "another"
""",
    "of another module": """
{original}.__module__ = "another"
""",
    "wrapped __init__": """
plain = {original}.__init__
{original}.__init__ = functools.wraps(plain)(lambda self, *a, **o: plain(self, *a, **o))
""",
}
LIBRARIES = {
    "requests": ("requests.adapters.HTTPAdapter", "send", {"max_retries": 1}),
    "urllib3": ("urllib3.PoolManager", "urlopen", {"num_pools": 1}),
    "httpx": ("httpx.HTTPTransport", "handle_request", {"retries": 1}),
    "httpx's client": ("httpx.AsyncClient", "_send_single_request", {"follow_redirects": True}),
    "aiohttp": ("aiohttp.ClientSession", "_request", {"trust_env": True}),
}
GET = {
    "requests": "requests.get(url, timeout=10)",
    "urllib3": "urllib3.PoolManager().request('GET', url)",
    "httpx": "httpx.get(url); httpx.Client(transport=httpx.HTTPTransport()).get(url)",
    "httpx's client": """
    async def main():
        async with httpx.AsyncClient() as http:
            await http.get(url)
    asyncio.run(main())
""",
    "aiohttp": """
    async def main():
        async with aiohttp.ClientSession() as http:
            (await http.get(url)).close()
    asyncio.run(main())
""",
}


def run(code: str) -> list[str]:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("replaced", REPLACED)
def test_requests_are_stamped_without_a_warning(library: str, replaced: str):
    original, method, options = LIBRARIES[library]
    is_async = library in ("httpx's client", "aiohttp")
    define, wait = ("async def", "await ") if is_async else ("def", "")
    replace = REPLACED[replaced].format(
        original=original, method=method, options=options, define=define, wait=wait
    )
    code = f"""{PREPARE}
import {original.rpartition(".")[0]}
{replace}
from cagent_session import Gateway, instrument, session_scope
from cagent_session.testing import RecordingGateway
with RecordingGateway() as recording, session_scope("s1"):
    instrument(Gateway(recording.url, forward="https://api.openai.com/v1"))
    url = recording.url
    {GET[library].strip()}
    print(*[each.session_id for each in recording.requests])
"""
    assert set(" ".join(run(code)).split()) == {"s1"}


@pytest.mark.parametrize("options", ["", "spec=httpx.AsyncClient"])
def test_a_mock_in_the_place_of_a_class_costs_a_warning(options: str):
    code = f"""{PREPARE}
import httpx
from unittest import mock
from cagent_session import instrument
with mock.patch("httpx.AsyncClient", mock.MagicMock({options})):
    instrument()
print("again")
instrument()
"""
    warning, again = run(code)
    assert "AsyncClient._send_single_request is not the library's own" in warning
    assert "instrument() has to be called again" in warning
    assert again == "again"


@pytest.mark.parametrize("replaced", REPLACED)
def test_pools_carry_the_session_without_a_warning(replaced: str):
    replace = REPLACED[replaced].format(
        original="futures.ThreadPoolExecutor",
        method="submit",
        options={"max_workers": 1},
        define="def",
        wait="",
    )
    code = f"""{PREPARE}
from concurrent import futures
before = futures.ThreadPoolExecutor()
{replace}
from cagent_session import current_session_id, session_scope
from cagent_session.integrations.threads import carry_session
with carry_session(), session_scope("s1"):
    for pool in (before, futures.ThreadPoolExecutor()):
        print(pool.submit(current_session_id).result())
"""
    assert run(code) == ["s1", "s1"]
