"""``cagent-session probe`` shows no value that was given to it in a header or a query."""

from __future__ import annotations

import pytest
from support.wire import Server, redirect, response

from cagent_session.__main__ import main

FORWARD = "https://api.openai.com/v1"


def probe(*arguments: str) -> int:
    return main(["probe", *arguments])


def test_secrets_that_come_back_are_masked(capsys):
    def respond(request):
        return response(body=b"you said hunter2 \x1b[2J", headers={"X-You-Said": "hunter2"})

    with Server(respond) as server:
        assert probe(server.origin, "--forward", FORWARD, "--header", "X-Any: hunter2") == 0
    out = capsys.readouterr().out
    assert "hunter2" not in out
    assert "\x1b" not in out
    assert "< X-You-Said: ***\n" in out


def test_short_value_is_masked_in_its_header_only(capsys, recording_gateway):
    assert probe(recording_gateway.url, "--forward", FORWARD, "--header", "X-A: 0") == 0
    out = capsys.readouterr().out
    assert "> X-A: ***\n" in out
    assert "127.0.0.1" in out


def test_query_without_names_is_masked(capsys, recording_gateway):
    url = f"{recording_gateway.url}/?abc&key=d"
    assert probe(url, "--forward", FORWARD) == 0
    assert f"> GET {recording_gateway.url}/?...&key=...\n" in capsys.readouterr().out
    assert recording_gateway.requests[0].query == "abc&key=d"


@pytest.mark.parametrize("shift", range(8))
def test_secret_at_the_cut_is_masked(capsys, shift):
    body = b"x" * (8193 - shift) + b"hunter2" + b"x" * 100
    with Server(lambda request: response(body=body)) as server:
        assert probe(server.origin, "--forward", FORWARD, "--header", "X-Any: hunter2") == 0
    assert "hu" not in capsys.readouterr().out


