"""A chat-completions API on loopback that costs almost nothing, so that clients are measured.

    python -m benchmarks.collector.server [--latency SECONDS|lognormal] [--rate N --halve-after S]

Hand-written HTTP/1.1 over `asyncio.Protocol` (uvloop where it is installed): one request at a time
per connection, bodies with a Content-Length. The first line of its output is the port.

`--rate`: a token bucket that lets N requests a second pass and holds those of one second; both
halve at `--halve-after` seconds after the first request. A request without a token gets 429 and
`Retry-After` in whole seconds. GET /stats says what was billed and rejected, and when.
"""

import argparse
import asyncio
import contextlib
import json
import math
import re
from collections import Counter
from typing import Any

from benchmarks.collector.questions import answer, lognormal_seconds

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
USAGE = {"prompt_tokens": 90, "completion_tokens": 110, "total_tokens": 200}


class Bucket:
    """A token bucket; `capacity` is one second of its rate."""

    def __init__(self, rate: float, halve_after: float) -> None:
        self.rate, self.halve_after = rate, halve_after
        self.tokens = rate
        self.first = self.filled = -math.inf

    def take(self, now: float) -> int:
        """0 and one token less, or the whole seconds to wait for one."""
        if self.first < 0:
            self.first = self.filled = now
        halved = self.first + self.halve_after
        if self.filled < halved <= now:
            self._fill(halved)
            self.rate, self.halve_after = self.rate / 2, math.inf
        self._fill(now)
        if self.tokens >= 1:
            self.tokens -= 1
            return 0
        return max(1, math.ceil((1 - self.tokens) / self.rate))

    def allowed(self, seconds: float) -> float:
        """Requests that a new bucket lets through at most in that time, its first fill too."""
        halved = max(0.0, seconds - self.halve_after)
        return self.rate * (1 + seconds - halved / 2)

    def _fill(self, now: float) -> None:
        self.tokens = min(self.rate, self.tokens + (now - self.filled) * self.rate)
        self.filled = now


class Teacher:
    """Answers, bills and counts. All times are the event loop's clock, reported from the first."""

    def __init__(self, latency: str, bucket: Bucket | None) -> None:
        self.seconds = None if latency == "lognormal" else float(latency)
        self.bucket = bucket
        self.billed, self.rejected = Counter[int](), Counter[int]()  # by second
        self.first = self.last_billed = self.last_answer = 0.0
        self.in_flight = self.most_in_flight = 0

    def chat(self, connection: "Connection", raw: bytes) -> None:
        """Take one request: refuse it, or bill it and answer after its latency."""
        said = json.loads(raw)["messages"]
        if not said:  # a probe (curator asks for the rate limits like this): not a request
            connection.send(400, {"error": {"message": "messages is empty"}})
            return
        now = connection.loop.time()
        self.first = self.first or now
        second = int(now - self.first)
        wait = self.bucket.take(now) if self.bucket else 0
        if wait:
            self.rejected[second] += 1
            connection.send(429, {"error": {"message": "rate limit"}}, f"Retry-After: {wait}\r\n")
            return
        self.billed[second] += 1
        self.last_billed = now
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        text = plain(said[-1]["content"])
        seconds = lognormal_seconds(text) if self.seconds is None else self.seconds
        if seconds:
            connection.loop.call_later(seconds, self.finish, connection, text)
        else:
            self.finish(connection, text)

    def finish(self, connection: "Connection", text: str) -> None:
        """Send the answer."""
        self.in_flight -= 1
        message = {"role": "assistant", "content": answer(text)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        connection.send(
            200,
            {
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000,
                "model": "teacher", "choices": [choice], "usage": USAGE,
            },
        )  # fmt: skip
        self.last_answer = connection.loop.time()

    def stats(self) -> dict[str, Any]:
        """What was billed and rejected; `per_second` is [billed, rejected] since the first."""
        last = max([*self.billed, *self.rejected], default=-1)
        return {
            "billed": self.billed.total(),
            "rejected": self.rejected.total(),
            "most_in_flight": self.most_in_flight,
            "seconds": self.last_answer - self.first,
            "last_billed": self.last_billed - self.first,
            "per_second": [[self.billed[s], self.rejected[s]] for s in range(last + 1)],
        }


def plain(content: str | list[dict[str, str]]) -> str:
    """The text of a message; some clients send it in parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class Connection(asyncio.Protocol):
    """One client connection: bytes in, requests to the teacher, bytes out."""

    def __init__(self, teacher: Teacher, loop: asyncio.AbstractEventLoop) -> None:
        self.teacher, self.loop = teacher, loop
        self.buffer = bytearray()
        self.transport: Any = None  # asyncio.Transport, or uvloop's own class

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Called by the event loop; an answer that comes later is not sent."""
        self.transport = None

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: every complete request in the buffer is taken."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end])
            found = LENGTH.search(head)
            stop = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < stop:
                return
            body = bytes(self.buffer[end + 4 : stop])
            del self.buffer[:stop]
            self.route(head, body)

    def route(self, head: bytes, body: bytes) -> None:
        """By method and path."""
        if head.startswith(b"POST /v1/chat/completions "):
            self.teacher.chat(self, body)
        elif head.startswith(b"GET /stats "):
            self.send(200, self.teacher.stats())
        elif head.startswith(b"GET /v1/models "):
            self.send(200, {"object": "list", "data": [{"id": "teacher", "object": "model"}]})
        else:
            self.send(404, {"error": {"message": "not here"}})

    def send(self, status: int, value: dict[str, Any], header: str = "") -> None:
        """One response."""
        if self.transport is None:  # the client has gone
            return
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n{header}Content-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve(teacher: Teacher) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(teacher, loop), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", default="0")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--halve-after", type=float, default=math.inf)
    args = parser.parse_args()
    bucket = Bucket(args.rate, args.halve_after) if args.rate else None
    with contextlib.suppress(ImportError):
        import uvloop  # type: ignore[import-not-found,unused-ignore]

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(Teacher(args.latency, bucket)))


if __name__ == "__main__":
    main()
