"""Servers that only stream: thinking models of Alibaba's Model Studio (DashScope).

Source: https://help.aliyun.com/zh/model-studio/error-code and .../deep-thinking.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "stream-only",
    "DashScope's thinking models, and every server that refuses to answer without a stream",
    stream=True,
    error_statuses={"arrearage": 402, "throttling": 429, "throttling.ratequota": 429,
                    "invalidapikey": 401, "datainspectionfailed": 400,
                    "data_inspection_failed": 400},
    quota=(r"arrearage|account is in good standing|AllocationQuota|FreeTierOnly",
           r"throttling\.allocationquota"),
    refusals=(
        r"non-?stream(?:ing)? (?:calls?|requests?|mode)|only supports? (?:the )?stream",
        r"stream(?:ing)? (?:mode )?(?:is )?(?:required|only)|must (?:use |set |be )?'?stream",
        r"非流式|仅支持流式|只支持流式",
    ),
)  # fmt: skip
