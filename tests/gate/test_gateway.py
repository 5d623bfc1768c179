"""Where the gateway is: the URLs it takes, and the URLs it owns."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import pickle
import time
from enum import Enum

import httpx
import pytest
import requests
from requests.adapters import HTTPAdapter
from support.proxies import TextProxy

from cagent_session import Gateway, GatewayAdapter, gateway_headers, session_scope
from cagent_session._gate import protocol, urls
from cagent_session._gate.protocol import goarch, goos
from cagent_session._gate.routes import BARE, Router

FORWARD = "https://api.openai.com/v1"
GOOD = "https://gateway.example"


class TestURLs:
    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("/prefix", "is not absolute"),
            ("gateway.example", "is not absolute"),
            ("//gateway.example/", "is not absolute"),
            ("", "is not absolute"),
            ("https:gateway.example", "is not absolute"),
            ("ftp://gateway.example/", "neither http:// nor https://"),
            ("unix:///var/run/gateway", "neither http:// nor https://"),
            ("https://", "has no host"),
            ("https:///prefix", "has no host"),
            ("https://:443/", "has no host"),
            ("https://?a=b", "has no host"),
            ("https://user:hunter2@gateway.example/", "contains credentials"),
            ("https://hunter2@gateway.example:99999/..", "contains credentials"),
            ("https://@gateway.example/", "contains credentials"),
            ("https://gateway.example/#top", "contains a fragment"),
            ("https://gateway.example/#", "contains a fragment"),
            ("https://gateway.example/a b", "contains a space or a control character"),
            (" https://gateway.example/", "contains a space or a control character"),
            ("https://gateway.example/\n", "contains a space or a control character"),
            ("https://gateway.example/\x00", "contains a space or a control character"),
            ("https://gateway.example/\x7f", "contains a space or a control character"),
            ("https://gätewäy.example/", "contains non-ASCII characters"),
            ("https://gateway.example:port/", "has an invalid port"),
            ("https://gateway.example:/", "has an invalid port"),
            ("https://gateway.example:0/", "has an invalid port"),
            ("https://gateway.example:65536/", "has an invalid port"),
            ("https://gateway.example:-1/", "has an invalid port"),
            ("https://gateway.example:123456789/", "has an invalid port"),
            ("https://[::1]:x/", "has an invalid port"),
            ("https://gateway.example/%", "invalid percent escape"),
            ("https://gateway.example/%zz", "invalid percent escape"),
            ("https://gateway.example/?q=%2", "invalid percent escape"),
            ("https://gateway.example/../x", "contains a dot segment"),
            ("https://gateway.example/x/..", "contains a dot segment"),
            ("https://gateway.example/./x", "contains a dot segment"),
            ("https://gateway.example/x/%2e%2e/y", "contains a dot segment"),
            ("https://gateway.example/x/.%2E", "contains a dot segment"),
            ("https://gateway.example/x/%252e%252e/y", "contains a dot segment"),
            ("https://gateway.example/x/%25252e%25252e/y", "contains a dot segment"),
            ("https://gateway.example/x%2f../y", "contains a dot segment"),
            ("https://gateway.example/x%2f%2e%2e", "contains a dot segment"),
            ("https://gateway.example/x%5c..%5cy", "contains a dot segment"),
            ("https://gateway.example/x/..;a=b/y", "contains a dot segment"),
            ("https://gateway.example\\@evil.example/", "contains a backslash"),
            ("https://gateway.example/x\\..\\y", "contains a backslash"),
            ("https://gate[way.example/", "a host that is not valid"),
            ("https://[::1/", "a host that is not valid"),
            ("https://.example/", "a host that is not valid"),
            ("https://a..example/", "a host that is not valid"),
            ("https://*.example/", "a host that is not valid"),
            ("https://" + "x" * 64 + ".example/", "a host that is not valid"),
        ],
    )
    def test_doubtful_ones_are_refused(self, url: str, says: str):
        for make in (
            lambda: Gateway(url, forward=FORWARD),
            lambda: Gateway(GOOD, forward=url),
            lambda: gateway_headers(url),
        ):
            with pytest.raises(ValueError, match="URL") as caught:
                make()
            assert says in str(caught.value)
            assert "hunter2" not in str(caught.value)
            assert str(caught.value).isprintable()
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("https://gateway.example/{tenant}", "has '{' in its path: write %7B"),
            ("https://gateway.example/a|b", "has '|' in its path: write %7C"),
            ("http://[0:0:0:0:0:0:0:1]:8080", "write [::1]"),
            ("http://[2001:DB8::0:1]/x", "write [2001:db8::1]"),
            ("http://[::1::]/", "has an IPv6 address that is not valid"),
        ],
    )
    def test_those_that_libraries_send_in_another_spelling_are_refused(
        self, url, says, monkeypatch
    ):
        """What arrives would not be the gateway's, and would lack its session without a word."""
        with pytest.raises(ValueError, match="gateway URL") as caught:
            Gateway(url, forward=FORWARD)
        assert says in str(caught.value)
        monkeypatch.setenv("DOCKER_AGENT_MODELS_GATEWAY", url)
        with pytest.raises(ValueError, match="DOCKER_AGENT_MODELS_GATEWAY"):
            Gateway.from_env(forward=FORWARD)
        assert Gateway(GOOD, forward=url)

    @pytest.mark.parametrize(
        "url",
        [
            "https://u:hunter2@g.example:x/",
            "u:hunter2@g.example",
            "ftp://u:hunter2@g.example",
            "https://u:hun/ter2@g.example/",
            "https://u:hun?ter2@g.example/",
            "https://u:hun#ter2@g.example/",
            "https://u:hunter2%40g.example/",
            "https:/u:hunter2\uff20g.example",
            "https:u:hunter2%EF%BC%A0g.example",
            "https://u:hun ter2@g.example/",
            "https://g.example/a b?key=hunter2",
        ],
    )
    def test_no_error_shows_a_secret(self, url: str):
        with pytest.raises(ValueError, match="URL") as caught:
            Gateway(url, forward=FORWARD)
        assert "ter2" not in str(caught.value)

    def test_a_long_one_is_refused_in_a_second(self):
        """Unicode's normal form of many combining marks takes time that grows with its square."""
        start = time.process_time()
        with pytest.raises(ValueError, match="fragment"):
            Gateway(GOOD, forward=FORWARD).endpoint("%CC%95%CC%80" * 40_000 + "#")
        assert time.process_time() - start < 2

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:8080",
            "HTTPS://Gateway.Example:443/prefix/",
            "https://gateway.example?tenant=a",
            "https://gateway.example/a%20b/%2525?x=../y&z=%2e%2e",
            "https://[::1]:8443/a;b/...",
            "http://my_gateway.:65535/.well-known",
        ],
    )
    def test_good_ones_are_taken(self, url: str):
        assert Gateway(url, forward=url).url == url

    @pytest.mark.parametrize("url", [None, b"https://gateway.example", 5, TextProxy(GOOD)])
    def test_no_str_is_a_type_error(self, url):
        with pytest.raises(TypeError, match="must be a str"):
            Gateway(url, forward=FORWARD)


