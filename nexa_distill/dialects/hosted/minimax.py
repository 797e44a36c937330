"""MiniMax: errors in `base_resp` of a 200. Source: https://platform.minimaxi.com, error codes."""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "minimax",
    "MiniMax, whose errors are `base_resp.status_code` inside a 200",
    hosts=("api.minimax.chat", "api.minimaxi.com", "api.minimax.io"),
    # Other servers give other meanings to these numbers, so the key has the object's name too.
    error_statuses={
        "base_resp.1000": 500, "base_resp.1001": 504, "base_resp.1002": 429, "base_resp.1004": 401,
        "base_resp.1008": 402, "base_resp.1013": 500, "base_resp.1024": 500, "base_resp.1026": 400,
        "base_resp.1027": 400, "base_resp.1033": 500, "base_resp.1039": 429, "base_resp.1041": 429,
        "base_resp.2013": 400, "base_resp.2049": 401, "base_resp.2056": 429,
    },
)  # fmt: skip
