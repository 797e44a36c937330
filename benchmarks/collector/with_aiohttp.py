"""The least that a client can do: aiohttp, no journal, answers kept in a list.

Variant `uvloop` runs it on that event loop.
"""

import asyncio
import json

import aiohttp

from benchmarks.collector.contender import Job, ask_all, hand_over, job
from benchmarks.collector.questions import DECODING, MODEL, messages


async def collect(given: Job) -> list[tuple[str, str]]:
    url = f"{given.base_url}/chat/completions"
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(text: str) -> str:
            body = {"model": MODEL, "messages": messages(text), **DECODING}
            async with session.post(url, data=json.dumps(body).encode()) as response:
                response.raise_for_status()
                said = json.loads(await response.read())
            return str(said["choices"][0]["message"]["content"])

        return await ask_all(given, ask)


def main() -> None:
    given = job()
    if given.variant == "uvloop":
        import uvloop  # type: ignore[import-not-found,unused-ignore]

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    hand_over(given.out, asyncio.run(collect(given)))


if __name__ == "__main__":
    main()
