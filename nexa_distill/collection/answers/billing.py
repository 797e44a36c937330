"""What a stored answer cost: read from it once it is on disk, and recorded in the journal."""

from nexa_distill.collection.answers import completions
from nexa_distill.collection.answers.completions import Answer
from nexa_distill.journal.journal import Journal
from nexa_distill.settings.pipeline import Price

UNREAD = Answer()


def bill(
    journal: Journal, price: Price | None, attempt: int, raw: bytes, discount: float = 1.0
) -> tuple[Answer, float | None]:
    """The answer and its US dollars; `discount` is the share of the price that is billed.

    A bug in reading it costs a row of the table, not the run: UNREAD, and a later run bills it.
    """
    try:
        answer = completions.parse_answer(raw)
    except Exception:  # noqa: BLE001  see above
        return UNREAD, None
    usd = completions.cost_usd(answer, price, discount)
    counts = (answer.prompt_tokens, answer.completion_tokens, answer.total_tokens)
    journal.bill(attempt, *counts, usd)
    return answer, usd


def bill_the_unbilled(journal: Journal, model: str, price: Price | None) -> None:
    """Answers of a model that were stored, and whose cost was not, before a crash."""
    for attempt, raw, discount in journal.unbilled(model):
        bill(journal, price, attempt, raw, discount)
