"""Zhipu (GLM, z.ai) and Baidu Qianfan: numbers of their own for errors.

Source: https://docs.bigmodel.cn/cn/api/api-code and
https://cloud.baidu.com/doc/WENXINWORKSHOP/s/tlmyncueh.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "zhipu",
    "GLM at bigmodel.cn and z.ai; Baidu Qianfan",
    hosts=("open.bigmodel.cn", "api.z.ai", "qianfan.baidubce.com"),
    finish_reasons={"sensitive": "content_filter", "network_error": "error", "normal": "stop"},
    error_statuses={"1000": 401, "1001": 401, "1002": 401, "1110": 402, "1112": 402, "1113": 402,
                    "1261": 400, "1301": 400, "1302": 429, "1303": 429, "1304": 429, "1305": 429,
                    "1308": 429, "1309": 402, "17": 429, "18": 429, "336100": 503},
    quota=(r"Open api daily request limit|使用上限",),
)  # fmt: skip
