"""The billed tokens of an answer, from the `usage` of a chat completion."""

from collections.abc import Mapping
from typing import Any, NamedTuple

REASONING_NAMES = (
    "reasoning_tokens",
    "thinking_tokens",
    "thoughts_tokens",
    "thoughts_token_count",
    "thoughtsTokenCount",
)
CACHE_NAMES = ("cache_read_input_tokens", "cache_creation_input_tokens")  # not in input_tokens
MAX_TOKENS = 2**31  # a larger number is not a token count


class TokenCounts(NamedTuple):
    """Token counts; None = not reported. `reasoning` is a part of `completion`."""

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None
    reasoning: int | None = None


def read_usage(usage: Mapping[str, Any]) -> TokenCounts:
    """Counts of a usage object, with the names of chat completions or of the newer APIs."""
    prompt = _first_count(usage, "prompt_tokens", "input_tokens")
    reported = completion = _first_count(usage, "completion_tokens", "output_tokens")
    # Anthropic's usage: its input_tokens leave out what is read from or written to the cache.
    if prompt is not None and "prompt_tokens" not in usage and "total_tokens" not in usage:
        prompt += sum(token_count(usage.get(name)) or 0 for name in CACHE_NAMES)
    total, reasoning = token_count(usage.get("total_tokens")), _reasoning_tokens(usage)
    # Only the total and the completion are reported: the prompt is the rest.
    if prompt is None and reported is not None and total is not None:
        prompt = max(0, total - reported)
    if reported is not None and reasoning is not None and reasoning > reported:
        # More than the completion tokens, so not included in them (Perplexity: nor in the total).
        completion = reported + reasoning
    if prompt is not None and total is not None:
        # Some providers count reasoning in the total only (Gemini, xAI): the larger one is billed.
        rest = max(0, total - prompt)
        completion = rest if completion is None else max(completion, rest)
    if prompt is not None and completion is not None:
        total = prompt + completion
    return TokenCounts(prompt, completion, total, reasoning)


def _reasoning_tokens(usage: Mapping[str, Any]) -> int | None:
    # In the details (OpenAI), or beside the other counts.
    for name in ("completion_tokens_details", "output_tokens_details"):
        details = usage.get(name)
        if isinstance(details, dict):
            count = _first_count(details, *REASONING_NAMES)
            if count is not None:
                return count
    return _first_count(usage, *REASONING_NAMES)


def _first_count(usage: Mapping[str, Any], *names: str) -> int | None:
    return next((n for name in names if (n := token_count(usage.get(name))) is not None), None)


def token_count(value: object) -> int | None:
    """A plausible number of tokens (an integral float counts), or None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # True is an int in Python, and not a count.
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < MAX_TOKENS else None
