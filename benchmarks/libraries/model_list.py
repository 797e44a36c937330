"""The models of a server, status and bytes as received: ours against the openai client, imports included."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.libraries.rounds import run_rounds

CALLS = 50
BODY = json.dumps({"object": "list", "data": [{"id": f"model-{n}", "object": "model"} for n in range(20)]}).encode()
Fetch = Callable[[str], Awaitable[tuple[int | None, bytes]]]


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with BODY."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def load_ours() -> Fetch:
    from nexa_distill.collection.requests.connections import fetch_models
    from nexa_distill.collection.requests.endpoint import Endpoint

    return lambda base_url: fetch_models(Endpoint("p", base_url, "m"))


def load_openai() -> Fetch:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI

    async def fetch_models(base_url: str) -> tuple[int | None, bytes]:
        try:
            async with AsyncOpenAI(base_url=base_url, api_key="none", timeout=30.0, max_retries=0) as client:
                response = await client.models.with_raw_response.list()
                return response.http_response.status_code, response.http_response.content
        except APIStatusError as error:
            return error.response.status_code, error.response.content
        except APIConnectionError as error:
            return None, str(error).encode()

    return fetch_models


async def fetch_once(fetch: Fetch, base_url: str) -> tuple[int | None, bytes]:
    return await fetch(base_url)


def measure(load: Callable[[], Fetch]) -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base_url, started = f"http://127.0.0.1:{server.server_address[1]}/v1", time.perf_counter()
    fetch = load()
    loaded = time.perf_counter()
    for _ in range(CALLS):
        if asyncio.run(fetch_once(fetch, base_url)) != (200, BODY):
            raise RuntimeError("not the list of models")
    called = (time.perf_counter() - loaded) / CALLS
    return f"imports {loaded - started:.2f} s, a call with its client {called * 1000:.1f} ms"


if __name__ == "__main__":
    contenders = {"ours": lambda: measure(load_ours), "openai": lambda: measure(load_openai)}
    run_rounds("benchmarks.libraries.model_list", contenders)