FRAMING = ["host", "Content-Length", "CONTENT-encoding", "Transfer-Encoding", "Connection"]
FRAMING += ["Keep-Alive", "TE", "Trailer", "Upgrade", "Expect"]
WITH_A_MEANING = ["Content-Type", "authorization", "Proxy-Authorization", "Cookie", "Set-Cookie"]
WITH_A_MEANING += ["Accept", "Accept-Encoding", "USER-AGENT"]
PROTOCOL = ["Forward", "Provider", "Model", "Model-Name", "Lang", "OS", "Arch", "Runtime"]
PROTOCOL += ["Runtime-Version", "GeneratingTitle", "Compacting"]


class TestOtherArguments:
    def test_names_that_are_fine(self):
        gateway = Gateway(
            GOOD,
            forward=FORWARD,
            session_header="x-cagent-session-id",
            parent_header="X-Cagent-Parent-Session-Id",
            headers={"Authorization": "Bearer x", "Content-Type": "a/b", "Accept": "*/*"},
        )
        assert gateway.parent_header == "X-Cagent-Parent-Session-Id"

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"session_header": "X-Cagent-Session-Id"},
            {"session_header": "X-S", "provider": "p"},
            {"session_header": "X-S", "model": "m"},
            {"session_header": "X-S", "model_name": "m"},
            {"session_header": "X-S", "headers": {"x-cagent-anything": "1"}},
            {"session_header": "X-S", "parent_header": "X-Cagent-Parent-Session-Id"},
        ],
    )
    def test_without_forward_nothing_of_its_protocol(self, options):
        with pytest.raises(ValueError, match=r"[Ff]orward"):
            Gateway(GOOD, **options)

    def test_without_forward_a_session_header_is_enough(self):
        gateway = Gateway(GOOD, session_header="X-Session-ID", provider="", model=None)
        assert gateway.headers_for(GOOD) == {}
        with session_scope("s1"):
            assert gateway.headers_for(GOOD) == {"X-Session-ID": "s1"}

    @pytest.mark.parametrize(
        "options",
        [
            {"provider": "a\r\nX: y"},
            {"model": "münchen"},
            {"model_name": " x"},
            {"headers": {"X-A": "hunter2\n"}},
            {"headers": {"X A": "b"}},
            {"headers": {"": "b"}},
            {"headers": {"x-cagent-forward": "https://other.example/"}},
            {"headers": {"x-cagent-session-id": "fixed"}},
            {"headers": {"x-mine": "fixed"}, "session_header": "X-Mine"},
            {"session_header": "X: Y"},
            {"session_header": ""},
            {"parent_header": "X: Y"},
            {"parent_header": "x-cagent-session-id"},
            {"session_header": "X-S", "parent_header": "x-s"},
            {"headers": {"x-p": "fixed"}, "parent_header": "X-P"},
            {"headers": {"X-Cagent-Session-Id": "fixed"}, "session_header": "X-S"},
            *({"headers": {name: "1"}} for name in FRAMING),
            *({"session_header": name} for name in [*FRAMING, *WITH_A_MEANING]),
            *({"parent_header": name} for name in [*FRAMING, *WITH_A_MEANING]),
            *({"session_header": f"x-cagent-{name}"} for name in ("anything", *PROTOCOL)),
            *({"parent_header": f"x-cagent-{name}"} for name in PROTOCOL),
        ],
    )
    def test_what_cannot_be_sent_is_refused(self, options):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - each has a message of its own
            Gateway(GOOD, forward=FORWARD, **options)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"provider": 5},
            {"headers": {"X-A": None}},
            {"headers": {5: "a"}},
            {"headers": {"X-A": TextProxy("a")}},
            {"session_header": 5},
            {"session_header": TextProxy("X-A")},
        ],
    )
    def test_no_str_is_a_type_error(self, options):
        with pytest.raises(TypeError, match="must be a str"):
            Gateway(GOOD, forward=FORWARD, **options)

    @pytest.mark.parametrize(
        "name", ["X-A: hunter2", "X-A=hunter2", '"X-A":"hunter2"', "X-A\uff1ahunter2", "/hunter2=="]
    )
    def test_error_for_a_name_shows_no_secret(self, name: str):
        with pytest.raises(ValueError, match="is not a valid header name") as caught:
            Gateway(GOOD, forward=FORWARD, headers={name: ""})
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("headers", ["X-A: hunter2", ["X-A: hunter2"], 5])
    def test_headers_that_are_no_dict(self, headers):
        with pytest.raises(TypeError, match="headers must be a dict of names and values, not a"):
            Gateway(GOOD, forward=FORWARD, headers=headers)

    @pytest.mark.parametrize(
        "url", [None, b"https://gateway.example/", httpx.URL(GOOD), TextProxy(GOOD)]
    )
    def test_a_url_that_is_no_str(self, url):
        gateway = Gateway(GOOD, forward=FORWARD)
        for ask in (gateway.owns, gateway.headers_for):
            with pytest.raises(TypeError, match=r"must be a str, not \w+: give str\(url\)"):
                ask(url)

    def test_all_but_the_url_go_by_name(self):
        with pytest.raises(TypeError):
            Gateway(GOOD, FORWARD)


