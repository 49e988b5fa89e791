"""A chat endpoint on this machine that answers, and misbehaves as it is told."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

KEY = "sk-secret-0123456789"


@dataclass(frozen=True)
class Asked:
    """A request as it came: `width` of its picture names the picture."""

    width: int
    height: int
    prompt: str
    headers: dict[str, str]
    body: dict[str, Any]
    time: float


@dataclass
class Server:
    """What it was asked, and how it behaves: by the picture's width, a behaviour for each request.

    A behaviour sends an answer through the handler; where none is left `answer` is the one.
    """

    url: str = ""
    seen: list[Asked] = field(default_factory=list)
    script: dict[int, list[Callable[[Handler], None]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    answer: Callable[[Asked], str] = field(default=lambda asked: caption(asked.width))
    delay: float = 0.0
    under_way: int = 0
    most_under_way: int = 0

    def widths(self) -> list[int]:
        return [asked.width for asked in self.seen]


def caption(width: int) -> str:
    return json.dumps({"Caption": f"A picture {width} pixels wide."})


def pairs(*given: tuple[str, str]) -> str:
    return json.dumps({"Pairs": [{"Query": q, "Answer": a} for q, a in given]})


def completion(content: Any, finish: str = "stop", **message: Any) -> bytes:
    """The body of an answer; 100 tokens sent and 20 answered."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": content} | message,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: Server
    asked: Asked

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = body["messages"][0]["content"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        width, height = Image.open(io.BytesIO(data)).size
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked = Asked(width, height, text["text"], headers, body, time.monotonic())
        told = self.server_
        told.seen.append(self.asked)
        told.under_way += 1
        told.most_under_way = max(told.most_under_way, told.under_way)
        time.sleep(told.delay)
        told.under_way -= 1
        script = told.script[width]
        if script:
            script.pop(0)(self)
        else:
            self.send(200, completion(told.answer(self.asked)))

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def status(code: int, message: str = "no", error_code: str = "", **headers: str) -> Any:
    error = {"error": {"message": message, "code": error_code}}
    return lambda handler: handler.send(code, json.dumps(error).encode(), **headers)


def body(data: bytes) -> Any:
    return lambda handler: handler.send(200, data)


def says(content: Any, finish: str = "stop", **message: Any) -> Any:
    return body(completion(content, finish, **message))


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def half(handler: Handler) -> None:
    """The connection is closed in the middle of the answer."""
    data = completion(caption(handler.asked.width))
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then, for longer than anybody waits."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(400):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


@contextmanager
def serving() -> Iterator[Server]:
    told = Server()
    handler = type("Bound", (Handler,), {"server_": told})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who was hung up on
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


def write_pictures(folder: Path, widths: list[int]) -> Path:
    """Pictures whose width is their name, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in widths:
        Image.new("RGB", (width, 40), (width % 256, 90, 200)).save(folder / f"{width:04}.png")
    return folder
