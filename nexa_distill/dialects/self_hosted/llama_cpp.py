"""llama.cpp's server, llama-swap, LM Studio, KoboldCpp. Source: tools/server/README.md of
llama.cpp: HTTP 503 "Loading model" until /health is ok.
"""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "llama.cpp",
    "llama.cpp's server, llama-swap, LM Studio, KoboldCpp",
    finish_reasons=invert_groups(
        {"stop": "eosfound", "length": "maxpredictedtokensreached limit", "error": "userstopped modelunloaded"}
    ),
    loading=(r"loading model|no slot available while loading|swapping model",),
)
