"""OpenAI's chat completions API: what every other dialect differs from.

Source: https://platform.openai.com/docs/api-reference/chat and .../guides/error-codes.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "openai",
    "OpenAI and every server that follows its documentation",
    hosts=("api.openai.com",),
    finish_reasons={"function_call": "tool_calls"},
    error_statuses={
        "rate_limit_exceeded": 429, "rate_limit_error": 429, "too_many_requests": 429,
        "insufficient_quota": 402, "billing_hard_limit_reached": 402, "invalid_api_key": 401,
        "authentication_error": 401, "permission_error": 403, "permission_denied": 403,
        "model_not_found": 404, "not_found_error": 404, "invalid_request_error": 400,
        "context_length_exceeded": 400, "server_error": 500, "internal_server_error": 500,
        "api_error": 500, "service_unavailable": 503, "overloaded_error": 529, "timeout": 504,
    },
    reasoning_fields=("reasoning_content", "reasoning"),
    # Words for money and for days, in English and Chinese: gateways and resellers use them too.
    quota=(
        r"insufficient[ _-]?(?:\w+ ){0,2}(?:quota|balance|credits?|funds?)",
        r"not enough (?:credits?|balance|funds)|(?:credit )?balance is (?:too low|not enough)",
        r"(?:out of|no (?:remaining|more)|used all (?:\w+ )?available|depleted\w*) credits?",
        r"credits? (?:\w+ ){0,3}(?:depleted|exhausted|used up)|credit limit exceeded",
        r"billing[ _](?:hard[ _])?limit|spending limit|monthly (?:\w+ )?(?:limit|quota|credits)",
        r"payment required|past due|overdue|unpaid|account (?:\w+ ){0,2}suspended",
        r"per[ _-]?(?:day|month|week)\b|perday|permonth|\bby ?day\b|daily|\b[RT]PD\b",
        r"/ ?(?:day|month|week)\b|\b86400 ?s",
        r"欠费|余额(?:不足|已)|账户余额|充值|额度(?:已|不足|用完|耗尽)|每[日天月]|[当今][日天]|免费额度",
        r"残高|利用上限|日額度|餘額",
    ),
    loading=(
        r"loading (?:the )?model|model (?:\w+ ){0,3}(?:is |being )?(?:currently |still )*loading",
        r"(?:still |currently )(?:loading|starting|initiali[sz]ing|warming)",
        r"not (?:yet )?(?:ready|loaded)|warming up|starting up|cold[ -]start",
    ),
)  # fmt: skip
