"""Read the cost of stored answers and record it in the journal."""

from nexa_distill.collection.answers import completions
from nexa_distill.collection.answers.completions import Answer
from nexa_distill.collection.requests.budget import BudgetTracker
from nexa_distill.journal.batches import BatchAttempt
from nexa_distill.journal.journal import Journal, Outcome, PendingRequest
from nexa_distill.settings.pipeline import Price

UNREADABLE = Answer()  # an answer that cannot be read because of a bug; a later run bills it


def bill_answer(
    journal: Journal, price: Price | None, attempt: int, raw: bytes, discount: float = 1.0
) -> tuple[Answer, float | None]:
    """The answer and its US dollars; `discount` is the share of the price that is billed."""
    try:
        answer = completions.parse_answer(raw)
    except Exception:  # noqa: BLE001  a bug in the parser costs a row of the table, not the run
        return UNREADABLE, None
    usd = completions.cost_usd(answer, price, discount)
    counts = (answer.prompt_tokens, answer.completion_tokens, answer.total_tokens)
    journal.record_usage(attempt, *counts, usd)
    return answer, usd


def settle_attempt(
    journal: Journal,
    tally: BudgetTracker,
    price: Price | None,
    attempt: int,
    request: PendingRequest | BatchAttempt,
    outcome: Outcome,
    discount: float = 1.0,
) -> Answer:
    """Record the cost of an attempt and end its reservation; `outcome` must be on disk."""
    answer, billed = UNREADABLE, None
    if outcome.outcome == "answered":
        answer, usd = bill_answer(journal, price, attempt, outcome.raw or b"", discount)
        # An answer without token counts is charged its maximum: the budget must hold in the worst case.
        tokens = request.most_tokens if answer.total_tokens is None else answer.total_tokens
        billed = (tokens, request.most_usd if usd is None else usd)
        tally.answered += 1
    elif outcome.outcome == "uncertain":  # perhaps billed: count the maximum
        billed = (request.most_tokens, request.most_usd)
    tally.release_reservation(request.most_tokens, request.most_usd, billed=billed)
    return answer


def bill_unbilled(journal: Journal, model: str, price: Price | None) -> None:
    # A crash between the commit of an answer and that of its cost leaves it without a cost.
    for attempt, raw, discount in journal.unbilled_answers(model):
        bill_answer(journal, price, attempt, raw, discount)
