"""Which failed attempts are retried, and the errors for a provider that cannot be used.

| failure                                         | reaction                                      |
|-------------------------------------------------|-----------------------------------------------|
| 3xx, 401 to 404, exhausted quota or credit      | the run stops (69) after the open requests    |
| an untrusted certificate                        | the run stops (69)                            |
| no connection, `max_attempts` times; 2 before   | the run stops (69)                            |
| any request has reached the server              |                                               |
| server is loading, before the first answer      | wait for it (`startup.py`), then 69           |
| 429                                             | slow down; never counted                      |
| 503, 529                                        | slow down; retry as below                     |
| 5xx, 408, 409, 425, timeout, cut connection     | retry with back-off, `max_attempts` in all    |
| the same 4xx for the first requests             | the run stops (69)                            |
| any other status                                | this request is refused; the run continues    |

An error inside a 200 has that error's status (`response_body.py`). Messages about quota and loading
are recognised by the patterns of all dialects (`dialects/`).
"""

import random
from collections.abc import Iterable

from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.collection.requests.response_body import brief_message, find_error, read_body
from nexa_distill.collection.requests.transport import ABANDONED
from nexa_distill.dialects import dialect_avoiding, has_used_its_quota
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal.journal import PROCESS_DIED, Attempt, Outcome
from nexa_distill.text.secrets import mask_secrets

LOADING = "the server was loading"
# Errors that do not count against a request: neither it nor the provider is the cause.
NOT_COUNTED = (ABANDONED, PROCESS_DIED, LOADING)
STOPS_THE_RUN = {401, 402, 403, 404}
OVERLOADED = {429, 503, 529}
RETRYABLE = {408, 409, 425}
MAY_QUOTE = {400, 413, 422}
NO_ANSWERS = 32  # so many bodies without choices, and none with: not a chat completions API
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
FIRST_CONNECTIONS = 2  # attempts to reach a server that has answered nothing yet


class ModelNotFound(ProviderUnusable):
    """The address or the model is unknown to the server (HTTP 404)."""


def backoff_seconds(retries: int, pause: float = 0.0) -> float:
    """Seconds before a retry: exponential back-off, or `pause` if longer; with jitter."""
    backoff = min(FIRST_BACKOFF_SECONDS * 2.0**retries, MAX_BACKOFF_SECONDS)
    return max(backoff, pause) * random.uniform(0.7, 1.0)  # noqa: S311


def stops_run(status: int | None) -> bool:
    """Whether the API is unusable as a whole, also because of a redirect to another address."""
    return status is not None and (status in STOPS_THE_RUN or 300 <= status < 400)


def is_retryable(status: int | None) -> bool:
    """Whether the same request may be answered later; None = no response."""
    return status is None or status in RETRYABLE or status >= 500


def failure_text(outcome: Outcome) -> str:
    """The text of a failure: the error object of a JSON body, else the start of the body."""
    if not outcome.raw:
        return outcome.error or ""
    body = read_body(outcome.raw)
    error = find_error(body)
    return error.words if error else outcome.raw[:2000].decode("utf-8", "replace")


def is_out_of_quota(outcome: Outcome) -> bool:
    """Whether the account's quota or credit is exhausted, and not just a busy minute's."""
    status = outcome.status or 0
    if not 400 <= status < 500 or status in (401, 404):
        return False
    # Such a message may quote the prompt, with any words.
    words = brief_message(outcome.raw or b"") if status in MAY_QUOTE else failure_text(outcome)
    return has_used_its_quota(words)


def is_untrusted(outcome: Outcome) -> bool:
    """Whether this machine refused the server's certificate, as it would every time."""
    return outcome.outcome == "not_sent" and "certificate" in (outcome.error or "").lower()


def is_fatal(outcome: Outcome) -> bool:
    """Whether this refusal stops the whole run."""
    return stops_run(outcome.status) or is_untrusted(outcome) or is_out_of_quota(outcome)


def give_up_reason(attempts: list[Attempt], max_attempts: int) -> str | None:
    """The reason not to send a request again without --retry-failed, or None."""
    attempts = [a for a in attempts if not a.error.startswith(LOADING)]
    if not attempts:
        return None
    last = attempts[-1]
    if last.outcome == "rejected" and last.status != 429 and not is_retryable(last.status):
        return None if stops_run(last.status) else "request_refused"
    count = sum(
        a.outcome in ("rejected", "uncertain") and a.status != 429 and not a.error.startswith(NOT_COUNTED)
        for a in attempts
    )
    return "provider_failed" if count >= max_attempts else None


