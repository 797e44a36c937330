"""OpenAI's chat completions API: the baseline of all dialects.

Source: https://platform.openai.com/docs/api-reference/chat and .../guides/error-codes.
"""

from nexa_distill.dialects.dialect import Dialect, invert_groups

DIALECT = Dialect(
    "openai",
    "OpenAI and every server that follows its documentation",
    hosts=("api.openai.com",),
    finish_reasons={"function_call": "tool_calls"},
    error_statuses=invert_groups(
        {
            400: "invalid_request_error context_length_exceeded",
            401: "invalid_api_key authentication_error",
            402: "insufficient_quota billing_hard_limit_reached",
            403: "permission_error permission_denied",
            404: "model_not_found not_found_error",
            429: "rate_limit_exceeded rate_limit_error too_many_requests",
            500: "server_error internal_server_error api_error",
            503: "service_unavailable",
            504: "timeout",
            529: "overloaded_error",
        }
    ),
    reasoning_fields=("reasoning_content", "reasoning"),
    # Words for money and days, in English, Chinese and Japanese; gateways and resellers use them.
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
)
