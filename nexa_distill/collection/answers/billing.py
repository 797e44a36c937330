"""Read the cost of stored answers and record it in the journal."""

from nexa_distill.collection.answers import completions
from nexa_distill.collection.answers.completions import Answer
from nexa_distill.journal.journal import Journal
from nexa_distill.settings.pipeline import Price

UNREAD = Answer()  # an answer that cannot be read because of a bug; a later run bills it


def bill(
    journal: Journal, price: Price | None, attempt: int, raw: bytes, discount: float = 1.0
) -> tuple[Answer, float | None]:
    """The answer and its US dollars; `discount` is the share of the price that is billed."""
    try:
        answer = completions.parse_answer(raw)
    except Exception:  # noqa: BLE001  a bug in the parser costs a row of the table, not the run
        return UNREAD, None
    usd = completions.cost_usd(answer, price, discount)
    counts = (answer.prompt_tokens, answer.completion_tokens, answer.total_tokens)
    journal.bill(attempt, *counts, usd)
    return answer, usd


def bill_the_unbilled(journal: Journal, model: str, price: Price | None) -> None:
    """Record the cost of answers that were stored before a crash without it."""
    for attempt, raw, discount in journal.unbilled(model):
        bill(journal, price, attempt, raw, discount)
