"""Claude through Anthropic's OpenAI-compatible endpoint or a gateway (LiteLLM, Bedrock).

Source: https://docs.anthropic.com/en/api/openai-sdk, .../api/errors, .../handling-stop-reasons.
"""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "anthropic",
    "api.anthropic.com/v1 and gateways to Claude",
    hosts=("api.anthropic.com",),
    finish_reasons=invert_groups(
        {
            "stop": "end_turn stop_sequence",
            "length": "max_tokens model_context_window_exceeded pause_turn",
            "content_filter": "refusal guardrail_intervened content_filtered",
            "tool_calls": "tool_use",
        }
    ),
    error_statuses={
        "billing_error": 402,
        "request_too_large": 413,
        "throttlingexception": 429,
        "timeout_error": 504,
        "overloaded_error": 529,
    },
    quota=(r"credit balance is too low",),
    reasoning_fields=("thinking",),
)
