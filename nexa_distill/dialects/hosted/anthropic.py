"""Claude by Anthropic's OpenAI-compatible endpoint, or by a gateway (LiteLLM, Bedrock).

Source: https://docs.anthropic.com/en/api/openai-sdk, .../api/errors, .../handling-stop-reasons.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "anthropic",
    "api.anthropic.com/v1 and gateways to Claude",
    hosts=("api.anthropic.com",),
    finish_reasons={
        "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
        "model_context_window_exceeded": "length", "tool_use": "tool_calls",
        "pause_turn": "length", "refusal": "content_filter",
        "guardrail_intervened": "content_filter", "content_filtered": "content_filter",
    },
    error_statuses={"overloaded_error": 529, "request_too_large": 413, "timeout_error": 504,
                    "billing_error": 402, "throttlingexception": 429},
    quota=(r"credit balance is too low",),
    reasoning_fields=("thinking",),
)  # fmt: skip
