"""What a collection would send and cost, before anything is sent.

Tokens are estimated at `BYTES_PER_TOKEN`, answers at their maximum.
"""

from dataclasses import dataclass

from nexa_distill.collection import Collector
from nexa_distill.journal import Journal

BYTES_PER_TOKEN = 4


@dataclass
class Estimate:
    """What a run would send."""

    new: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0


def estimate(collector: Collector, run_id: str) -> Estimate:
    """Look, and send nothing."""
    found, seen = Estimate(), set[int]()
    with Journal(collector.journal_path, run_id) as journal:
        for batch in collector.missing(journal):
            for asking in batch:
                if (key := hash(asking.key)) in seen:
                    continue
                seen.add(key)
                found.new += 1
                found.prompt_tokens += len(asking.body) // BYTES_PER_TOKEN
                found.answer_tokens += collector.config.collection.max_tokens
    found.reused = collector.total - found.new
    return found


def say_estimate(collector: Collector, run_id: str) -> None:
    """`estimate` in a line."""
    found = estimate(collector, run_id)
    price = collector.price
    usd = price and price.cost(found.prompt_tokens, found.answer_tokens)
    at_most = "unpriced" if usd is None else f"at most ${usd:.4f}"
    print(
        f"{collector.name}: {found.new} requests to send to {collector.provider_name} "
        f"({collector.model}), {found.reused} reused from the journal or shared; about "
        f"{found.prompt_tokens} prompt tokens and at most {found.answer_tokens} answer tokens, "
        f"{at_most}"
    )
