"""vLLM and SGLang. Source: vllm/entrypoints/openai, sglang/srt/openai_api (finish reasons).

A starting server refuses connections until its model is loaded; behind llama-swap or nginx the
proxy answers 502 or 503 meanwhile.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "vllm",
    "vLLM, SGLang, LMDeploy, TensorRT-LLM",
    finish_reasons={"eos": "stop", "abort": "error", "repetition": "length"},
    error_statuses={"badrequesterror": 400, "notfounderror": 404, "internalservererror": 500},
    loading=(r"(?:engine|model|server|upstream) (?:is )?(?:not ready|starting)",),
)
