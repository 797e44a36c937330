"""Google's Gemini API in its OpenAI-compatible form, and Vertex AI.

Source: https://ai.google.dev/gemini-api/docs/openai, google.rpc.Code, FinishReason in
https://ai.google.dev/api/generate-content. Thoughts count in total_tokens, not in
completion_tokens. An error may come as a list of one object, with the pause in `retryDelay`.
"""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "gemini",
    "generativelanguage.googleapis.com, Vertex AI, proxies before them",
    hosts=("generativelanguage.googleapis.com",),
    finish_reasons=invert_groups(
        {
            "stop": "finish_reason_stop",
            "length": "max_tokens",
            "content_filter": "safety recitation blocklist spii prohibited_content image_safety",
            "tool_calls": "malformed_function_call unexpected_tool_call",
        }
    ),
    error_statuses=invert_groups(
        {
            400: "invalid_argument failed_precondition",
            401: "unauthenticated",
            403: "permission_denied",
            404: "not_found",
            409: "aborted",
            429: "resource_exhausted",
            500: "internal",
            503: "unavailable",
            504: "deadline_exceeded",
        }
    ),
    quota=(r"GenerateRequestsPerDay|PerDayPer|prepayment credits",),
    billing="total_tokens less prompt_tokens: the thoughts are only in the total",
)
