"""nginx and HAProxy as the gateway, with the very configurations that the documentation gives."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import httpx2
import pytest
import requests
import trustme
from running import (
    ODD,
    Provider,
    answers,
    command_of_the_page,
    free_port,
    from_the_page,
    gateway_of_the_page,
    probe,
    refused,
    running,
    wait_until,
)

from cagent_session import Gateway, headers, session_scope
from cagent_session.integrations import aiohttp as for_aiohttp
from cagent_session.integrations import httpx as for_httpx
from cagent_session.integrations import httpx2 as for_httpx2

FORWARD = "https://api.openai.com/v1"
PROVIDER_KEY = "Bearer sk-of-the-provider"


@dataclass
class Running:
    url: str
    provider: Provider
    folder: Path
    log: Path

    @contextmanager
    def client(self, principal: str | None = "research", forward: str = FORWARD):
        self.gateway = Gateway(self.url, forward=forward, model="gpt")
        with requests.Session() as http:
            self.gateway.mount(http)
            if principal is not None:
                http.headers["Authorization"] = f"Bearer sk-{principal}"
            yield http

    def call(
        self,
        http: requests.Session,
        session_id: str | None,
        path: str = "v1/chat/completions?x=1",
        **options,
    ) -> requests.Response:
        options.setdefault("json", {"messages": []})
        url = self.gateway.endpoint(path)
        if session_id is None:
            return http.post(url, timeout=30, **options)
        with session_scope(session_id):
            return http.post(url, timeout=30, **options)

    def logged(self, count: int) -> list[dict]:
        """The log of the calls, so many of them; it is written after the answer."""
        lines: list[dict] = []

        def written() -> bool:
            found = self.log.read_text(encoding="utf-8").splitlines()
            lines[:] = [json.loads(line) for line in found if line.startswith('{"time"')]
            lines[:] = [line for line in lines if line["method"] == "POST"]
            return len(lines) >= count

        wait_until(written)
        assert len(lines) == count
        return lines


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


@pytest.fixture
def provider(authority):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority[0].issue_cert("api.openai.com").configure_cert(tls)
    with Provider(tls) as provider:
        yield provider


@pytest.fixture(params=["nginx", "haproxy"])
def proxy(request, tmp_path, authority, provider):
    with start(request.param, tmp_path, authority, provider) as proxy:
        yield proxy


@pytest.fixture
def haproxy(tmp_path, authority, provider):
    with start("haproxy", tmp_path, authority, provider) as proxy:
        yield proxy


@contextmanager
def start(name: str, folder: Path, authority, provider: Provider):
    command = command_of_the_page(f"{name} ")
    configuration = from_the_page(name, "X-Cagent-Forward")
    address = f"127.0.0.1:{free_port()}"
    for on_paper, here in {
        "127.0.0.1:8080": address,
        "api.openai.com:443": f"127.0.0.1:{provider.port}",
        "/etc/ssl/certs/ca-certificates.crt": str(authority[1]),
        "/run/haproxy/gateway.sock": str(folder / "socket"),
    }.items():
        configuration = configuration.replace(on_paper, here)
    (folder / command[command.index("-c" if name == "nginx" else "-f") + 1]).write_text(
        configuration, encoding="utf-8"
    )
    principals = {f"sk-{name}": name for name in ("research", "support")}
    if name == "nginx":
        lines = [f'"Bearer {key}" {name};' for key, name in principals.items()]
        (folder / "providers.map").write_text(f'openai "{PROVIDER_KEY}";\n', encoding="utf-8")
        command[-1] += " master_process off;"
    else:
        lines = [f"{key} {name}" for key, name in principals.items()]
    (folder / "principals.map").write_text("\n".join(lines), encoding="utf-8")
    environment = {"OPENAI_API_KEY": PROVIDER_KEY.removeprefix("Bearer ")}
    url = f"http://{address}"
    with running(command, lambda: answers(url, 401), folder, environment=environment):
        (log,) = folder.glob("audit.log" if name == "nginx" else "output-*.log")
        yield Running(url, provider, folder, log)


def test_a_session_is_limited_and_another_is_not(proxy):
    with proxy.client() as http:
        statuses = {"greedy": [], "modest": []}
        began = time.monotonic()
        for _ in range(75):
            answer = proxy.call(http, "greedy")
            statuses["greedy"].append(answer.status_code)
            assert answer.headers.get("Retry-After") == (None if answer.ok else "1")
            assert answer.ok or "too many calls" in refused(answer, 429)
        seconds = time.monotonic() - began
        for _ in range(3):
            statuses["modest"].append(proxy.call(http, "modest").status_code)
    assert statuses["greedy"][:60] == [200] * 60
    assert set(statuses["greedy"][60:]) <= {200, 429}
    # nginx lets one more pass in every second.
    assert statuses["greedy"][60:].count(200) <= seconds + 1
    assert statuses["modest"] == [200] * 3

    lines = proxy.logged(78)
    for session_id, expected in statuses.items():
        assert [line["status"] for line in lines if line["session_id"] == session_id] == expected
    assert {
        (line["principal"], line["forward"], line["model"], line["path"]) for line in lines
    } == {("research", FORWARD, "gpt", "/v1/chat/completions")}
    served = statuses["greedy"].count(200) + 3
    assert len(proxy.provider.arrived) == served


def test_a_session_for_every_call_does_not_help(proxy):
    """Nor does it take anything from another principal."""
    with proxy.client() as http:
        began = time.monotonic()
        statuses = [proxy.call(http, f"session-{number}").status_code for number in range(400)]
        seconds = time.monotonic() - began
    assert statuses[:300] == [200] * 300
    assert set(statuses[300:]) <= {200, 429}
    assert statuses[300:].count(200) <= 5 * (seconds + 1)
    with proxy.client("support") as http:
        assert proxy.call(http, "another").status_code == 200


@pytest.mark.parametrize("session_id", [None, "", "has a space", "x" * 257, "caf\xe9"])
def test_a_call_needs_a_session(proxy, session_id):
    with proxy.client() as http:
        given = {} if session_id is None else {headers.SESSION_ID: session_id.encode("latin-1")}
        answer = proxy.call(http, None, headers=given)
    assert "X-Cagent-Session-Id" in refused(answer, 400)
    assert proxy.provider.arrived == []
    (line,) = proxy.logged(1)
    assert line["status"] == 400


def test_the_probe_of_the_page_is_stamped_and_served(proxy):
    probed = probe("--forward", proxy.url, GATEWAY_KEY="Bearer sk-research")
    assert probed.returncode == 0, probed.stderr
    assert "stamped with session" in probed.stdout.splitlines()[-1]
    assert "sk-research" not in probed.stdout
    assert [request.path for request in proxy.provider.arrived] == ["/v1/models"]


@pytest.mark.parametrize("principal", [None, "nobody", ""])
def test_a_call_needs_a_key(proxy, principal):
    with proxy.client(principal) as http:
        assert "Authorization" in refused(proxy.call(http, "s1"), 401)
    assert proxy.provider.arrived == []


def test_what_it_does_not_know_is_not_relayed(proxy):
    with proxy.client(forward="https://evil.example/") as http:
        assert "X-Cagent-Forward" in refused(proxy.call(http, 'a"b\\c'), 403)
    assert proxy.provider.arrived == []
    (line,) = proxy.logged(1)
    assert line["session_id"] == 'a"b\\c'
    assert line["forward"] == "https://evil.example/"


@pytest.mark.parametrize("session_id", ["s", "has:colon", *ODD[:3]])
def test_every_id_passes(proxy, session_id):
    with proxy.client() as http:
        assert proxy.call(http, session_id).status_code == 200
    (line,) = proxy.logged(1)
    assert line["session_id"] == session_id


def test_the_provider_gets_its_own_key_and_no_identifier(proxy):
    with proxy.client(forward=f"{FORWARD}/") as http:
        with session_scope("main"):
            assert proxy.call(http, "sub").status_code == 200
        extra = {name: "1" for name in vars(headers).values() if is_identifier(name)}
        del extra[headers.FORWARD]
        assert proxy.call(http, "sub", headers=extra).status_code == 200
    for request in proxy.provider.arrived:
        assert request.target == "/v1/chat/completions?x=1"
        assert request.identifiers == {}
        assert request.get("Host") == "api.openai.com"
        assert request.get("Authorization") == PROVIDER_KEY


def is_identifier(name: object) -> bool:
    return isinstance(name, str) and name.startswith("X-Cagent-") and name != "X-Cagent-"


def test_a_long_prompt_passes(proxy):
    prompt = b"x" * 2_000_000
    with proxy.client() as http:
        assert proxy.call(http, "s1", json=None, data=prompt).status_code == 200
    assert proxy.provider.arrived[0].body == prompt


def test_the_connection_to_the_provider_is_kept(proxy):
    with proxy.client() as http:
        for number in range(20):
            assert proxy.call(http, f"session-{number}").status_code == 200
    assert proxy.provider.connections == 1
    for request in proxy.provider.arrived:
        assert request.get("Connection") != "close"


@pytest.mark.parametrize("framing", ["chunked", "until the connection ends"])
def test_an_event_arrives_before_the_next_is_sent(proxy, framing):
    with proxy.client() as http:
        answer = proxy.call(http, "s1", "v1/stream", json={"framing": framing}, stream=True)
        lines = answer.iter_lines(chunk_size=1)
        assert next(lines) == b"data: first"
        proxy.provider.first_arrived.set()
        assert list(lines) == [b"", b"data: last", b""]
    assert not proxy.provider.waited_in_vain


def test_nginx_limits_a_session_of_each_principal_by_itself(tmp_path, authority, provider):
    with start("nginx", tmp_path, authority, provider) as nginx:
        with nginx.client("research") as http:
            assert 429 in [nginx.call(http, "s1").status_code for _ in range(75)]
        with nginx.client("support") as http:
            assert nginx.call(http, "s1").status_code == 200


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_a_provider_with_another_certificate_gets_nothing(name, tmp_path, authority, provider):
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    with start(name, tmp_path, (None, stranger), provider) as proxy, proxy.client() as http:
        assert proxy.call(http, "s1").status_code in (502, 503)
    assert provider.arrived == []


def test_haproxy_ties_a_session_to_its_principal(haproxy):
    with haproxy.client("research") as http:
        assert haproxy.call(http, "s1").status_code == 200
    with haproxy.client("support") as http:
        assert "another principal" in refused(haproxy.call(http, "s1"), 403)
        assert haproxy.call(http, "s2").status_code == 200
    with haproxy.client("research") as http:
        assert haproxy.call(http, "s2").status_code == 403
        statuses = [haproxy.call(http, "s1").status_code for _ in range(59)]
    assert statuses == [200] * 59  # what others tried is not counted


@pytest.mark.parametrize("name", ["X-Cagent-Session-Id", "X-Cagent-Forward"])
def test_haproxy_refuses_a_header_that_came_twice(haproxy, name):
    host, _, port = haproxy.url.removeprefix("http://").partition(":")
    once = {"X-Cagent-Session-Id": "s1", "X-Cagent-Forward": FORWARD}
    lines = [f"{key}: {value}" for key, value in [*once.items(), (name, once[name])]]
    lines += ["Authorization: Bearer sk-research", "Host: gateway", "Connection: close"]
    request = "\r\n".join(["GET / HTTP/1.1", *lines]).encode() + b"\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert haproxy.provider.arrived == []


def test_haproxy_shows_its_counters(haproxy):
    with haproxy.client() as http:
        for session_id, calls in (("s1", 3), ("s2", 1)):
            for _ in range(calls):
                assert haproxy.call(http, session_id).status_code == 200
    counters = {}
    for table in ("sessions", "principals"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(haproxy.folder / "socket"))
            connection.sendall(f"show table {table}\n".encode())
            shown = connection.makefile().read()
        for key, count in re.findall(r"key=(.*?) use=.* gpc0=(\d+) gpc0_rate\(60000\)=", shown):
            counters[key] = int(count)
    assert counters == {r"research\ s1": 3, r"research\ s2": 1, "research": 4}


COMPRESSING = """
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
{compression}
listen gateway
    bind {address}
    server provider {provider}
