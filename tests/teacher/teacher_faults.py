"""How the ledger teacher misbehaves on the wire, and how it limits the rate of requests.

A delivery gets the request, the answer it should send, and the value after the fault's colon.
"""

import asyncio
import email.utils
import functools
import json
import math
import socket
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

Delivery = Callable[[web.Request, bytes, str], Awaitable[web.StreamResponse]]

AUTO = "auto"
MEGABYTE = b"a" * 2**20
HEAD = b'{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "'
TAIL = b'"}}]}'


async def whole(request: web.Request, body: bytes, _: str = "") -> web.StreamResponse:
    kind = "text/html" if body.startswith(b"<") else "application/json"
    return web.Response(body=body, content_type=kind)


async def reset(request: web.Request, body: bytes = b"", _: str = "") -> web.StreamResponse:
    """A lingering time of 0 makes the close a reset (RST) instead of an end (FIN)."""
    if transport := request.transport:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    return web.Response()


async def reset_mid(request: web.Request, body: bytes, _: str) -> web.StreamResponse:
    response = await _start(request, {"Content-Length": str(len(body))})
    await response.write(body[: len(body) // 2])
    await asyncio.sleep(0.05)  # what was sent shall arrive before the reset overtakes it
    return await reset(request)


async def cut(request: web.Request, body: bytes, _: str) -> web.StreamResponse:
    response = await _start(request, {"Content-Length": "5000"})
    await response.write(b'{"choices": [{"mess')
    return await close(request)


async def cut_chunked(request: web.Request, body: bytes, _: str) -> web.StreamResponse:
    """Whole chunks, but not all of them, and not the empty one that ends a body."""
    response = await _start(request, {})
    await response.write(body[: len(body) // 2])
    return await close(request)


async def close(request: web.Request, body: bytes = b"", _: str = "") -> web.StreamResponse:
    if request.transport:
        request.transport.close()
    return web.Response()


async def drip(request: web.Request, body: bytes, value: str) -> web.StreamResponse:
    """One byte each `value` seconds (1)."""
    response = await _start(request, {"Content-Length": str(len(body))})
    for n in range(len(body)):
        await response.write(body[n : n + 1])
        await asyncio.sleep(float(value or 1))
    return response


async def hang(request: web.Request, body: bytes, _: str) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return await whole(request, body)


async def late(request: web.Request, body: bytes, value: str) -> web.StreamResponse:
    """The right answer, `value` seconds (5) after it was billed."""
    await asyncio.sleep(float(value or 5))
    return await whole(request, body)


async def large(request: web.Request, body: bytes, value: str) -> web.StreamResponse:
    """A complete answer whose text is `value` megabytes (100) long, in chunks."""
    response = await _start(request, {})
    await response.write(HEAD)
    for _ in range(int(value or 100)):
        await response.write(MEGABYTE)
    await response.write(TAIL)
    return response


async def gzip_bomb(request: web.Request, body: bytes, value: str) -> web.StreamResponse:
    """A complete answer that inflates to `value` megabytes (1024), a thousandth of that sent."""
    packed = await asyncio.to_thread(bomb, int(value or 1024))
    return web.Response(body=packed, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})


@functools.cache
def bomb(megabytes: int) -> bytes:
    """A gzip file (RFC 1952). After a full flush, deflated blocks can be repeated as they are."""

    def deflated(data: bytes, end: int = zlib.Z_FULL_FLUSH) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        return packer.compress(data) + packer.flush(end)

    check = zlib.crc32(HEAD)
    for _ in range(megabytes):
        check = zlib.crc32(MEGABYTE, check)
    size = (len(HEAD) + len(MEGABYTE) * megabytes + len(TAIL)) % 2**32
    blocks = deflated(HEAD) + deflated(MEGABYTE) * megabytes + deflated(TAIL, zlib.Z_FINISH)
    return bytes.fromhex("1f8b0800000000000003") + blocks + struct.pack("<II", zlib.crc32(TAIL, check), size)


async def sse(request: web.Request, body: bytes, value: str) -> web.StreamResponse:
    """The answer as a stream that ends without a finish_reason and [DONE].

    With `sse:twice` each piece is sent two times.
    """
    response = await _start(request, {"Content-Type": "text/event-stream"})
    response.force_close()
    text = json.loads(body)["choices"][0]["message"]["content"]
    for word in text.split(" ")[:20]:
        delta = {"index": 0, "delta": {"content": word + " "}, "finish_reason": None}
        event = json.dumps({"object": "chat.completion.chunk", "choices": [delta]})
        await response.write(f"data: {event}\n\n".encode() * (2 if value == "twice" else 1))
    return response


async def _start(request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"} | headers)
    await response.prepare(request)
    return response


DELIVERIES: dict[str, Delivery] = {
    "reset_after": reset,
    "reset_mid": reset_mid,
    "cut": cut,
    "cut_chunked": cut_chunked,
    "close": close,
    "drip": drip,
    "hang": hang,
    "late": late,
    "large": large,
    "gzip_bomb": gzip_bomb,
    "sse": sse,
}
NO_STATUS = {"reset_before", "reset_after", "close", "hang"}  # the client is never told one


def retry_headers(after: str | None, milliseconds: str | None, auto: str) -> dict[str, str]:
    """Retry-After as raw text; `date:+2` is the HTTP date of the first whole second from there."""
    if after == AUTO:
        after = auto
    elif after and after.startswith("date:"):
        moment = math.ceil(time.time() + float(after.removeprefix("date:")))
        after = email.utils.formatdate(moment, usegmt=True)
    headers = {"Retry-After": after, "retry-after-ms": milliseconds}
    return {name: text for name, text in headers.items() if text is not None}


@dataclass
class Bucket:
    """A token bucket: `rate` a second, `burst` at most, half the rate after `halve_after` s.

    Seconds count from the first request.
    """

    rate: float
    burst: float
    halve_after: float | None = None
    _tokens: float = field(init=False)
    _last: float = 0.0

    def __post_init__(self) -> None:
        self._tokens = self.burst

    def earned(self, seconds: float) -> float:
        """Requests allowed in the first `seconds`, besides the burst."""
        full = min(seconds, math.inf if self.halve_after is None else self.halve_after)
        return self.rate * (full + (seconds - full) / 2)

    def take(self, seconds: float) -> float:
        """Take a token; 0, or the seconds until there is one."""
        gained = self.earned(seconds) - self.earned(self._last)
        self._tokens, self._last = min(self.burst, self._tokens + gained), seconds
        if self._tokens >= 1 - 1e-9:  # sums of floats fall a little short of a whole token
            self._tokens -= 1
            return 0.0
        halved = self.halve_after is not None and seconds >= self.halve_after
        return (1 - self._tokens) / (self.rate / 2 if halved else self.rate)
