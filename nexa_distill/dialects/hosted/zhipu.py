"""Zhipu (GLM, z.ai) and Baidu Qianfan, with their own error numbers.

Source: https://docs.bigmodel.cn/cn/api/api-code and
https://cloud.baidu.com/doc/WENXINWORKSHOP/s/tlmyncueh.
"""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "zhipu",
    "GLM at bigmodel.cn and z.ai; Baidu Qianfan",
    hosts=("open.bigmodel.cn", "api.z.ai", "qianfan.baidubce.com"),
    finish_reasons={"sensitive": "content_filter", "network_error": "error", "normal": "stop"},
    error_statuses=invert_groups(
        {
            400: "1261 1301",
            401: "1000 1001 1002",
            402: "1110 1112 1113 1309",
            429: "1302 1303 1304 1305 1308 17 18",
            503: "336100",
        }
    ),
    quota=(r"Open api daily request limit|使用上限",),
)
