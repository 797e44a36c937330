"""OpenRouter: many providers behind one address, whose errors may come inside a 200.

Source: https://openrouter.ai/docs/api-reference/errors and .../limits. The choice's own `error`
has the provider's status; `native_finish_reason` is the provider's word.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "openrouter",
    "openrouter.ai",
    hosts=("openrouter.ai",),
    quota=(r"free-models-per-day|requires more credits|add (?:\w+ )?credits",),
    billing="completion_tokens, reasoning_tokens among them; an error without tokens is free",
)
