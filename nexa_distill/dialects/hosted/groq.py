"""Groq, Cerebras, xAI, Moonshot, GitHub Models: OpenAI's format with their own limit messages.

Source: https://console.groq.com/docs/rate-limits and the errors that these APIs return.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "groq",
    "Groq, Cerebras, xAI, Moonshot, GitHub Models",
    hosts=(
        "api.groq.com",
        "api.cerebras.ai",
        "api.x.ai",
        "api.moonshot.ai",
        "api.moonshot.cn",
        "models.github.ai",
        "models.inference.ai.azure.com",
    ),
    error_statuses={
        "exceeded_current_quota_error": 402,
        "engine_overloaded_error": 429,
        "rate_limit_reached_error": 429,
    },
    quota=(r"exceeded_current_quota|tokens per day|requests per day|UserByModelByDay",),
    billing="completion_tokens, or total_tokens less prompt_tokens where that is more (xAI)",
)
