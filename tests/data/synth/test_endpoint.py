"""One request: what the server may do, and where the key goes."""

import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

import endpoint as served
from endpoint import KEY, Server
from oculi.data.synth import endpoint as module
from oculi.data.synth.endpoint import Endpoint, Response, Unreachable, key_from
from oculi.errors import RecipeError

PIXEL = (
    "data:image/gif;base64,R0lGODdhAQABAIAAAP///////ywAAAAAAQABAAACAkQBADs="
)  # fmt: skip
BODY = {
    "messages": [
        {"content": [{"image_url": {"url": PIXEL}}, {"type": "text", "text": "what?"}]},
    ],
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with served.serving() as told:
        yield told


def test_an_answer_and_what_was_sent(server: Server) -> None:
    found = Endpoint(server.url, KEY).post(BODY)
    assert found.status == 200 and found.whole
    assert found.json()["choices"][0]["message"]["content"] == served.caption(1)
    (asked,) = server.seen
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["content-type"] == "application/json"
    Endpoint(server.url).post(BODY)
    assert "authorization" not in server.seen[1].headers


@pytest.mark.parametrize("end", ["", "/", "/chat/completions", "/chat/completions/"])
def test_the_path_is_completed(end: str) -> None:
    assert Endpoint(f"https://h/v1{end}").url == "https://h/v1/chat/completions"
    assert Endpoint("https://h/v1?a=b").url == "https://h/v1/chat/completions?a=b"


@pytest.mark.parametrize("code", [400, 401, 404, 429, 500, 503])
def test_any_status_is_a_response(server: Server, code: int) -> None:
    server.script[1] = [served.status(code, "because", Retry_After="7")]
    found = Endpoint(server.url).post(BODY)
    assert (found.status, found.json()["error"]["message"]) == (code, "because")
    assert found.retry_after(0) == 7


def test_a_redirect_is_not_followed(server: Server) -> None:
    with served.serving() as other:
        for code in (301, 302, 303, 307, 308):
            server.script[1] = [served.status(code, Location=f"{other.url}/chat/completions")]
            assert Endpoint(server.url, KEY).post(BODY).status == code
        assert other.seen == []


def test_a_connection_that_ends_early(server: Server) -> None:
    server.script[1] = [served.half, served.hang_up]
    with pytest.raises(Unreachable, match="in the middle of the answer"):
        Endpoint(server.url).post(BODY)
    with pytest.raises(Unreachable, match="without an answer"):
        Endpoint(server.url).post(BODY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match="refused"):
        Endpoint(f"http://127.0.0.1:{port}/v1").post(BODY)
    with pytest.raises(Unreachable):
        Endpoint("http://host.invalid/v1", timeout=5).post(BODY)


def test_a_server_that_drips_does_not_hold_us(server: Server) -> None:
    """A byte every 50 ms: no single wait is long, the whole is."""
    server.script[1] = [served.drip]
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"no answer within 0\.3 seconds"):
        Endpoint(server.url, timeout=0.3).post(BODY)
    assert time.monotonic() - began < 15


def test_a_server_that_says_nothing_does_not_hold_us(server: Server) -> None:
    server.delay = 2
    with pytest.raises(Unreachable, match="no answer within"):
        Endpoint(server.url, timeout=0.2).post(BODY)


def test_a_cut_answer_without_a_length_is_none() -> None:
    """Where the end of the connection is the end of the answer, a deadline looks like one."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")
                time.sleep(5)

        threading.Thread(target=serve, daemon=True).start()
        port = listening.getsockname()[1]
        with pytest.raises(Unreachable, match="no answer within"):
            Endpoint(f"http://127.0.0.1:{port}", timeout=0.3).post(BODY)


def test_a_huge_answer_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REPLY", 1000)
    server.script[1] = [served.body(b"x" * 5000), served.body(b"x" * 1000)]
    found = Endpoint(server.url).post(BODY)
    assert not found.whole and len(found.body) == 1000
    assert Endpoint(server.url).post(BODY).whole


def test_garbage_instead_of_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(f"{KEY} \x1b[2J\r\n\r\n".encode())

        threading.Thread(target=serve, daemon=True).start()
        port = listening.getsockname()[1]
        with pytest.raises(Unreachable) as caught:
            Endpoint(f"http://127.0.0.1:{port}", KEY, 5).post(BODY)
    assert KEY not in str(caught.value) and "\x1b" not in str(caught.value)


def test_the_key_is_in_no_text() -> None:
    point = Endpoint("https://h/v1", KEY)
    assert KEY not in repr(point)
    assert point.clean(f"bad key {KEY}\n\x1b[31m") == "bad key *** ?[31m"
    for wrong in ("a\nb", "a\r\nHost: x", "é"):
        with pytest.raises(RecipeError) as caught:
            Endpoint("https://h/v1", wrong)
        assert wrong not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["h/v1", "ftp://h/v1", "https://", "", "file:///etc/passwd", "http://h:port/", "//h"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(RecipeError, match="is no address"):
        Endpoint(address)


def test_a_password_does_not_stand_in_an_address() -> None:
    with pytest.raises(RecipeError) as caught:
        Endpoint(f"https://me:{KEY}@h/v1")
    assert KEY not in str(caught.value)


def test_whether_a_key_can_be_listened_to() -> None:
    assert Endpoint("http://h/v1", KEY).exposed
    for safe in ("https://h/v1", "http://localhost:8000/v1", "http://127.0.0.1/v1"):
        assert not Endpoint(safe, KEY).exposed
    assert not Endpoint("http://h/v1").exposed


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    assert key_from("SOME_KEY") == KEY and key_from(None) is None
    monkeypatch.setenv("SOME_KEY", "")
    with pytest.raises(RecipeError, match='"SOME_KEY" holds no key'):
        key_from("SOME_KEY")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5), ("0", 0), ("1.5", 1.5), ("-3", 0), ("", None), ("soon", None), ("nan", None),
     (formatdate(1030, usegmt=True), 30), (formatdate(900, usegmt=True), 0)],
)  # fmt: skip
def test_retry_after(value: str, seconds: float | None) -> None:
    assert Response(429, {"retry-after": value}, b"").retry_after(1000) == seconds
