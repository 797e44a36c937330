"""Mistral's API. Source: https://docs.mistral.ai/api. A reasoning model's content is a list of
parts, of which `thinking` ones hold the reasoning.
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
