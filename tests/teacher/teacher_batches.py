"""The ledger teacher's Batch API: files, batches, and what can go wrong with them.

Source of the format: OpenAI's Batch API (https://platform.openai.com/docs/api-reference/batch).
Files and batches live as long as the process. Not covered: other endpoints than chat completions,
size limits, deleting files.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.teacher.teacher_answers import Json, encode

ENDPOINT = "/v1/chat/completions"
Lines = list[Json]


def _without_thirds(lines: Lines) -> Lines:
    return [line for n, line in enumerate(lines) if n % 3]


def _first_half(lines: Lines) -> Lines:
    return lines[: (len(lines) + 1) // 2]


# Which requests are generated, and billed, at all; what becomes of the others; and how the file of
# answers is spoilt afterwards. `failed` and `stuck` concern the batch as a whole.
GENERATED: dict[str, Callable[[Lines], Lines]] = {
    "missing": _without_thirds,
    "error_file": _without_thirds,
    "half_expired": _first_half,
    "stuck": _first_half,
    "failed": lambda _: [],
}
SPOILT: dict[str, Callable[[Lines], Lines]] = {
    "shuffled": lambda lines: lines[::-1],
    "duplicated": lambda lines: lines + lines[::3],
    "unknown_id": lambda lines: lines + [line | {"custom_id": "unasked"} for line in lines[:1]],
}
BATCH_FAULTS = {"none", *GENERATED, *SPOILT}


def _expired(line: Json, _: int) -> Json:
    said = "This request could not be executed before the completion window expired."
    return _line(line, None, {"code": "batch_expired", "message": said})


def _failed(line: Json, n: int) -> Json:
    status = (400, 500)[n % 2]
    return _line(line, (status, {"error": {"message": f"scripted {status}", "code": None}}))


LEFT_OVER: dict[str, Callable[[Json, int], Json]] = {"half_expired": _expired, "error_file": _failed}


def _line(asked: Json, response: tuple[int, Json] | None, error: Json | None = None) -> Json:
    """One line of an output or error file."""
    made: Json = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": asked["custom_id"]}
    if response:
        status, body = response
        made["response"] = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
    return {"response": None} | made | {"error": error}


class Batches:
    """`complete` bills a request and returns status and body. A batch takes `delay` seconds.

    `fault` strikes the first batch, or every one with `always`.
    """

    def __init__(
        self, folder: Path, complete: Callable[[Json], tuple[int, Json]], *, delay: float,
        fault: str, always: bool,
    ) -> None:  # fmt: skip
        self.created, self.complete = folder / "batches.txt", complete
        self.delay, self.fault, self.always = delay, fault, always
        self.files: dict[str, tuple[Json, bytes]] = {}
        self.batches: dict[str, Json] = {}
        self.running: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/files", self.upload),
            web.get("/v1/files/{id}", self.file),
            web.get("/v1/files/{id}/content", self.content),
            web.post("/v1/batches", self.create),
            web.get("/v1/batches", self.listing),
            web.get("/v1/batches/{id}", self.batch),
            web.post("/v1/batches/{id}/cancel", self.cancel),
        ]

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        sent = form.get("file")
        if not isinstance(sent, web.FileField) or form.get("purpose") != "batch":
            return refused("expected multipart/form-data with purpose=batch and a file")
        return web.json_response(self._store(sent.file.read(), "batch", sent.filename))

    async def file(self, request: web.Request) -> web.Response:
        found = self.files.get(request.match_info["id"])
        return web.json_response(found[0]) if found else _not_found(request)

    async def content(self, request: web.Request) -> web.Response:
        found = self.files.get(request.match_info["id"])
        return web.Response(body=found[1]) if found else _not_found(request)

    async def create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked.get("input_file_id") not in self.files:
            return refused(f"no such file: {asked.get('input_file_id')}")
        if (asked.get("endpoint"), asked.get("completion_window")) != (ENDPOINT, "24h"):
            return refused(f"expected endpoint {ENDPOINT} and completion_window 24h")
        fault = self.fault if self.always or not self.batches else "none"
        batch = self._new(asked)
        with self.created.open("a") as file:
            file.write(batch["id"] + "\n")
        task = asyncio.create_task(self._run(batch, fault))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return web.json_response(batch)

    async def batch(self, request: web.Request) -> web.Response:
        found = self.batches.get(request.match_info["id"])
        return web.json_response(found) if found else _not_found(request)

    async def listing(self, request: web.Request) -> web.Response:
        """Newest first; `after` is the id of the last batch of the page before."""
        newest = list(self.batches.values())[::-1]
        ids = [batch["id"] for batch in newest]
        after = request.query.get("after")
        start = ids.index(after) + 1 if after in ids else 0
        limit = int(request.query.get("limit", 20))
        page = newest[start : start + limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        more = start + limit < len(newest)
        return web.json_response({"object": "list", "data": page, "has_more": more} | ends)

    async def cancel(self, request: web.Request) -> web.Response:
        found = self.batches.get(request.match_info["id"])
        if not found:
            return _not_found(request)
        if found["status"] not in ("validating", "in_progress"):
            return refused(f"a batch that is {found['status']} cannot be cancelled")
        _move(found, "cancelling")
        return web.json_response(found)

    def _new(self, asked: Json) -> Json:
        now = int(time.time())
        batch = {
            "id": f"batch_{uuid.uuid4().hex}", "object": "batch", "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"], "errors": None, "status": "validating",
            "completion_window": "24h", "created_at": now, "expires_at": now + 24 * 3600,
            "metadata": asked.get("metadata"), "output_file_id": None, "error_file_id": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }  # fmt: skip
        return self.batches.setdefault(batch["id"], batch)

    async def _run(self, batch: Json, fault: str) -> None:
        """validating, in_progress, finalizing and an end; tenths of `delay`: 1, 8 and 1.

        A batch that is cancelled goes on to its end at once.
        """
        await _pause(batch, self.delay / 10)
        lines, errors = read_lines(self.files[batch["input_file_id"]][1])
        if fault == "failed":
            said = "Enqueued token limit reached for ledger-teacher."
            errors = [{"code": "token_limit_exceeded", "message": said, "line": None}]
        if errors:
            batch["errors"] = {"object": "list", "data": errors}
            return _move(batch, "failed")
        batch["request_counts"]["total"] = len(lines)
        _move(batch, "in_progress")
        made = await self._generate(batch, GENERATED.get(fault, list)(lines))
        while fault == "stuck" and batch["status"] != "cancelling":
            await asyncio.sleep(0.02)
        ended = "expired" if fault == "half_expired" else "completed"
        ended = "cancelled" if batch["status"] == "cancelling" else ended
        _move(batch, "finalizing")
        await _pause(batch, self.delay / 10)
        done = {line["custom_id"] for line in made}
        left = [line for line in lines if line["custom_id"] not in done]
        self._hand_over(batch, made, left if ended != "cancelled" else [], fault)
        return _move(batch, ended)

    def _hand_over(self, batch: Json, made: Lines, left: Lines, fault: str) -> None:
        """The output file gets what was answered with 200, the error file all else that is told."""
        good = [line for line in made if line["response"]["status_code"] == 200]
        bad = [line for line in made if line["response"]["status_code"] != 200]
        if fault in LEFT_OVER:
            bad += [LEFT_OVER[fault](line, n) for n, line in enumerate(left)]
        batch["request_counts"] |= {"completed": len(good), "failed": len(bad)}
        batch["output_file_id"] = self._lines_file(SPOILT.get(fault, list)(good))
        batch["error_file_id"] = self._lines_file(bad)

    async def _generate(self, batch: Json, lines: Lines) -> Lines:
        """Evenly over the time in progress, until cancelled."""
        made: Lines = []
        start = time.monotonic()
        for line in lines:
            if batch["status"] == "cancelling":
                break
            made.append(_line(line, self.complete(line["body"])))
            batch["request_counts"]["completed"] = len(made)
            due = start + 0.8 * self.delay * len(made) / len(lines)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        return made

    def _lines_file(self, lines: Lines) -> str | None:
        text = b"".join(encode(line) + b"\n" for line in lines)
        return str(self._store(text, "batch_output", "lines.jsonl")["id"]) if lines else None

    def _store(self, content: bytes, purpose: str, filename: str) -> Json:
        file = {
            "id": f"file-{uuid.uuid4().hex}", "object": "file", "bytes": len(content),
            "created_at": int(time.time()), "filename": filename, "purpose": purpose,
            "status": "processed",
        }  # fmt: skip
        self.files[str(file["id"])] = (file, content)
        return file


async def _pause(batch: Json, seconds: float) -> None:
    end = time.monotonic() + seconds
    while batch["status"] != "cancelling" and (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, 0.02))


def read_lines(content: bytes) -> tuple[Lines, list[Json]]:
    """The requests of an input file, and what is wrong with it (line numbers from 1)."""
    lines: Lines = []
    errors: list[Json] = []
    seen: set[Any] = set()
    for n, text in enumerate(content.splitlines(), start=1):
        try:
            line = json.loads(text)
            wrong = (line["method"], line["url"]) != ("POST", ENDPOINT) or not line["body"]
            code = "invalid_url" if wrong else None
            code = "duplicate_custom_id" if line["custom_id"] in seen else code
            seen.add(line["custom_id"])
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            code = "invalid_json_line"
        if code:
            errors.append({"code": code, "line": n, "message": f"scripted {code}", "param": None})
    return lines, errors


def refused(said: str, status: int = 400) -> web.Response:
    error = {"message": said, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=status)


def _not_found(request: web.Request) -> web.Response:
    return refused(f"no such object: {request.match_info['id']}", status=404)


def _move(batch: Json, status: str) -> None:
    """Time stamps as the API names them; only an end follows on `cancelling`."""
    if batch["status"] == "cancelling" and status in ("in_progress", "finalizing"):
        return
    batch["status"] = status
    batch[f"{status}_at"] = int(time.time())