class TestTextsOfAClassOfTheirOwn:
    """``str()`` of a member of such an Enum is not its text: ``"Text.MODEL"``."""

    class Text(str, Enum):
        URL = "https://gateway.example/v1"
        FORWARD = "https://api.openai.com/v1"
        MODEL = "gpt-4o"
        SESSION = "X-Session-ID"
        KEY = "X-Key"
        TEMPLATE = "{session}.x"
        AFFINITY = "X-Affinity"

    def test_count_by_their_text(self):
        text = self.Text
        gateway = Gateway(
            text.URL,
            forward=text.FORWARD,
            model=text.MODEL,
            session_header=text.SESSION,
            headers={text.KEY: text.MODEL},
            session_headers={text.AFFINITY: text.TEMPLATE},
        )
        assert type(gateway.url) is str
        assert gateway.endpoint("x") == "https://gateway.example/v1/x"
        with session_scope("s1"):
            headers = gateway.headers_for(gateway.endpoint("x"))
        wanted = {
            "X-Cagent-Forward": "https://api.openai.com/v1",
            "X-Cagent-Model": "gpt-4o",
            "X-Session-ID": "s1",
            "X-Key": "gpt-4o",
            "X-Affinity": "s1.x",
        }
        assert wanted.items() <= headers.items()
        assert {type(part) for item in headers.items() for part in item} == {str}

    def test_count_by_their_text_in_gateway_headers(self):
        headers = gateway_headers(self.Text.FORWARD, model=self.Text.MODEL)
        assert f"{headers['X-Cagent-Forward']} {headers['X-Cagent-Model']}" == (
            "https://api.openai.com/v1 gpt-4o"
        )


