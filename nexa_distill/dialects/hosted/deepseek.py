"""DeepSeek's API. Source: https://api-docs.deepseek.com (error codes, create-chat-completion)."""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "deepseek",
    "api.deepseek.com: knows json_object, not json_schema",
    hosts=("api.deepseek.com",),
    finish_reasons={"insufficient_system_resource": "error"},
    quota=(r"insufficient balance",),
    billing="completion_tokens, reasoning_tokens among them",
)
