"""OpenAI's reasoning models: o1, o3, o4, GPT-5.

Source: https://platform.openai.com/docs/guides/reasoning. The reasoning is billed but not returned.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "openai-reasoning",
    "o1, o3, o4, GPT-5 at OpenAI, Azure or a gateway",
    limit_key="max_completion_tokens",
    sends_temperature=False,
    system_role="developer",
    refusals=(
        r"use '?max_completion_tokens'? instead",
        r"'?temperature'? does not support|unsupported (?:value|parameter): '?temperature",
    ),
    billing="completion_tokens, reasoning_tokens among them",
)
