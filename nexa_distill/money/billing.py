"""What a stored answer cost: read from it once it is on disk, and recorded in the journal."""

from nexa_distill import answers
from nexa_distill.answers import Answer
from nexa_distill.config import Price
from nexa_distill.journal import Journal

UNREAD = Answer()


def bill(
    journal: Journal, price: Price | None, attempt: int, raw: bytes, discount: float = 1.0
) -> tuple[Answer, float | None]:
    """The answer and its US dollars; `discount` is the share of the price that is billed.

    A bug in reading it costs a row of the table, not the run: UNREAD, and a later run bills it.
    """
    try:
        answer = answers.parse_answer(raw)
    except Exception:  # noqa: BLE001  see above
        return UNREAD, None
    usd = answers.cost_usd(answer, price, discount)
    counts = (answer.prompt_tokens, answer.completion_tokens, answer.total_tokens)
    journal.bill(attempt, *counts, usd)
    return answer, usd


def bill_the_unbilled(journal: Journal, model: str, price: Price | None) -> None:
    """Answers of a model that were stored, and whose cost was not, before a crash."""
    for attempt, raw, discount in journal.unbilled(model):
        bill(journal, price, attempt, raw, discount)