class TestValue:
    def test_cannot_be_changed(self):
        given = {"X-A": "b"}
        gateway = Gateway(GOOD, forward=FORWARD, headers=given)
        given["X-A"] = "changed"
        with pytest.raises(AttributeError, match="url"):
            gateway.url = "https://evil.example"
        with pytest.raises(AttributeError):
            del gateway.url
        with pytest.raises(TypeError):
            gateway.headers["X-A"] = "c"
        assert gateway.headers == {"X-A": "b"}

    def test_equality_and_hash(self):
        options = {"forward": FORWARD, "provider": "a", "headers": {"X-A": "b"}}
        assert Gateway(GOOD, **options) == Gateway(GOOD, **options)
        assert hash(Gateway(GOOD, **options)) == hash(Gateway(GOOD, **options))
        for other in (
            Gateway(GOOD + "/x", **options),
            Gateway(GOOD, **(options | {"provider": "b"})),
            Gateway(GOOD, **(options | {"headers": {}})),
            GOOD,
        ):
            assert Gateway(GOOD, **options) != other

    def test_replace_makes_another_one(self):
        gateway = Gateway(GOOD, forward=FORWARD, headers={"X-A": "b"}, require_session=True)
        other = dataclasses.replace(gateway, model="m")
        assert other == Gateway(
            GOOD, forward=FORWARD, headers={"X-A": "b"}, require_session=True, model="m"
        )
        with pytest.raises(ValueError, match="gateway URL"):
            dataclasses.replace(gateway, url="nowhere")

    def test_pickle_and_deepcopy(self):
        gateway = Gateway(
            GOOD + "/p?a=b",
            forward=FORWARD,
            headers={"X-A": "b"},
            session_header="X-S",
            parent_header="X-P",
            require_session=True,
        )
        for twin in (pickle.loads(pickle.dumps(gateway)), copy.deepcopy(gateway)):
            assert twin == gateway
            assert twin.owns(GOOD + "/p/x")

    def test_repr_shows_no_secrets(self):
        gateway = Gateway(
            GOOD + "?key=hunter2&hunter2",
            forward=FORWARD + "?key=hunter2&hunter2&",
            provider="openai",
            headers={"Authorization": "hunter2"},
        )
        assert repr(gateway) == (
            "Gateway('https://gateway.example?key=...&...', "
            "forward='https://api.openai.com/v1?key=...&...', provider='openai', "
            "headers=['Authorization'], session_header='X-Cagent-Session-Id')"
        )

    def test_repr_leaves_out_a_session_header_that_is_not_sent(self):
        gateway = Gateway(GOOD, session_headers={"X-Session": "{session}"})
        assert repr(gateway) == "Gateway('https://gateway.example', session_headers=['X-Session'])"


