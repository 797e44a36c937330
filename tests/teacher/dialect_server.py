"""A chat-completions server on loopback that a test scripts with a function, and what it was sent.

with serving(lambda asked: completion("Yes.")) as server:
    server.base_url, server.asked
"""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nexa_distill import collect_teacher
from nexa_distill.collection.collector import CollectionSummary
from tests.support.workspace import Workspace, workspace
from tests.teacher.faults import prompts, put

Json = dict[str, Any]
TEXT = "We measure the temperature of the water at ten places and compare the means."
PRICES = {"mock-1": {"prompt": 1.0, "completion": 10.0}}


@dataclass(frozen=True)
class Asked:
    """One request as it arrived. `number` counts from 0, `seconds` from the first."""

    number: int
    seconds: float
    path: str
    headers: Mapping[str, str]
    body: Json


@dataclass(frozen=True)
class Response:
    """`body`: bytes as they are, anything else as JSON. `closes` without announcing it."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    closes: bool = False


def completion(text: str | None = TEXT, finish: str | None = "stop", **more: Any) -> Response:
    """An answer; `usage` and `message` replace those of OpenAI's form, None takes the usage out."""
    usage = more.pop("usage", {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70})
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    body = {"id": "x", "model": "mock-1", "choices": [choice], "usage": usage}
    return Response(body={name: value for name, value in body.items() if value}, **more)


def refusal(status: int, message: str, **error: Any) -> Response:
    """An error in OpenAI's form."""
    return Response(status, {"error": {"message": message, **error}})


def stream(*chunks: Any, done: bool = True) -> Response:
    """Server-sent events, one per chunk."""
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    text = "".join(lines) + ("data: [DONE]\n\n" if done else "")
    return Response(body=text.encode(), kind="text/event-stream; charset=utf-8")


def delta(finish: str | None = None, **fields: Any) -> Json:
    """One chunk of a stream."""
    return {"model": "mock-1", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


@dataclass
class Server:
    """Running. `connections`: how many were opened."""

    base_url: str
    asked: list[Asked]
    connections: list[int]


@contextmanager
def serving(
    answer: Callable[[Asked], Response], *, port: int = 0, idle_seconds: float | None = None,
    certificate: Path | None = None, models: Sequence[str] = ("mock-1",),
) -> Iterator[Server]:  # fmt: skip
    """`idle_seconds`: after so long without a request a connection is closed. A `certificate`
    (PEM, with its key) makes it https. An answer that raises closes the connection.
    """
    asked: list[Asked] = []
    connections: list[int] = []
    lock, start = threading.Lock(), list[float]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = idle_seconds

        def setup(self) -> None:
            connections.append(self.client_address[1])
            super().setup()

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

        def do_GET(self) -> None:
            self.answer(Response(body={"data": [{"id": name} for name in models]}))

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                headers = dict(self.headers.items())
                start.append(time.monotonic())
                one = Asked(len(asked), start[-1] - start[0], self.path, headers,
                            json.loads(raw))  # fmt: skip
                asked.append(one)
            self.answer(answer(one))

        def answer(self, said: Response) -> None:
            body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
            self.send_response(said.status)
            headers = {"Content-Type": said.kind, "Content-Length": str(len(body)), **said.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            if said.closes:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if certificate else "http"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Server(f"{scheme}://127.0.0.1:{server.server_address[1]}/v1", asked, connections)
    finally:
        server.shutdown()
        server.server_close()


def teacher_workspace(folder: Path, base_url: str, *, provider: Json | None = None, **changes: Any) -> Workspace:
    """A workspace whose provider `vllm` is the server at `base_url`."""
    settings = {"base_url": base_url, "model": "mock-1", "regen_model": "mock-1",
                "startup_wait_seconds": 0.0, "prices": PRICES, **(provider or {})}  # fmt: skip
    return workspace(folder, providers={"vllm": settings}, **changes)


def collect(made: Workspace, count: int = 4, **options: Any) -> CollectionSummary | None:
    """The teacher stage in this process, over `count` prompts."""
    return collect_teacher.run(made.load(), put(made, prompts(count)), **options)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was printed since the last call."""
    return lambda: capsys.readouterr().out
