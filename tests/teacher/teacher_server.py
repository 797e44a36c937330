"""The ledger teacher's process: bills, limits, disturbs.

Run: python -m tests.teacher.teacher_server JSON
"""

import asyncio
import contextlib
import fnmatch
import hashlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from tests.teacher.teacher_answers import ODD_BODIES, OTHER_MODEL, Json, choice_count, completion, encode, unsupported
from tests.teacher.teacher_batches import Batches, refused
from tests.teacher.teacher_faults import DELIVERIES, NO_STATUS, Bucket, reset, retry_headers, whole
from tests.teacher.teacher_script import Fault, Script, parse

CHAT = "/v1/chat/completions"
NONE = Fault()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def body_key(body: Json) -> str:
    """How the ledger names a request of a batch: the hash of its body's compact JSON."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Server:
    """One file each for generations, requests and batches, opened for appending only."""

    def __init__(self, folder: Path, script: Script) -> None:
        self.script = script
        self.faults = [parse(text) for text in script.fault_texts()]
        self.asked: Counter[str] = Counter()
        self.answers = 0
        self.first: float | None = None  # monotonic time of the first chat completion
        self.ledger, self.sends = (_append(folder / n) for n in ("ledger.txt", "sends.jsonl"))
        rate, burst = script.rate, script.burst or script.rate
        self.bucket = Bucket(rate, burst, script.halve_after) if rate and burst else None
        self.batches = Batches(
            folder, self.complete_line, delay=script.batch_delay, fault=script.batch_fault,
            always=script.always,
        )  # fmt: skip

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**30, middlewares=[self.other_addresses])
        app.add_routes([web.post(CHAT, self.chat), web.get("/v1/models", self.models)])
        app.add_routes(self.batches.routes())
        return app

    async def chat(self, request: web.Request) -> web.StreamResponse:
        if self._resets_everything():
            self._record(request, None, Fault("reset_before"))
            return await reset(request)
        raw = await request.read()
        key = hashlib.sha256(raw).hexdigest()
        seconds = self._seconds()
        if self.bucket and (wait := self.bucket.take(seconds)):
            return self._limited(request, key, wait)
        body = json.loads(raw)
        if lacking := unsupported(body, self.script.capabilities):
            self._record(request, key, Fault("unsupported", "400"))
            return refused(f"{lacking} is not supported")
        fault = self._choose(key, body, seconds)
        headers = self._record(request, key, fault)
        await asyncio.sleep(self.script.delay)

        async def answer(_: web.Request) -> web.StreamResponse:
            return await whole(request, encode(self._complete(body, key)))

        return await self._disturbed(request, fault, headers, answer)

    @web.middleware
    async def other_addresses(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """`api_faults` for everything but chat completions, which follow a rule of their own."""
        if request.path == CHAT:
            return await handler(request)
        name = f"{request.method} {request.path}"
        self.asked[name] += 1
        found = [t for p, t in self.script.api_faults.items() if fnmatch.fnmatch(name, p)]
        strikes = found and (self.script.always or self.asked[name] <= self.script.times)
        fault = parse(found[0]) if strikes else NONE
        headers = self._record(request, None, fault)
        return await self._disturbed(request, fault, headers, handler)

    async def models(self, _: web.Request) -> web.StreamResponse:
        if "models" not in self.script.capabilities:
            return refused("there is no list of models", status=404)
        names = ["ledger-teacher", *self.script.models]
        data = [{"id": n, "object": "model", "created": 0, "owned_by": "tests"} for n in names]
        return web.json_response({"object": "list", "data": data})

    def complete_line(self, body: Json) -> tuple[int, Json]:
        """One request of a batch: status and body."""
        if lacking := unsupported(body, self.script.capabilities):
            return 400, {"error": {"message": f"{lacking} is not supported"}}
        return 200, self._complete(body, body_key(body))

    def _complete(self, body: Json, key: str) -> Json:
        """Generate: each choice is billed before anything of it is sent."""
        os.write(self.ledger, f"{key}\n".encode() * choice_count(body))
        self.answers += 1
        answer = completion(body, key, self.script.capabilities, self.script.says)
        swap = self.script.swap_after
        return answer | (OTHER_MODEL if swap is not None and self.answers > swap else {})

    async def _disturbed(
        self, request: web.Request, fault: Fault, headers: dict[str, str], handler: Handler
    ) -> web.StreamResponse:
        if fault.kind == "status":
            return _refusal(fault, f"scripted {fault.value}", self.script.code, headers)
        if fault.kind == "reset_before":
            return await reset(request)
        response = await handler(request)
        body = response.body if isinstance(response, web.Response) else None
        if fault.kind == "none" or response.status != 200 or not isinstance(body, bytes):
            return response
        if fault.kind in ODD_BODIES:
            return await whole(request, encode(ODD_BODIES[fault.kind](json.loads(body))))
        with contextlib.suppress(ConnectionError):  # the client has left meanwhile
            return await DELIVERIES[fault.kind](request, body, fault.value)
        return web.Response()

    def _choose(self, key: str, body: Json, seconds: float) -> Fault:
        script = self.script
        self.asked[key] += 1
        asked = self.asked[key]
        strikes = int(key[:8], 16) / 2**32 < script.share
        strikes = strikes and (script.always or asked <= script.times)
        calm = script.waves is not None and seconds // script.waves % 2 == 1
        if not strikes or calm:
            return NONE
        fault = self.faults[(int(key[8:16], 16) + asked) % len(self.faults)]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or math.inf
        large_enough = fault.kind == "length" and fault.value and limit > int(fault.value)
        swaps = fault.kind == "other_model" and script.swap_after is not None  # by count instead
        return NONE if large_enough or swaps else fault

    def _resets_everything(self) -> bool:
        """Then a request need not be read to know whether it is meant."""
        every = self.script.always and self.script.share >= 1 and self.script.waves is None
        return every and {fault.kind for fault in self.faults} == {"reset_before"}

    def _limited(self, request: web.Request, key: str, wait: float) -> web.Response:
        fault = Fault("rate", "429")
        headers = self._record(request, key, fault, str(max(1, math.ceil(wait))))
        return _refusal(fault, "too many requests", "rate_limit_exceeded", headers)

    def _record(self, request: web.Request, key: str | None, fault: Fault, auto: str = "0") -> dict[str, str]:
        """Write down what is about to happen; the headers of a refusal."""
        script, headers = self.script, {}
        if fault.kind in ("status", "rate"):
            headers = retry_headers(script.retry_after, script.retry_after_ms, auto)
        line = {
            "at": time.time(), "monotonic": time.monotonic(), "method": request.method,
            "path": request.path, "key": key, "fault": fault.kind, "status": _status(fault),
            "retry_after": headers.get("Retry-After"),
            "authorization_present": "Authorization" in request.headers,
        }  # fmt: skip
        os.write(self.sends, json.dumps(line).encode() + b"\n")
        return headers

    def _seconds(self) -> float:
        now = time.monotonic()
        self.first = now if self.first is None else self.first
        return now - self.first


def _status(fault: Fault) -> int | None:
    if fault.kind in ("status", "rate", "unsupported"):
        return int(fault.value)
    return None if fault.kind in NO_STATUS else 200


def _refusal(fault: Fault, said: str, code: str, headers: dict[str, str]) -> web.Response:
    error = {"message": said, "type": code or None, "param": None, "code": code or None}
    return web.json_response({"error": error}, status=int(fault.value), headers=headers)


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


async def serve(folder: Path, ready: Path, port: int, script: Script) -> None:
    runner = web.AppRunner(Server(folder, script).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    ready.write_text(f"{runner.addresses[0][1]}\n")
    await asyncio.Event().wait()


def main() -> None:
    given = json.loads(sys.argv[1])
    script = Script(**given["script"])
    asyncio.run(serve(Path(given["folder"]), Path(given["ready"]), given["port"], script))


if __name__ == "__main__":
    main()
