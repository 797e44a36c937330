"""Hugging Face text-generation-inference and Inference Endpoints.

Source: FinishReason in router/src/lib.rs of text-generation-inference (`eos_token`), and the 503
"Model ... is currently loading" with `estimated_time` (seconds) of the hosted API.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "tgi",
    "text-generation-inference, Hugging Face endpoints",
    hosts=("router.huggingface.co", "endpoints.huggingface.cloud", "api-inference.huggingface.co"),
    finish_reasons={"eos_token": "stop", "stop_sequence": "stop"},
    error_statuses={"overloaded": 429, "incomplete_generation": 500, "validation": 422},
    quota=(r"exceeded your monthly included credits",),
    loading=(r"currently loading|estimated_time|endpoint is (?:scaled|initiali[sz]ing)",),
)
