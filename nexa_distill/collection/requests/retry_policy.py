"""What an attempt without an answer means, and the words for a provider that cannot be used.

| what happened                                   | then                                          |
|-------------------------------------------------|-----------------------------------------------|
| 3xx, 401 to 404, a used-up quota or credit      | the run stops (69); what is in flight ends    |
| a certificate that is not trusted               | the run stops (69)                            |
| no connection, `max_attempts` times             | the run stops (69)                            |
| loading, before the first answer                | waits for it (`startup.py`), then 69          |
| 429                                             | everyone slows down; never counted            |
| 503, 529                                        | everyone slows down; again, as below          |
| 5xx, 408, 409, 425, timeout, cut connection     | again with back-off, `max_attempts` in all    |
| the same 4xx for the first requests             | the run stops (69)                            |
| any other status                                | this request is refused; the run goes on      |

An error inside a 200 is that error's status (`response_body.py`). The words for a quota and for
loading are those of all dialects (`dialects/`).
"""

from collections.abc import Iterable

from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.collection.requests.response_body import brief_words, error_of, read_body
from nexa_distill.collection.requests.transport import ABANDONED
from nexa_distill.dialects import avoiding, has_used_its_quota
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal.journal import DIED, Ended, Outcome
from nexa_distill.text.secrets import mask_secrets

LOADING = "the server was loading"
# No fault of the provider or of the request: they count against no request.
NOT_COUNTED = (ABANDONED, DIED, LOADING)
STOPS_THE_RUN = {401, 402, 403, 404}
OVERLOADED = {429, 503, 529}
TRY_AGAIN = {408, 409, 425}
MAY_QUOTE = {400, 413, 422}
NO_ANSWERS = 32  # so many bodies with no choices and not one with: this is no such API


def stops(status: int | None) -> bool:
    """Whether the API as a whole is not usable like this; a redirect is another address's page."""
    return status is not None and (status in STOPS_THE_RUN or 300 <= status < 400)


def again(status: int | None) -> bool:
    """Whether the same request may be answered later; None: there was no response."""
    return status is None or status in TRY_AGAIN or status >= 500


def words_of(outcome: Outcome) -> str:
    """What a failure says: of a JSON body its error object, else its beginning."""
    if not outcome.raw:
        return outcome.error or ""
    body = read_body(outcome.raw)
    error = error_of(body)
    return error.words if error else outcome.raw[:2000].decode("utf-8", "replace")


def is_out_of_quota(outcome: Outcome) -> bool:
    """Whether it is the account's quota or credit, and not a busy minute."""
    status = outcome.status or 0
    if not 400 <= status < 500 or status in (401, 404):
        return False
    # A refused request may be repeated in the message, with whatever words its prompt has.
    words = brief_words(outcome.raw or b"") if status in MAY_QUOTE else words_of(outcome)
    return has_used_its_quota(words)


def is_untrusted(outcome: Outcome) -> bool:
    """Whether the server's certificate was refused here: the next attempt would be the same."""
    return outcome.outcome == "not_sent" and "certificate" in (outcome.error or "").lower()


def is_fatal(outcome: Outcome) -> bool:
    """Whether the whole run stops at this refusal."""
    return stops(outcome.status) or is_untrusted(outcome) or is_out_of_quota(outcome)


def given_up(attempts: list[Ended], max_attempts: int) -> str | None:
    """The reason why a request is not asked again without --retry-failed, or None."""
    attempts = [a for a in attempts if not a.error.startswith(LOADING)]
    if not attempts:
        return None
    last = attempts[-1]
    if last.outcome == "rejected" and last.status != 429 and not again(last.status):
        return None if stops(last.status) else "request_refused"
    counted = [
        a for a in attempts
        if a.outcome in ("rejected", "uncertain") and a.status != 429
        and not a.error.startswith(NOT_COUNTED)
    ]  # fmt: skip
    return "provider_failed" if len(counted) >= max_attempts else None


def refused(endpoint: Endpoint, outcome: Outcome) -> ProviderUnusable:
    """The provider refuses us as a whole."""
    if is_untrusted(outcome):
        return unreachable(endpoint, 1, outcome.error)
    return ProviderUnusable(
        f"provider {endpoint.provider} ({endpoint.base_url}) refuses with HTTP {outcome.status}: "
        f"{said_by(outcome)}; {_hint(endpoint, outcome)}. What was answered is stored"
    )


def said_by(outcome: Outcome, length: int = 300) -> str:
    """The provider's own words, on a line, without the key that some of them repeat; JSON's escapes
    are read.
    """
    if rb"\u" in (outcome.raw or b""):
        return mask_secrets(words_of(outcome))[:length]
    words = _start(outcome.raw or (outcome.error or "").encode(), 2 * length)
    return mask_secrets(words)[:length] or "(no text)"


