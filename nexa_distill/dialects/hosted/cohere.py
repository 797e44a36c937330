"""Cohere's compatibility API. Source: https://docs.cohere.com/docs/compatibility-api,
`finish_reason` of https://docs.cohere.com/reference/chat.
"""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "cohere",
    "api.cohere.ai/compatibility/v1",
    hosts=("api.cohere.ai", "api.cohere.com"),
    finish_reasons=invert_groups(
        {
            "stop": "complete",
            "length": "max_tokens error_limit",
            "content_filter": "error_toxic",
            "tool_calls": "tool_call",
        }
    ),
    quota=(r"trial key.{0,80}(?:month|limited to)",),
)