"""


@contextmanager
def compressing_haproxy(folder: Path, provider: Provider):
    """HAProxy with the lines of the page that make it compress events; gives its URL."""
    address = f"127.0.0.1:{free_port()}"
    configuration = COMPRESSING.format(
        compression=from_the_page("haproxy", "compression"),
        address=address,
        provider=f"127.0.0.1:{provider.port}",
    )
    command = command_of_the_page("haproxy ")
    (folder / command[-1]).write_text(configuration, encoding="utf-8")
    url = f"http://{address}"
    with running(command, lambda: answers(url), folder):
        provider.arrived.clear()
        yield url


def first_line(library: str, gateway: Gateway) -> tuple[bytes, str]:
    """The first line of a stream as soon as it is here, and how the stream is encoded."""
    url, prompt = gateway.endpoint("v1/stream"), {"framing": "chunked"}
    if library == "requests":
        with requests.Session() as http:
            gateway.mount(http)
            with http.post(url, json=prompt, stream=True, timeout=20) as answer:
                line = next(answer.iter_lines(chunk_size=1))
                return line, answer.headers.get("Content-Encoding", "")
    if library in ("httpx", "httpx2"):
        module, ours = (httpx, for_httpx) if library == "httpx" else (httpx2, for_httpx2)
        with (
            module.Client(transport=ours.GatewayTransport(gateway), timeout=20) as client,
            client.stream("POST", url, json=prompt) as answer,
        ):
            line = next(answer.iter_lines()).encode()
            return line, answer.headers.get("Content-Encoding", "")

    async def over_aiohttp() -> tuple[bytes, str]:
        middlewares = [for_aiohttp.GatewayMiddleware(gateway)]
        async with (
            aiohttp.ClientSession(middlewares=middlewares) as client,
            client.post(url, json=prompt) as answer,
        ):
            line = await answer.content.readline()
            return line.rstrip(), answer.headers.get("Content-Encoding", "")

    return asyncio.run(over_aiohttp())


@pytest.mark.parametrize("library", ["requests", "httpx", "httpx2", "aiohttp"])
def test_an_event_arrives_at_once_from_a_compressing_proxy(tmp_path, library):
    with Provider() as provider, compressing_haproxy(tmp_path, provider) as url:
        gateway = gateway_of_the_page("http://compressing.example:8080", url)
        with session_scope("s1"):
            assert first_line(library, gateway) == (b"data: first", "")
        provider.first_arrived.set()
    assert not provider.waited_in_vain
    assert [request.get("Accept-Encoding") for request in provider.arrived] == ["identity"]


@pytest.mark.parametrize("library", ["httpx", "httpx2", "aiohttp"])
def test_a_compressing_proxy_holds_an_event_back(tmp_path, library):
    """What the page warns of: the first event is there only when the second has been sent."""
    with Provider() as provider, compressing_haproxy(tmp_path, provider) as url:
        provider.patience = 1
        gateway = Gateway(url, session_header="X-Session-ID")
        began = time.monotonic()
        with session_scope("s1"):
            assert first_line(library, gateway) == (b"data: first", "gzip")
        assert time.monotonic() - began >= provider.patience
    assert provider.waited_in_vain
