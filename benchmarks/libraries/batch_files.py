"""Files of a batch, 200 MB up and 200 MB down, and 300 looks at a batch: ours against the openai client."""

import asyncio
import contextlib
import importlib
import multiprocessing
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from aiohttp import web

from benchmarks.libraries.rounds import run_rounds

PART, PARTS, LOOKS = b"z" * 99_999 + b"\n", 2000, 300
PORT = 18_765
Step = Callable[[], Awaitable[Any]]


def serve() -> None:
    async def take_file(request: web.Request) -> web.Response:
        async for _ in request.content.iter_any():
            pass
        return web.json_response({"id": "f"})

    async def send_content(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(PARTS):
            await response.write(PART)
        return response

    async def send_batch(_: web.Request) -> web.Response:
        return web.json_response({"id": "b", "status": "in_progress", "request_counts": {"completed": 3}})

    app = web.Application(client_max_size=2**40)
    app.add_routes(
        [
            web.post("/v1/files", take_file),
            web.get("/v1/files/f/content", send_content),
            web.get("/v1/batches/b", send_batch),
        ]
    )
    web.run_app(app, host="127.0.0.1", port=PORT, print=None)


@contextlib.asynccontextmanager
async def open_ours(up: Path, down: Path) -> AsyncIterator[tuple[Step, Step, Step]]:
    from nexa_distill.collection.batch.api import BatchApi
    from nexa_distill.collection.requests.endpoint import Endpoint

    async with BatchApi(Endpoint("p", f"http://127.0.0.1:{PORT}/v1", "m"), 60.0, 1) as api:
        yield lambda: api.upload_file(up), lambda: api.download_file("f", down), lambda: api.get_batch("b")


@contextlib.asynccontextmanager
async def open_openai(up: Path, down: Path) -> AsyncIterator[tuple[Step, Step, Step]]:
    openai = importlib.import_module("openai")

    async def upload_file() -> None:
        with up.open("rb") as file:
            await client.files.create(file=(up.name, file, "application/jsonl"), purpose="batch")

    async def download_file() -> None:
        async with client.files.with_streaming_response.content("f") as response:
            with down.open("wb") as out:
                async for part in response.iter_bytes():
                    out.write(part)

    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="k", max_retries=0) as client:
        yield upload_file, download_file, lambda: client.batches.retrieve("b")


async def measure_steps(open_client: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        up, down = Path(folder) / "up.jsonl", Path(folder) / "down.jsonl"
        with up.open("wb") as file:
            file.writelines(PART for _ in range(PARTS))
        started = [time.perf_counter()]
        async with open_client(up, down) as (upload, download, look):
            started.append(time.perf_counter())
            for step, times in ((upload, 1), (download, 1), (look, LOOKS)):
                for _ in range(times):
                    await step()
                started.append(time.perf_counter())
    opened, sent, received, looked = (after - before for before, after in pairwise(started))
    return f"open {opened:.2f} s, up {sent:.2f} s, down {received:.2f} s, a look {looked / LOOKS * 1000:.2f} ms"


def measure(open_client: Any) -> str:
    server = multiprocessing.get_context("spawn").Process(target=serve, daemon=True)
    server.start()
    time.sleep(3)
    try:
        return asyncio.run(measure_steps(open_client))
    finally:
        server.terminate()


if __name__ == "__main__":
    clients = {"ours": lambda: measure(open_ours), "openai": lambda: measure(open_openai)}
    run_rounds("benchmarks.libraries.batch_files", clients)
