"""One request to an OpenAI-compatible chat endpoint, over the standard library's HTTP.

The server may do anything: each request ends at a deadline, takes a bounded answer, follows no
redirect, and what the server says is cleaned of the key before anybody sees it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from oculi.errors import RecipeError, shown

MAX_REPLY: Final = 4 * 2**20  # bytes; the longest reply asked for takes a few thousand
_PATH: Final = "/chat/completions"
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class Unreachable(Exception):
    """No whole answer came; another try may help. The message says what happened."""


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: status, headers by lower-case name, and the body, at most `MAX_REPLY` bytes.

    `whole` is False where there would have been more.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True

    def retry_after(self, now: float) -> float | None:
        """Seconds to wait as Retry-After says, by seconds or date; None without a valid one.

        Args:
            now: seconds since the epoch.
        """
        value = self.headers.get("retry-after", "").strip()
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - now
            except (ValueError, TypeError, OverflowError):
                return None
        return max(0.0, seconds) if seconds == seconds else None

    def json(self) -> Any:
        """The body's value, or None when it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True)
class Endpoint:
    """An address, a key and a time limit.

    Args:
        base: as https://api.example.com/v1; `/chat/completions` is added where it is missing.
        key: sent as a bearer token, and nowhere else; None: nothing is.
        timeout: seconds for a whole request.

    Raises:
        RecipeError: the address is none, or the key cannot stand in a header.
    """

    base: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0

    def __post_init__(self) -> None:
        parts = _split(self.base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RecipeError(f"{shown(self.base)} is no address: give one as https://HOST/v1")
        if parts.username is not None or parts.password is not None:
            raise RecipeError("the endpoint's address holds a password: use --key-env instead")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise RecipeError("the key holds characters that no key has, as a line break")

    @cached_property
    def url(self) -> str:
        """Where requests go."""
        parts = _split(self.base)
        path = parts.path.rstrip("/")
        return parts._replace(path=path if path.endswith(_PATH) else path + _PATH).geturl()

    @property
    def exposed(self) -> bool:
        """Whether the key goes to another machine unencrypted."""
        parts = _split(self.base)
        return self.key is not None and parts.scheme == "http" and parts.hostname not in _LOCAL

    def post(self, body: Mapping[str, Any]) -> Response:
        """Send one request and return what came, whatever its status.

        Raises:
            Unreachable: the connection failed, was closed before the end, or the time is over.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "oculi"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        deadline = _Deadline(self.timeout)
        opener = urllib.request.build_opener(
            _Http(deadline), _Https(deadline, self._tls), _NoRedirect()
        )
        try:
            with deadline, _open(opener, request, self.timeout) as response:
                found = _read(response)
            if deadline.over:  # cut off, what came may look whole
                raise TimeoutError
            return found
        except (OSError, http.client.HTTPException) as error:
            inner = error.reason if isinstance(error, URLError) else error
            if deadline.over or isinstance(inner, TimeoutError):  # the socket's limit is the same
                raise Unreachable(f"no answer within {self.timeout:g} seconds") from None
            raise Unreachable(self.clean(_reason(error))) from None

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def clean(self, text: str, limit: int = 300) -> str:
        """What a server said, in one line, shortened, and without the key."""
        text = " ".join(self.without_key(text).split())
        return "".join(c if c.isprintable() else "?" for c in text)[:limit]

    def without_key(self, text: str) -> str:
        """The text with *** where the key stood."""
        return text.replace(self.key, "***") if self.key else text


def _split(address: str) -> Any:
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises where it is no number
    except ValueError:
        raise RecipeError(f"{shown(address)} is no address: give one as https://HOST/v1") from None
    return parts


def key_from(variable: str | None) -> str | None:
    """The key in an environment variable; raises RecipeError when it is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RecipeError(
            f"the environment variable {shown(variable)} holds no key: export it first"
        )
    return key


class _Deadline:
    """Cuts a request's connection when its time is over.

    A socket's own timeout begins anew with every byte, so a server that drips would hold it for ever.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def watch(self, connection: socket.socket) -> None:
        self._socket = connection
        if self.over:  # it took its time to connect
            self._end()

    def _end(self) -> None:
        self.over = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _watched(kind: Any, deadline: _Deadline, host: str, **settings: Any) -> Any:
    """A connection that its deadline knows of as soon as it is there."""
    connection = kind(host, **settings)
    connect = connection.connect

    def watched() -> None:
        connect()
        deadline.watch(connection.sock)

    connection.connect = watched
    return connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._connection = partial(_watched, http.client.HTTPConnection, deadline)

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline, context: ssl.SSLContext) -> None:
        super().__init__()
        self._connection = partial(_watched, http.client.HTTPSConnection, deadline)
        self._tls = context

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req, context=self._tls)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the address that the user gave, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _open(opener: Any, request: urllib.request.Request, timeout: float) -> Any:
    try:
        return opener.open(request, timeout=timeout)
    except HTTPError as error:  # any status but 2xx: it has a body, as others have
        return error


def _read(response: Any) -> Response:
    headers = {name.lower(): value for name, value in response.headers.items()}
    body: bytes = response.read(MAX_REPLY + 1)
    length = headers.get("content-length", "")
    # Of a body cut short, read(n) says nothing.
    if len(body) <= MAX_REPLY and length.isdecimal() and len(body) < int(length):
        raise http.client.IncompleteRead(body)
    return Response(response.status, headers, body[:MAX_REPLY], len(body) <= MAX_REPLY)


def _reason(error: BaseException) -> str:
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was closed in the middle of the answer"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError):
        return "the server closed the connection without an answer"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