def _hint(endpoint: Endpoint, outcome: Outcome) -> str:
    """What to do about a refusal."""
    address, key = "check base_url", endpoint.key_name or "api_key_env"
    status = outcome.status or 0
    if is_out_of_quota(outcome) and status != 402:
        return "the quota is used up, or the account has no credit"
    if dialect := avoiding(words_of(outcome), endpoint.dialect):
        return f"set providers.{endpoint.provider}.dialect: {dialect}"
    if status in (401, 403) and endpoint.key_note:
        return endpoint.key_note
    hints = {
        401: f"check {key} in .env",
        402: "the account has no credit",
        403: f"the key in {key} may not do this",
        404: f"{address} and model ({endpoint.model})",
    }
    return hints.get(status, address)


def all_refused(endpoint: Endpoint, outcome: Outcome, count: int) -> ProviderUnusable:
    """The first `count` requests were refused with the same words."""
    words = words_of(outcome)
    remedy = (
        f"correct model ({endpoint.model}), extra_body or dialect of the provider, or "
        "collection.max_tokens"
    )
    if dialect := avoiding(words, endpoint.dialect):
        remedy = f"set providers.{endpoint.provider}.dialect: {dialect}"
    elif "response_format" in words or "schema" in words:
        remedy = (
            "if it knows no JSON schemas, give it extra_body: {response_format: null}, or "
            "{response_format: {type: json_object}}"
        )
    return ProviderUnusable(
        f"provider {endpoint.provider} ({endpoint.base_url}) refused the first {count} requests "
        f"with HTTP {outcome.status}: {said_by(outcome)}; {remedy}. If only the server was "
        "changed, run again with --retry-failed"
    )


def none_answered(provider: str, dialect: str, count: int, last: str) -> ProviderUnusable:
    """Not one of a stage's requests was answered; `last` is the evidence of one."""
    other = avoiding(last, dialect)
    remedy = f"; set providers.{provider}.dialect: {other}" if other else ""
    return ProviderUnusable(
        f"provider {provider} answered none of {count} requests; its last word: {last[:300]}"
        f"{remedy}"
    )


def unreachable(endpoint: Endpoint, attempts: int, error: str | None) -> ProviderUnusable:
    """Nobody listens there, or not as we ask."""
    said = error or ""
    hint = "is the server running?"
    if "certificate" in said.lower():
        hint = (
            "its certificate is not trusted here: set SSL_CERT_FILE to the file (PEM) of the "
            "authority that signed it"
        )
    elif "SSLError" in said:
        hint = "does it speak https? Try http:// in base_url"
    elif "Proxy" in said:
        hint = (
            "the proxy (http_proxy, https_proxy) does not connect; providers."
            f'{endpoint.provider}.proxy: "" asks without one'
        )
    return ProviderUnusable(
        f"provider {endpoint.provider}: no connection to {endpoint.base_url} in {attempts} "
        f"attempts ({error}); {hint}"
    )


def never_ready(endpoint: Endpoint, seconds: float, said: str) -> ProviderUnusable:
    """It was still loading when the time to wait for it was over."""
    return ProviderUnusable(
        f"provider {endpoint.provider} ({endpoint.base_url}) was not ready within {seconds:.0f} s "
        f"({said}); is the server running? Wait for it and run the same command again, or raise "
        f"providers.{endpoint.provider}.startup_wait_seconds"
    )


def unusable_answers(endpoint: Endpoint, count: int, hint: str, last: str) -> ProviderUnusable:
    """The first `count` answers are none that their stage can use."""
    return ProviderUnusable(
        f"provider {endpoint.provider}: none of the first {count} answers of {endpoint.model} can "
        f"be read; the last: {last[:200]!r}. {hint}"
    )


def no_such_api(endpoint: Endpoint, raw: bytes) -> ProviderUnusable:
    """`NO_ANSWERS` times HTTP 200 and never a chat completion; `raw` is the last body."""
    return ProviderUnusable(
        f"provider {endpoint.provider} ({endpoint.base_url}) answered 200 without a chat "
        f"completion {NO_ANSWERS} times; the last: {_start(raw, 200)!r}; check base_url, then run "
        "again with --retry-failed"
    )


def model_changed(
    endpoint: Endpoint, served: Iterable[tuple[str | None, str | None]]
) -> ProviderUnusable:
    """`served`: (model, system_fingerprint) of the answers; asked for by stop_on_model_change."""
    names = ", ".join(f"{model} ({print_})" if print_ else f"{model}" for model, print_ in served)
    return ProviderUnusable(
        f"provider {endpoint.provider}: the model changed during the run: {names}; "
        "set collection.stop_on_model_change to false to go on"
    )


def _start(raw: bytes, length: int) -> str:
    return " ".join(raw.decode("utf-8", "replace").split())[:length]