def refusal_error(endpoint: Endpoint, outcome: Outcome) -> ProviderUnusable:
    """The error for a refusal that stops the run."""
    if is_untrusted(outcome):
        return unreachable_error(endpoint, 1, outcome.error)
    error = ModelNotFound if outcome.status == 404 else ProviderUnusable
    return error(
        f"provider {endpoint.provider} ({endpoint.base_url}) refuses with HTTP {outcome.status}: "
        f"{provider_message(outcome)}; {_refusal_hint(endpoint, outcome)}. What was answered is stored"
    )


def provider_message(outcome: Outcome, length: int = 300) -> str:
    """The provider's own message on one line, without secrets that it repeats."""
    if rb"\u" in (outcome.raw or b""):  # JSON escapes have to be decoded
        return mask_secrets(failure_text(outcome))[:length]
    words = _first_words(outcome.raw or (outcome.error or "").encode(), 2 * length)
    return mask_secrets(words)[:length] or "(no text)"


def _refusal_hint(endpoint: Endpoint, outcome: Outcome) -> str:
    """The user's remedy for a refusal."""
    address, key = "check base_url", endpoint.key_name or "api_key_env"
    status = outcome.status or 0
    if is_out_of_quota(outcome) and status != 402:
        return "the quota is used up, or the account has no credit"
    if dialect := dialect_avoiding(failure_text(outcome), endpoint.dialect):
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


def all_refused_error(endpoint: Endpoint, outcome: Outcome, count: int) -> ProviderUnusable:
    """The error for the first `count` requests being refused with the same message."""
    words = failure_text(outcome)
    remedy = f"correct model ({endpoint.model}), extra_body or dialect of the provider, or collection.max_tokens"
    if dialect := dialect_avoiding(words, endpoint.dialect):
        remedy = f"set providers.{endpoint.provider}.dialect: {dialect}"
    elif "response_format" in words or "schema" in words:
        remedy = (
            "if it knows no JSON schemas, give it extra_body: {response_format: null}, or "
            "{response_format: {type: json_object}}"
        )
    return ProviderUnusable(
        f"provider {endpoint.provider} ({endpoint.base_url}) refused the first {count} requests "
        f"with HTTP {outcome.status}: {provider_message(outcome)}; {remedy}. If only the server was "
        "changed, run again with --retry-failed"
    )


def none_answered_error(provider: str, dialect: str, count: int, last: str) -> ProviderUnusable:
    """The error for a stage without any answer; `last` is the evidence of one request."""
    other = dialect_avoiding(last, dialect)
    remedy = f"; set providers.{provider}.dialect: {other}" if other else ""
    return ProviderUnusable(
        f"provider {provider} answered none of {count} requests; its last response: {last[:300]}{remedy}"
    )


def unreachable_error(endpoint: Endpoint, attempts: int, error: str | None) -> ProviderUnusable:
    """The error for an address without a usable connection."""
    reason = error or ""
    hint = "is the server running?"
    if "certificate" in reason.lower():
        hint = (
            "its certificate is not trusted here: set SSL_CERT_FILE to the file (PEM) of the authority that signed it"
        )
    elif "SSLError" in reason:
        hint = "does it support https? Try http:// in base_url"
    elif "Proxy" in reason:
        hint = (
            "the proxy (http_proxy, https_proxy) does not connect; to use none, set "
            f'providers.{endpoint.provider}.proxy: ""'
        )
    return ProviderUnusable(
        f"provider {endpoint.provider}: no connection to {endpoint.base_url} in {attempts} attempts ({error}); {hint}"
    )


def no_such_api_error(endpoint: Endpoint, raw: bytes) -> ProviderUnusable:
    """The error for `NO_ANSWERS` 200s without a chat completion; `raw` is the last body."""
    return ProviderUnusable(
        f"provider {endpoint.provider} ({endpoint.base_url}) answered 200 without a chat "
        f"completion {NO_ANSWERS} times; the last: {_first_words(raw, 200)!r}; check base_url, then run "
        "again with --retry-failed"
    )


def model_changed_error(endpoint: Endpoint, served: Iterable[tuple[str | None, str | None]]) -> ProviderUnusable:
    """The error of stop_on_model_change. `served`: (model, system_fingerprint) of the answers."""
    names = ", ".join(f"{model} ({print_})" if print_ else f"{model}" for model, print_ in served)
    return ProviderUnusable(
        f"provider {endpoint.provider}: the model changed during the run: {names}; "
        "set collection.stop_on_model_change to false to continue"
    )


def _first_words(raw: bytes, length: int) -> str:
    return " ".join(raw.decode("utf-8", "replace").split())[:length]
