"""Bespoke Curator: its OpenAI backend, with rate limits out of the way."""

from typing import Any

# Tells tiktoken to use the table that litellm ships: curator would download it.
import litellm.litellm_core_utils.default_encoding  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
from bespokelabs import curator  # type: ignore[import-not-found,unused-ignore]

from benchmarks.collector.contender import hand_over, job
from benchmarks.collector.questions import DECODING, MODEL, SYSTEM, read_prompts

NO_LIMIT = 10**9  # requests a minute
NO_TOKEN_LIMIT = 10**13  # it reckons with 4,096 tokens of every answer


class Teacher(curator.LLM):  # type: ignore[misc,unused-ignore]
    """One prompt, one answer."""

    def prompt(self, row: dict[str, Any]) -> str:
        """The user message of a row."""
        return str(row["text"])

    def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
        """The row of an answer."""
        return {"text": row["text"], "answer": response}


def main() -> None:
    given = job()
    limits = {
        "base_url": given.base_url, "api_key": "none", "max_concurrent_requests": given.in_flight,
        "max_requests_per_minute": NO_LIMIT, "max_tokens_per_minute": NO_TOKEN_LIMIT,
    }  # fmt: skip
    teacher = Teacher(
        model_name=MODEL, backend="openai", system_prompt=SYSTEM, generation_params=DECODING,
        backend_params=limits,
    )  # fmt: skip
    asked = [{"text": text} for text in read_prompts(given.prompts)]
    rows = teacher(asked, working_dir=str(given.folder)).dataset
    hand_over(given.out, zip(rows["text"], rows["answer"], strict=True))


if __name__ == "__main__":
    main()
