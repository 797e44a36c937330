"""The tokens of an answer, as they are billed, from the `usage` of a chat completion.

Some providers leave the reasoning out of `completion_tokens` and count it in the total alone
(Gemini, xAI): what is billed as output is the larger of `completion_tokens` and
`total_tokens - prompt_tokens`. Some name reasoning tokens and no total, or leave them out of that
too (Perplexity): they are not among `completion_tokens` where there are more of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

REASONING = (
    "reasoning_tokens", "thinking_tokens", "thoughts_tokens", "thoughts_token_count",
    "thoughtsTokenCount",
)  # fmt: skip
CACHE = ("cache_read_input_tokens", "cache_creation_input_tokens")  # beside input_tokens
MOST_TOKENS = 2**31  # no answer has more: what says so is no count


class Usage(NamedTuple):
    """Tokens; None = not said. `reasoning` is a part of `completion`."""

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None
    reasoning: int | None = None


def read_usage(usage: Mapping[str, Any]) -> Usage:
    """From a usage object, in the names of chat completions or of the newer APIs."""
    prompt = _first_count(usage, "prompt_tokens", "input_tokens")
    said = _first_count(usage, "completion_tokens", "output_tokens")
    if prompt is not None and "prompt_tokens" not in usage and "total_tokens" not in usage:
        prompt += sum(token_count(usage.get(name)) or 0 for name in CACHE)
    total, reasoning = token_count(usage.get("total_tokens")), _reasoning(usage)
    if prompt is None and None not in (said, total):
        prompt = max(0, (total or 0) - (said or 0))
    completion = said
    if said is not None and reasoning is not None and reasoning > said:
        completion = said + reasoning  # it is not among them
    if prompt is not None and total is not None:
        rest = max(0, total - prompt)
        completion = rest if completion is None else max(completion, rest)
    if prompt is not None and completion is not None:
        total = prompt + completion
    return Usage(prompt, completion, total, reasoning)


def _reasoning(usage: Mapping[str, Any]) -> int | None:
    """In the details (OpenAI), or beside the other counts."""
    for name in ("completion_tokens_details", "output_tokens_details"):
        details = usage.get(name)
        if isinstance(details, dict):
            found = _first_count(details, *REASONING)
            if found is not None:
                return found
    return _first_count(usage, *REASONING)


def _first_count(usage: Mapping[str, Any], *names: str) -> int | None:
    return next((n for name in names if (n := token_count(usage.get(name))) is not None), None)


def token_count(value: object) -> int | None:
    """A plausible number of tokens, also with a decimal point, or None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < MOST_TOKENS else None