@pytest.mark.parametrize("part", ["h", "hunt", "hunter", "hunter2B", "hunter2B:signatur"])
def test_secret_where_the_answer_breaks_off_is_masked(capsys, part):
    """Its end may be the beginning of another one, as the B of Bearer is."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nyou said " + part.encode()

    class Breaking(Server):
        def handle(self, connection):
            connection.recv(65536)
            connection.sendall(answer)

    with Breaking() as server:
        headers = ["--header", "X-Any: Bearer hunter2B", "--header", "X-More: hunter2B:signature"]
        assert probe(server.origin, "--forward", FORWARD, *headers) == 1
    assert "\nyou said ***\n" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["hunter2/", "hunter2/B", "hunter2/B#C"])
@pytest.mark.parametrize("line", ["200 key ", "200 OK\r\nX-Echo: ", "302 Found\r\nLocation: /"])
def test_secret_where_the_head_breaks_off_is_masked(capsys, line, part):
    """To http.client, the end of the connection ends the head, too."""

    class Breaking(Server):
        def handle(self, connection):
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 {line}{part}".encode())

    with Breaking() as server:
        headers = ["--header", "X-Any: Bearer hunter2/B#Cd"]
        assert probe(server.origin, "--forward", FORWARD, *headers) == 0
    out = capsys.readouterr().out
    assert f"< {line}***\n".replace("\r\n", "\n< ") in out
    assert "hunt" not in out


@pytest.mark.parametrize("part", ["ey-and-pr", "the-key-and-pr", "ey-and-proof"])
def test_a_piece_of_a_secret_is_masked(capsys, part):
    """The end of the connection may end a body, wherever that is."""
    answer = b"HTTP/1.1 200 OK\r\n\r\nyou said " + part.encode()
    with Server(lambda request: answer) as server:
        assert probe(server.origin, "--forward", FORWARD, "--header", "X-A: the-key-and-proof") == 0
    assert "\nyou said ***\n" in capsys.readouterr().out


def test_blanks_of_a_secret_are_shown(capsys):
    body = f"what{' ' * 20}this: x{' ' * 10}y".encode()
    with Server(lambda request: response(body=body)) as server:
        headers = ["--header", f"X-Any: x{' ' * 10}y"]
        assert probe(server.origin, "--forward", FORWARD, *headers) == 0
    assert f"\nwhat{' ' * 20}this: ***{' ' * 10}***\n" in capsys.readouterr().out


def test_a_secret_that_is_read_in_a_wrong_encoding_is_masked(capsys):
    answer = response(body="grüne-haken".encode(), headers={"Content-Type": "text/plain"})
    with Server(lambda request: answer) as server:
        assert probe(f"{server.origin}/?key=gr%C3%BCne-haken", "--forward", FORWARD) == 0
    assert "ne-haken" not in capsys.readouterr().out


@pytest.mark.parametrize("spelling", ["%2Bkey", r"\u002bkey", "&#x2b;key", "+key", "%252bkey"])
def test_secret_that_is_cut_in_an_escape_is_masked(capsys, spelling):
    for shift in range(len(spelling) + 6):
        body = f"{'x' * (8193 - shift)}hunter{spelling}{'x' * 100}".encode()
        with Server(lambda request, body=body: response(body=body)) as server:
            assert probe(server.origin, "--forward", FORWARD, "--header", "X-Any: hunter+key") == 0
        assert "h" not in capsys.readouterr().out.partition("xxx")[2].partition("\n")[0]


@pytest.mark.parametrize("name", ["X-Any", "Location"])
def test_secret_in_a_long_header_is_masked_at_the_cut(capsys, name):
    for shift in range(20):
        value = "/" + "x" * (8190 - shift) + "hunter2" + "x" * 100
        with Server(lambda request, value=value: response(headers={name: value})) as server:
            assert probe(server.origin, "--forward", FORWARD, "--header", "X-Mine: hunter2") == 0
        shown = capsys.readouterr().out.partition(f"< {name}: /xxx")[2].partition("\n")[0]
        assert "h" not in shown.replace("characters", "")
        assert len(shown) < 8250


def test_secret_that_is_cut_in_half_a_character_is_masked(capsys):
    body = ("x" * 4090 + "hunter2").encode("utf-16-le")
    answer = response(body=body, headers={"Content-Type": "text/plain; charset=utf-16-le"})
    with Server(lambda request: answer) as server:
        assert probe(server.origin, "--forward", FORWARD, "--header", "X-Any: hunter2") == 0
    assert "hun" not in capsys.readouterr().out


@pytest.mark.parametrize("secret", ["hunter#2", "hunter?2", "hun//ter2"])
def test_secret_in_a_url_that_is_cut_is_masked(capsys, secret):
    answered = redirect(302, f"https://elsewhere.example/{secret}")
    with Server(lambda request: answered) as server:
        headers = ["--header", f"X-Any: {secret}"]
        assert probe(server.origin, "--forward", FORWARD, *headers) == 0
    out = capsys.readouterr().out
    assert "hun" not in out
    assert "< Location: https://elsewhere.example/***\n" in out


def test_words_that_overlap_are_masked_as_one(capsys):
    with Server(lambda request: response(body=b"abcdefgh-hijk abcdefghijklmno")) as server:
        headers = ["--header", "X-A: abcdefgh", "--header", "X-B: fghijklmno"]
        assert probe(server.origin, "--forward", FORWARD, *headers) == 0
    assert "\n***-hijk ***\n" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "shown"), [("hunter", "***"), ("hunte", "hunte")])
def test_values_of_six_characters_are_masked_everywhere(capsys, value, shown):
    with Server(lambda request: response(body=value.encode())) as server:
        assert probe(server.origin, "--forward", FORWARD, "--header", f"X-Any: {value}") == 0
    out = capsys.readouterr().out
    assert "> X-Any: ***\n" in out
    assert f"\n{shown}\n" in out


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Bearer hunter2", "Bearer hunter2"),
        ("Bearer hunter2", "hunter2"),
        ("Bearer hun ter 2", "hun ter 2"),
        ("a=1; session=hunter2; b=2", "hunter2"),
        ('Token token="hunter2"', "hunter2"),
        ("ApiKey me:hunter2", "hunter2"),
        ("key=hunter2,id=7", "hunter2"),
    ],
)
def test_words_of_a_secret_are_masked(capsys, value, said):
    with Server(lambda request: response(body=said.encode())) as server:
        assert probe(server.origin, "--forward", FORWARD, "--header", f"X-Any: {value}") == 0
    assert "\n***\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("hunter%2f2", "hunter%2f2"),
        ("hunter%2f2", "hunter/2"),
        ("hunter%2f2", "hunter%2F2"),
        ("hun+t=er+2", "hun+t=er+2"),
        ("hun+t=er+2", "hun t=er 2"),
    ],
)
def test_secrets_of_the_query_are_masked_in_every_spelling(capsys, value, said):
    with Server(lambda request: response(body=said.encode())) as server:
        assert probe(f"{server.origin}/?key={value}", "--forward", FORWARD) == 0
    assert "\n***\n" in capsys.readouterr().out


def test_secrets_of_the_environment_are_masked(capsys, monkeypatch, tmp_path, recording_gateway):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2")
    monkeypatch.setenv("NETRC", str(netrc))
    recording_gateway.respond = lambda request: {"saw": request.headers["Authorization"]}
    assert probe(recording_gateway.url, "--forward", FORWARD) == 0
    assert '{"saw": "***"}' in capsys.readouterr().out


def test_secrets_of_the_forward_url_are_masked(capsys, recording_gateway):
    assert probe(recording_gateway.url, "--forward", f"{FORWARD}?key=hunter2") == 0
    out = capsys.readouterr().out
    assert f"> X-Cagent-Forward: {FORWARD}?...\n" in out
    assert "hunter2" not in out


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("Refresh", "0; url=https://u:pw@g.example/?code=pw", "0; url=https://***@g.example/?..."),
        ("Link", "<https://u:pw@g.example/?code=pw>; rel=next", "<https://***@g.example/?..."),
        ("Content-Location", "/answers?code=pw#pw", "/answers?..."),
        ("X-Secret-Name", "pw", "***"),
        ("X-Api-Key", "pw", "***"),
        ("X-Token", "pw", "***"),
        ("Set-Cookie", "pw", "***"),
        ("WWW-Authenticate", "pw", "***"),
        ("X-Session", "not-secret", "not-secret"),
    ],
)
def test_secrets_of_the_gateway_are_masked(capsys, name, value, shown):
    with Server(lambda request: response(headers={name: value})) as server:
        assert probe(server.origin, "--forward", FORWARD) == 0
    assert f"< {name}: {shown}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("hunter/2", rb"hunter\/2"),  # PHP's JSON
        ("hunter&2", rb"hunter\u00262"),  # Go's JSON
        ("h\xfcnter&2", b"h\xc3\xbcnter\\u00262"),
        ("hunter&2", b"hunter&amp;2"),
        ("hunter'2", b"hunter&#39;2"),
        ("hunter/+2", b"hunter/%2B2"),
        ("hunter/+2", b"hunter%2f%2b2"),
        ("hunter-\xfc", b"hunter-\xfc"),
        ("hunt+er=/2", rb"hunt\u002Ber=/2"),  # .NET's JSON
        ("hunt+er=/2", rb"hunt+er\u003d/2"),  # Gson's
        ("hunt+er=/2", b"hunt+er&#x3D;&#x2F;2"),  # Handlebars'
        ("hunter'2", b"hunter&apos;2"),  # XML's
        ("h@nter!2", b"h%40nter!2"),  # JavaScript's
        ("hunt~er2", b"hunt%7Eer2"),  # Java's
        ("hun ter 2", b"hun+ter+2"),
        ("hunter/+2", b"hunter%252F%252B2"),  # a URL in a query
        ("hunter/&2", rb"hunter\/\u0026amp;2"),  # HTML in JSON
        ("hun\\ter2", rb"hun\\ter2"),
        ("hun=ter2", rb"hun\x3dter2"),  # JavaScript's
        ("hun\xfcter2", rb"hun\xc3\xbcter2"),  # Python's bytes
        ('hun"ter2', b"hun&quotter2"),
        ("hun\xe9\xfcter2", b"hun%C3%A9%c3%bcter2"),
    ],
)
def test_secrets_as_other_languages_spell_them_are_masked(capsys, secret, said):
    with Server(lambda request: response(body=said)) as server:
        assert probe(server.origin, "--forward", FORWARD, "--header", f"X-Any: {secret}") == 0
    assert "\n***\n" in capsys.readouterr().out


def test_secret_with_a_character_beyond_unicodes_first_plane_is_masked(capsys):
    answer = response(body=rb"hunter\ud83d\ude00")
    with Server(lambda request: answer) as server:
        assert probe(f"{server.origin}/?key=hunter%F0%9F%98%80", "--forward", FORWARD) == 0
    assert "\n***\n" in capsys.readouterr().out


@pytest.mark.parametrize("around", [("100%", ""), ("C:\\", ""), ("&", ";")])
def test_secret_next_to_what_begins_an_escape_is_masked(capsys, around):
    said = around[0] + "4fhunter2" + around[1]
    with Server(lambda request: response(body=said.encode())) as server:
        assert probe(server.origin, "--forward", FORWARD, "--header", "X-Any: 4fhunter2") == 0
    assert "hunter" not in capsys.readouterr().out


def test_question_marks_are_shown(capsys):
    with Server(lambda request: response(body=b"what??????")) as server:
        assert probe(f"{server.origin}/?key={'%E2%82%AC' * 6}", "--forward", FORWARD) == 0
    assert "\nwhat??????\n" in capsys.readouterr().out


@pytest.mark.parametrize("secret", ["hunter/2", 'hunter"2', "hunter-\xfc"])
def test_secrets_in_another_spelling_are_masked(capsys, recording_gateway, secret):
    recording_gateway.respond = lambda request: {"saw": secret}
    assert probe(recording_gateway.url, "--forward", FORWARD, "--header", f"X-Any: {secret}") == 0
    assert '{"saw": "***"}' in capsys.readouterr().out
