"""OpenAI's chat completions API: what every other dialect differs from.

Source: https://platform.openai.com/docs/api-reference/chat and .../guides/error-codes.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "openai",
    "OpenAI and every server that follows its documentation",
    hosts=("api.openai.com",),
    # The second and third line: synonyms that gateways and servers of one's own write.
    finish_reasons={
        "function_call": "tool_calls", "max_output_tokens": "length", "completed": "stop",
        "finished": "stop", "done": "stop", "end": "stop", "eot": "stop", "stop_str": "stop",
        "stop_token": "stop", "eos_token_id": "stop", "<|im_end|>": "stop", "<|eot_id|>": "stop",
        "max_length": "length", "max_new_tokens": "length", "token_limit": "length",
        "context_length": "length", "time_limit": "length", "cancelled": "error",
        "timeout": "error",
    },
    error_statuses={
        "449": 429, "rate_limit_exceeded": 429, "rate_limit_error": 429, "too_many_requests": 429,
        "insufficient_quota": 402, "billing_hard_limit_reached": 402, "invalid_api_key": 401,
        "authentication_error": 401, "permission_error": 403, "permission_denied": 403,
        "model_not_found": 404, "not_found_error": 404, "invalid_request_error": 400,
        "context_length_exceeded": 400, "server_error": 500, "internal_server_error": 500,
        "api_error": 500, "service_unavailable": 503, "overloaded_error": 529, "timeout": 504,
    },
    reasoning_fields=("reasoning_content", "reasoning"),
    # Words for money and for days, in English and Chinese: gateways and resellers use them too.
    quota=(
        r"(?:quota|credits?|tokens?) (?:\w+ ){0,2}(?:exhausted|used up|depleted)(?!.{0,60}minute)",
        r"budget (?:\w+ ){0,2}(?:exceeded|exhausted|reached)|exceed\w* (?:\w+ )?budget|over budget",
        r"24[ -]?h(?:ours?|rs?)?\b|(?:usage|hard) limit.{0,30}(?:month|week|day|upgrade)",
        r"(?:week|month)ly (?:\w+ ){0,2}(?:limit|quota|cap|allowance|credits)",
        r"insufficient[ _-]?(?:\w+ ){0,2}(?:quota|balance|credits?|funds?)",
        r"not enough (?:credits?|balance|funds)|(?:credit )?balance is (?:too low|not enough)",
        r"(?:out of|no (?:remaining|more)|used all (?:\w+ )?available|depleted\w*) credits?",
        r"credits? (?:\w+ ){0,3}(?:depleted|exhausted|used up)|credit limit exceeded",
        r"billing[ _](?:hard[ _])?limit|spending limit|monthly (?:\w+ )?(?:limit|quota|credits)",
        r"payment required|past due|overdue|unpaid|account (?:\w+ ){0,2}suspended",
        r"per[ _-]?(?:day|month|week)\b|perday|permonth|\bby ?day\b|daily|\b[RT]PD\b",
        r"/ ?(?:day|month|week)\b|\b86400 ?s",
        r"欠费|余额(?:不足|已)|账户余额|充值|额度(?:已|不足|用完|耗尽)|每[日天月]|[当今][日天]|免费额度",
        r"残高|利用上限|[日月]額度|餘額|[1一]日|일일|하루|월간|잔액|дневн|суточн|месячн|баланс",
        r"quotidien|journali[eè]r|mensuel|diári[oa]|diari[oa]|mensual|mensal|sald[oi] |solde ",
        r"tages(?:limit|kontingent)|täglich|monats|monatlich|guthaben|günlük|hàng ngày",
    ),
    loading=(
        r"loading (?:the )?model|model (?:\w+ ){0,3}(?:is |being )?(?:currently |still )*loading",
        r"(?:still |currently )(?:loading|starting|initiali[sz]ing|warming)",
        r"not (?:yet )?(?:ready|loaded)|warming up|starting up|cold[ -]start|healthy upstream",
        r"(?:server|service|model|engine) is (?:starting|initiali[sz]ing|being (?:load|deploy)ed)",
        r"loading (?:checkpoint|weights)|loading (?:\w+ )?weights|加载中|読み込み中|로딩 중",
    ),
)  # fmt: skip
