"""Servers that only stream: thinking models of Alibaba's Model Studio (DashScope).

Source: https://help.aliyun.com/zh/model-studio/error-code and .../deep-thinking.
"""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "stream-only",
    "DashScope's thinking models, and every server that refuses to answer without a stream",
    stream=True,
    error_statuses=invert_groups(
        {
            400: "datainspectionfailed data_inspection_failed",
            401: "invalidapikey",
            402: "arrearage",
            429: "throttling throttling.ratequota",
        }
    ),
    quota=(r"arrearage|account is in good standing|AllocationQuota|FreeTierOnly", r"throttling\.allocationquota"),
    refusals=(
        r"non-?stream(?:ing)? (?:calls?|requests?|mode)|only supports? (?:the )?stream",
        r"stream(?:ing)? (?:mode )?(?:is )?(?:required|only)|must (?:use |set |be )?'?stream",
        r"非流式|仅支持流式|只支持流式",
    ),
)
