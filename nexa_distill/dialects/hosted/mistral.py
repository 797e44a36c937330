"""Mistral's API. Source: https://docs.mistral.ai/api. The content of a reasoning model's message is
a list of parts; the `thinking` parts contain the reasoning.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "mistral",
    "api.mistral.ai",
    hosts=("api.mistral.ai",),
    finish_reasons={"model_length": "length"},
    error_statuses={"1300": 429, "3505": 429, "rate_limited": 429},
    refusals=(r"stream_options.{0,40}(?:extra|not permitted)",),
)
