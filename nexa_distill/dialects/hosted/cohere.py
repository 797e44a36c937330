"""Cohere's compatibility API. Source: https://docs.cohere.com/docs/compatibility-api,
`finish_reason` of https://docs.cohere.com/reference/chat.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "cohere",
    "api.cohere.ai/compatibility/v1",
    hosts=("api.cohere.ai", "api.cohere.com"),
    finish_reasons={"complete": "stop", "max_tokens": "length", "error_limit": "length",
                    "error_toxic": "content_filter", "tool_call": "tool_calls"},
    quota=(r"trial key.{0,80}(?:month|limited to)",),
)  # fmt: skip
