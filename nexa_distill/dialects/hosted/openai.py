"""OpenAI's chat completions API: the baseline of all dialects.

Source: https://platform.openai.com/docs/api-reference/chat and .../guides/error-codes.
"""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "openai",
    "OpenAI and every server that follows its documentation",
    hosts=("api.openai.com",),
    # Besides the first group: synonyms of gateways and self-hosted servers.
    finish_reasons=invert_groups(
        {
            "tool_calls": "function_call",
            "length": "max_output_tokens max_length max_new_tokens token_limit context_length time_limit",
            "stop": "completed finished done end eot stop_str stop_token eos_token_id <|im_end|> <|eot_id|>",
            "error": "cancelled timeout",
        }
    ),
    error_statuses=invert_groups(
        {
            400: "invalid_request_error context_length_exceeded",
            401: "invalid_api_key authentication_error",
            402: "insufficient_quota billing_hard_limit_reached",
            403: "permission_error permission_denied",
            404: "model_not_found not_found_error",
            429: "449 rate_limit_exceeded rate_limit_error too_many_requests",
            500: "server_error internal_server_error api_error",
            503: "service_unavailable",
            504: "timeout",
            529: "overloaded_error",
        }
    ),
    reasoning_fields=("reasoning_content", "reasoning"),
    # Words for money and days, in English, Chinese and Japanese; gateways and resellers use them.
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
)
