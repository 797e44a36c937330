"""Google's Gemini API in its OpenAI-compatible form, and what Vertex AI answers.

Source: https://ai.google.dev/gemini-api/docs/openai, google.rpc.Code, FinishReason in
https://ai.google.dev/api/generate-content. completion_tokens leave out the thoughts; the total has
them. An error may come as a list of one object, with the pause in `retryDelay`.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "gemini",
    "generativelanguage.googleapis.com, Vertex AI, proxies before them",
    hosts=("generativelanguage.googleapis.com",),
    finish_reasons={
        "finish_reason_stop": "stop", "max_tokens": "length", "safety": "content_filter",
        "recitation": "content_filter", "blocklist": "content_filter", "spii": "content_filter",
        "prohibited_content": "content_filter", "image_safety": "content_filter",
        "malformed_function_call": "tool_calls", "unexpected_tool_call": "tool_calls",
    },
    error_statuses={
        "resource_exhausted": 429, "unavailable": 503, "internal": 500, "deadline_exceeded": 504,
        "unauthenticated": 401, "permission_denied": 403, "not_found": 404,
        "invalid_argument": 400, "failed_precondition": 400, "aborted": 409,
    },
    quota=(r"GenerateRequestsPerDay|PerDayPer|prepayment credits",),
    billing="total_tokens less prompt_tokens: the thoughts are only in the total",
)  # fmt: skip
