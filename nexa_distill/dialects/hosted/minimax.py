"""MiniMax: errors in `base_resp` of a 200. Source: https://platform.minimaxi.com, error codes."""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "minimax",
    "MiniMax, whose errors are `base_resp.status_code` inside a 200",
    hosts=("api.minimax.chat", "api.minimaxi.com", "api.minimax.io"),
    # Other servers give other meanings to these numbers, so the key has the object's name too.
    error_statuses=invert_groups(
        {
            400: "base_resp.1026 base_resp.1027 base_resp.2013",
            401: "base_resp.1004 base_resp.2049",
            402: "base_resp.1008",
            429: "base_resp.1002 base_resp.1039 base_resp.1041 base_resp.2056",
            500: "base_resp.1000 base_resp.1013 base_resp.1024 base_resp.1033",
            504: "base_resp.1001",
        }
    ),
)
