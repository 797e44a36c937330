"""What an attempt without an answer means, and the words for a provider that cannot be used.

| what happened                                   | then                                          |
|-------------------------------------------------|-----------------------------------------------|
| 3xx, 401 to 404, 429 with insufficient_quota    | the run stops (69); what is in flight ends    |
| no connection, `max_attempts` times             | the run stops (69)                            |
| 429                                             | everyone slows down; never counted            |
| 503, 529                                        | everyone slows down; again, as below          |
| 5xx, 408, 409, 425, timeout, cut connection     | again with back-off, `max_attempts` in all    |
| any other status                                | this request is refused; the run goes on      |
"""

from collections.abc import Iterable

from nexa_distill.endpoint import Endpoint
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal import DIED, Ended, Outcome
from nexa_distill.transport import ABANDONED

OUR_OWN_STOPS = {ABANDONED, DIED}  # no fault of the provider: they count against no request
STOPS_THE_RUN = {401, 402, 403, 404}
OVERLOADED = {429, 503, 529}
TRY_AGAIN = {408, 409, 425}
NO_ANSWERS = 32  # so many bodies with no choices and not one with: this is no such API


def stops(status: int | None) -> bool:
    """Whether the API as a whole is not usable like this; a redirect is another address's page."""
    return status is not None and (status in STOPS_THE_RUN or 300 <= status < 400)


def again(status: int | None) -> bool:
    """Whether the same request may be answered later; None: there was no response."""
    return status is None or status in TRY_AGAIN or status >= 500


def is_fatal(outcome: Outcome) -> bool:
    """Whether the whole run stops at this refusal."""
    quota = outcome.status == 429 and b"insufficient_quota" in (outcome.raw or b"")
    return quota or stops(outcome.status)


def given_up(attempts: list[Ended], max_attempts: int) -> str | None:
    """The reason why a request is not asked again without --retry-failed, or None."""
    if not attempts:
        return None
    last = attempts[-1]
    if last.outcome == "rejected" and last.status != 429 and not again(last.status):
        return None if stops(last.status) else "request_refused"
    counted = [
        a for a in attempts
        if a.outcome in ("rejected", "uncertain") and a.status != 429
        and a.error not in OUR_OWN_STOPS
    ]  # fmt: skip
    return "provider_failed" if len(counted) >= max_attempts else None


def refused(endpoint: Endpoint, outcome: Outcome) -> ProviderUnusable:
    """The provider refuses us as a whole."""
    address, key = "check base_url", endpoint.key_name or "api_key_env"
    hints = {
        401: f"check {key} in .env",
        402: "the account has no credit",
        403: f"the key in {key} may not do this",
        404: f"{address} and model ({endpoint.model})",
        429: "the quota is used up",
    }
    said = _start(outcome.raw or b"", 300) or "(no text)"
    return ProviderUnusable(
        f"provider {endpoint.provider} ({endpoint.base_url}) refuses with HTTP {outcome.status}: "
        f"{said}; {hints.get(outcome.status or 0, address)}. What was answered is stored"
    )


def unreachable(endpoint: Endpoint, attempts: int, error: str | None) -> ProviderUnusable:
    """Nobody listens there."""
    return ProviderUnusable(
        f"provider {endpoint.provider}: no connection to {endpoint.base_url} in {attempts} "
        f"attempts ({error}); is the server running?"
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