class TestOwns:
    @pytest.mark.parametrize(
        ("gateway", "url"),
        [
            ("https://gateway.example", "https://gateway.example"),
            ("https://gateway.example", "https://gateway.example/"),
            ("https://gateway.example", "https://gateway.example/x?y#z"),
            ("https://gateway.example", "https://gateway.example?x"),
            ("https://gateway.example", "https://gateway.example#x"),
            ("https://gateway.example", "HTTPS://GATEWAY.EXAMPLE:443/x"),
            ("https://gateway.example", "https://gateway.example:0443/x"),
            ("https://gateway.example", "https://gateway.example:/x"),
            ("https://gateway.example:443", "https://gateway.example/x"),
            ("http://gateway.example", "http://gateway.example:80/x"),
            ("http://gateway.example:8080", "http://gateway.example:8080/%2e%2e/x"),
            ("http://[::1]:8080", "http://[::1]:8080/x"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix"),
            ("https://gateway.example/prefix/", "https://gateway.example/prefix"),
            ("https://gateway.example/prefix?a=b", "https://gateway.example/prefix?x=/../"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix/x%20y"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix/100%"),
            ("https://gateway.example/prefix", "https://gateway.example/%70refix/x"),
            ("https://gateway.example/a%c3%bc", "https://gateway.example/a%C3%BC/x"),
            ("https://gateway.example/me%40a%2c", "https://gateway.example/me@a,/x"),
            ("https://gateway.example/me@a,", "https://gateway.example/me%40a%2C/x"),
            ("https://gateway.example/a%7eb", "https://gateway.example/a~b/x"),
            ("https://Gateway.Example/P", "https://gateway.example/P/x"),
        ],
    )
    def test_its_own(self, gateway: str, url: str):
        assert Gateway(gateway, forward=FORWARD).owns(url)

    @pytest.mark.parametrize(
        ("gateway", "url"),
        [
            ("https://gateway.example", "http://gateway.example/"),
            ("https://gateway.example", "https://gateway.example:444/"),
            ("https://gateway.example", "https://gateway.example:8443"),
            ("https://gateway.example", "https://gateway.example:000443/"),
            ("https://gateway.example", "https://gateway.example:0/"),
            ("https://gateway.example", "https://gateway.example.evil.com/"),
            ("https://gateway.example", "https://someone:x@gateway.example/x"),
            ("https://gateway.example", "https://@gateway.example/x"),
            ("https://gateway.example", "https://gateway.example/a b"),
            ("https://gateway.example", "https://gateway.example/a\tb"),
            ("https://gateway.example", "https://gateway.example/a\r\nb"),
            ("https://gateway.example", "https://gateway.example/a\x7f"),
            ("https://gateway.example", "https://gateway.example/a\x85b"),
            ("https://gateway.example", "https://gateway.example/a\u2028b"),
            ("https://gateway.example", "https://gateway.example/a\xa0b"),
            ("https://gateway.example", "https://gateway.example@evil.com/"),
            ("https://gateway.example", "https://gateway.example:443@evil.com/"),
            ("https://gateway.example", "https://evil.com/https://gateway.example/"),
            ("https://gateway.example", "https://evil.com?gateway.example"),
            ("https://gateway.example", "https://evil.com#@gateway.example/"),
            ("https://gateway.example", "https://evil.com\\@gateway.example/"),
            ("https://gateway.example", "https://gateway.example\\@evil.com/"),
            ("https://gateway.example", "https://gateway.example\\.evil.com/"),
            ("https://gateway.example", "https://gateway.example\n.evil.com/"),
            ("https://gateway.example", "https://gateway.example%2eevil.com/"),
            ("https://gateway.example", "https://gateway.example%00.evil.com/"),
            ("https://gateway.example", "https://gateway.example./"),
            ("https://gateway.example", "https://xgateway.example/"),
            ("https://gateway.example", "https://gatewаy.example/"),  # noqa: RUF001 - Cyrillic
            ("https://gateway.example", "//gateway.example/"),
            ("https://gateway.example", "gateway.example"),
            ("https://gateway.example", "ftp://gateway.example/"),
            ("https://gateway.example", ""),
            ("https://gateway.example/prefix", "https://gateway.example/"),
            ("https://gateway.example/prefix", "https://gateway.example/prefixed"),
            ("https://gateway.example/prefix", "https://gateway.example/PREFIX/"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix/../admin"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix/%2e%2e/admin"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix/%252e%252E/x"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix%2f..%2fadmin"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix/..\\admin"),
            ("https://gateway.example/prefix", "https://gateway.example/prefix/x\\..\\..\\admin"),
            ("https://gateway.example/prefix", "https://gateway.example/x/prefix/"),
            ("http://[::1]:8080", "http://[::1]:8081/x"),
        ],
    )
    def test_not_its_own(self, gateway: str, url: str):
        assert not Gateway(gateway, forward=FORWARD).owns(url)

    def test_a_plain_url_is_not_parsed_for_each_of_many_gateways(self, monkeypatch):
        gateways = [Gateway(f"https://g.example/{n}", forward=FORWARD) for n in range(20)]
        router = Router(*gateways)
        monkeypatch.setattr(urls, "split", None)  # which fails if it is called
        for gateway in gateways:
            assert router.route(gateway.url + "/v1/models?limit=1").base == gateway.url
        assert router.route("https://g.example/20") is BARE

    def test_hostile_urls_take_no_time(self):
        gateway = Gateway("https://gateway.example/prefix", forward=FORWARD)
        for tail in (
            "%3" * 40000,
            "%" * 80000,
            "a@" * 40000,
            "%25" * 20000,
            "%25%32%35" * 10000,
            "/." * 20000 + "x",
            "@" * 60000,
        ):
            gateway.owns("https://gateway.example/prefix/" + tail)
            gateway.owns("https://gateway.example" + tail)


class TestEndpoint:
    @pytest.mark.parametrize("url", ["https://g.example/p", "https://g.example/p/?tenant=a"])
    @pytest.mark.parametrize("path", ["v1/models?limit=1", "/v1/models?limit=1"])
    def test_is_below_the_gateways_path(self, url: str, path: str):
        gateway = Gateway(url, forward=FORWARD)
        assert gateway.endpoint(path) == "https://g.example/p/v1/models?limit=1"
        assert gateway.owns(gateway.endpoint(path))

    @pytest.mark.parametrize(
        "path", ["v1beta/models/x:generateContent", "models:list", "a:b/c:d?e:f", "urn:x"]
    )
    def test_a_colon_is_fine(self, path: str):
        assert Gateway(GOOD, forward=FORWARD).endpoint(path) == f"{GOOD}/{path}"

    @pytest.mark.parametrize(
        "path", ["../x", "a/%2e%2e/b", "a b", "a#b", "a\\b", "https://evil.example/", "%zz"]
    )
    def test_what_is_no_path_is_refused(self, path: str):
        with pytest.raises(ValueError, match="endpoint"):
            Gateway(GOOD, forward=FORWARD).endpoint(path)


class TestMount:
    @pytest.mark.parametrize("url", ["https://Gateway.example/p", "https://gateway.example:443"])
    def test_every_owned_url_reaches_the_adapter(self, url: str):
        http = requests.Session()
        adapter = Gateway(url, forward=FORWARD).mount(http, pool_maxsize=3)
        assert isinstance(adapter, GatewayAdapter)
        assert adapter._pool_maxsize == 3
        schemes, hosts = ["https", "HTTPS"], ["gateway.example", "GATEWAY.example"]
        for scheme, host, port in itertools.product(schemes, hosts, ["", ":443"]):
            prepared = http.prepare_request(requests.Request("GET", f"{scheme}://{host}{port}/p?x"))
            assert http.get_adapter(prepared.url) is adapter

    @pytest.mark.parametrize(
        "url",
        [
            "http://gateway.example/",
            "https://gateway.example:8443/",
            "https://gateway.example.evil.com/",
            "https://gateway.example@evil.com/",
            "https://evil.com/https://gateway.example/",
        ],
    )
    def test_no_url_of_another_origin_does(self, url: str):
        http = requests.Session()
        adapter = Gateway(GOOD, forward=FORWARD).mount(http)
        found = http.get_adapter(requests.Request("GET", url).prepare().url)
        assert type(found) is HTTPAdapter
        assert found is not adapter

    def test_another_port_than_the_default(self):
        http = requests.Session()
        adapter = Gateway("http://127.0.0.1:8080", forward=FORWARD).mount(http)
        assert http.get_adapter("http://127.0.0.1:8080/x") is adapter
        assert http.get_adapter("http://127.0.0.1/x") is not adapter
        assert http.get_adapter("http://127.0.0.1:80801/x") is not adapter


class TestFromEnv:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("DOCKER_AGENT_MODELS_GATEWAY", raising=False)
        monkeypatch.delenv("CAGENT_MODELS_GATEWAY", raising=False)

    def test_none_is_said_in_the_debug_log(self, caplog: pytest.LogCaptureFixture):
        with caplog.at_level(logging.DEBUG, "cagent_session"):
            assert Gateway.from_env(forward=FORWARD) is None
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("cagent_session", logging.DEBUG)
        assert record.getMessage() == (
            "no gateway, as DOCKER_AGENT_MODELS_GATEWAY and CAGENT_MODELS_GATEWAY are not set, or "
            "empty"
        )

    def test_none_is_none(self, monkeypatch: pytest.MonkeyPatch):
        assert Gateway.from_env(forward=FORWARD) is None
        monkeypatch.setenv("CAGENT_MODELS_GATEWAY", "")
        assert Gateway.from_env(forward=FORWARD) is None

    def test_the_new_name_comes_first(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CAGENT_MODELS_GATEWAY", "https://old.example")
        options = {"provider": "p", "headers": {"X-A": "b"}, "session_header": "X-S"}
        gateway = Gateway.from_env(forward=FORWARD, **options)
        assert gateway == Gateway("https://old.example", forward=FORWARD, **options)
        monkeypatch.setenv("DOCKER_AGENT_MODELS_GATEWAY", "https://new.example")
        assert Gateway.from_env(forward=FORWARD).url == "https://new.example"

    def test_the_options_are_checked_in_any_case(self):
        with pytest.raises(TypeError, match="foward"):
            Gateway.from_env(foward=FORWARD)
        with pytest.raises(ValueError, match="forward URL"):
            Gateway.from_env(forward="nowhere")

    def test_an_error_names_the_variable(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("DOCKER_AGENT_MODELS_GATEWAY", "gateway.example")
        with pytest.raises(ValueError, match=r"^DOCKER_AGENT_MODELS_GATEWAY is not absolute"):
            Gateway.from_env(forward=FORWARD)


class TestHeadersFor:
    GATEWAY = Gateway(
        GOOD + "/p?key=hunter2",
        forward=FORWARD,
        provider="openai",
        headers={"X-Team": "a"},
        parent_header="X-Cagent-Parent-Session-Id",
    )

    def test_are_those_that_a_request_gets_now(self):
        url = self.GATEWAY.endpoint("v1/models")
        outside = self.GATEWAY.headers_for(url)
        assert type(outside) is dict
        assert outside == gateway_headers(FORWARD, provider="openai") | {"X-Team": "a"}
        with session_scope("main"), session_scope("sub"):
            inside = self.GATEWAY.headers_for(url)
        of_session = {"X-Cagent-Session-Id": "sub", "X-Cagent-Parent-Session-Id": "main"}
        assert inside == outside | of_session

    def test_none_for_a_url_of_somebody_else(self):
        with session_scope("s1"):
            for url in (GOOD, "https://evil.example/p", "https://gateway.example@evil.example/p"):
                assert self.GATEWAY.headers_for(url) == {}

    def test_a_fixed_user_agent_is_among_them(self):
        gateway = Gateway(GOOD, session_header="X-S", headers={"user-agent": "team-a/1"})
        assert gateway.headers_for(GOOD) == {"user-agent": "team-a/1"}


def test_gateway_headers_are_a_plain_dict():
    headers = gateway_headers(FORWARD, provider="openai", model="", model_name="My Model")
    assert type(headers) is dict
    assert headers["X-Cagent-Forward"] == FORWARD
    assert headers["X-Cagent-Provider"] == "openai"
    assert headers["X-Cagent-Model-Name"] == "My Model"
    assert headers["X-Cagent-Runtime"] == "cagent-session"
    assert "X-Cagent-Model" not in headers
    assert "X-Cagent-Session-Id" not in headers


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        ("linux", "linux"),
        ("darwin", "darwin"),
        ("win32", "windows"),
        ("cygwin", "windows"),
        ("freebsd14", "freebsd"),
        ("sunos5", "solaris"),
    ],
)
def test_the_systems_have_gos_names(platform: str, name: str):
    assert goos(platform) == name


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("x86_64", "amd64"),
        ("AMD64", "amd64"),
        ("aarch64", "arm64"),
        ("arm64", "arm64"),
        ("ARM64", "arm64"),
        ("armv7l", "arm"),
        ("i686", "386"),
        ("x86", "386"),
        ("ppc64le", "ppc64le"),
        ("s390x", "s390x"),
        ("riscv64", "riscv64"),
        ("loongarch64", "loong64"),
    ],
)
def test_the_architectures_have_gos_names(machine: str, name: str):
    assert goarch(machine) == name


def test_no_header_of_the_session_can_take_a_name_of_the_protocol():
    for name in protocol.RUNTIME:
        with pytest.raises(ValueError, match="parent_header"):
            Gateway("https://gateway.example", forward=FORWARD, parent_header=name)
