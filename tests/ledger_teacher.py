"""A teacher on loopback that bills every generation in a file, and misbehaves on request.

It answers deterministically from the request. Faults are chosen per request by its own hash and
by how often it was asked, so that a disturbed run can be compared with an undisturbed one.

    with ledger_teacher(folder, delay=0.05, fault="status:500", share=0.5) as teacher:
        teacher.base_url, teacher.billed()
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

SYLLABLES = [first + last for first in "bdfgklmnprst" for last in "aeiou"]


def answer_text(prompt: str, words: int = 110) -> str:
    """Made-up words in sentences that pass the shipped rules; a function of the prompt alone."""
    chance = random.Random(prompt)
    made = ["".join(chance.choices(SYLLABLES, k=3)) for _ in range(words)]
    sentences = [" ".join(made[n : n + 11]) for n in range(0, words, 11)]
    return "We will measure this. " + " ".join(f"{text.capitalize()}." for text in sentences)


def completion(body: dict[str, Any]) -> dict[str, Any]:
    text = answer_text(body["messages"][-1]["content"])
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "model": body["model"], "choices": [choice], "usage": usage}


class Server:
    """`fault`: status:CODE, html, empty, no_choices, cut, hang, or none; first time only unless
    `always`; `share` of the requests, chosen by their hash."""

    def __init__(self, ledger: Path, delay: float, fault: str, share: float, always: bool) -> None:
        self.ledger, self.delay, self.fault = ledger, delay, fault
        self.share, self.always = share, always
        self.asked: Counter[str] = Counter()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        key = hashlib.sha256(raw).hexdigest()
        self.asked[key] += 1
        await asyncio.sleep(self.delay)
        hit = int(key[:8], 16) / 2**32 < self.share and (self.always or self.asked[key] == 1)
        kind, _, value = self.fault.partition(":") if hit else ("none", "", "")
        if kind == "status":
            said = {"error": {"message": f"scripted {value}", "code": os.environ.get("CODE", "")}}
            return web.json_response(said, status=int(value), headers={"Retry-After": "0"})
        self._bill(key)
        if kind == "hang":
            await asyncio.sleep(3600)
        if kind == "cut":
            return await self._cut(request)
        bodies = {"html": "<html>busy</html>", "empty": "", "no_choices": '{"choices": null}'}
        text = bodies.get(kind) if kind in bodies else json.dumps(completion(json.loads(raw)))
        return web.Response(text=text, content_type="application/json")

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "5000"})
        await response.prepare(request)
        await response.write(b'{"choices": [{"mess')
        if request.transport:
            request.transport.close()
        return response

    def _bill(self, key: str) -> None:
        with self.ledger.open("a") as file:
            file.write(key + "\n")


@dataclass
class Teacher:
    base_url: str
    ledger: Path
    process: subprocess.Popen[bytes]

    def billed(self) -> Counter[str]:
        """Request hash -> number of generations billed."""
        return Counter(self.ledger.read_text().split() if self.ledger.exists() else [])


@contextlib.contextmanager
def ledger_teacher(
    folder: Path, *, delay: float = 0.0, fault: str = "none", share: float = 1.0,
    always: bool = False, port: int = 0,
) -> Iterator[Teacher]:  # fmt: skip
    """A running server in a process of its own; the ledger is `folder`/ledger.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / f"port-{time.monotonic_ns()}"
    ledger = folder / "ledger.txt"
    command = [sys.executable, __file__, str(ledger), str(ready), str(delay), fault, str(share)]
    process = subprocess.Popen([*command, str(int(always)), str(port)])
    try:
        deadline = time.monotonic() + 30
        while not (ready.exists() and ready.read_text().endswith("\n")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the ledger teacher did not start")
            time.sleep(0.02)
        yield Teacher(f"http://127.0.0.1:{ready.read_text().strip()}/v1", ledger, process)
    finally:
        process.kill()
        process.wait()


async def serve(arguments: argparse.Namespace) -> None:
    server = Server(
        arguments.ledger, arguments.delay, arguments.fault, arguments.share, bool(arguments.always)
    )
    app = web.Application(client_max_size=2**30)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/v1/models", lambda _: _models())
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", arguments.port)
    await site.start()
    address = runner.addresses[0]
    arguments.ready.write_text(f"{address[1]}\n")
    await asyncio.Event().wait()


async def _models() -> web.Response:
    return web.json_response({"data": []})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("ready", type=Path)
    parser.add_argument("delay", type=float)
    parser.add_argument("fault")
    parser.add_argument("share", type=float)
    parser.add_argument("always", type=int)
    parser.add_argument("port", type=int)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
