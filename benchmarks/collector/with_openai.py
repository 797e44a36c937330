"""The openai client as it comes (httpx2), or with its aiohttp transport (variant `aiohttp`)."""

import asyncio
from typing import Any

from openai import AsyncOpenAI, DefaultAioHttpClient

from benchmarks.collector.contender import Job, ask_all, hand_over, job
from benchmarks.collector.questions import DECODING, MODEL, messages


async def collect(given: Job) -> list[tuple[str, str]]:
    options: dict[str, Any] = {"base_url": given.base_url, "api_key": "none", "max_retries": 0}
    if given.variant == "aiohttp":
        options["http_client"] = DefaultAioHttpClient()
    async with AsyncOpenAI(**options) as client:

        async def ask(text: str) -> str:
            body: dict[str, Any] = {"model": MODEL, "messages": messages(text), **DECODING}
            said = await client.chat.completions.create(**body)
            return str(said.choices[0].message.content)

        return await ask_all(given, ask)


def main() -> None:
    given = job()
    hand_over(given.out, asyncio.run(collect(given)))


if __name__ == "__main__":
    main()
