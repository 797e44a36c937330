"""The estimate of a stage in words, for `--estimate` and `plan`."""

from collections.abc import Iterator

from nexa_distill.collection.collector import Collector
from nexa_distill.collection.requests.budget import dollars
from nexa_distill.console.progress import clock
from nexa_distill.cost.estimate import Estimate, estimate
from nexa_distill.settings.pipeline import Budget

SHOWN_REASONS = 8
NOT_SENT = {
    "request_refused": "refused before; --retry-failed asks them again",
    "provider_failed": "given up before; --retry-failed asks them again",
    "under_way": "in a batch at the provider; the next run collects the answers",
    "held": "held, perhaps billed; on_uncertain is hold",
    "prompt_too_large": "larger than any model reads",
}


def say_estimate(collector: Collector) -> None:
    """Print what the stage would send and cost."""
    for line in estimate_lines(collector):
        print(f"{collector.name}: {line}")


def estimate_lines(collector: Collector) -> Iterator[str]:
    """What would be sent, what is reused and why the rest is not; tokens, dollars, time."""
    found = estimate(collector)
    reused = {"answered already": found.answered, "shared with another row": found.shared}
    parts = ", ".join(f"{count:,} {why}" for why, count in reused.items() if count)
    yield (
        f"{found.send:,} requests to send to {collector.provider_name} ({collector.model}), "
        f"{found.answered + found.shared:,} reused{f' ({parts})' if parts else ''}"
    )
    shown = found.why.most_common(SHOWN_REASONS)
    yield from (f"  {count:,} {why}" for why, count in shown)
    if others := found.send - sum(count for _, count in shown):
        yield f"  {others:,} for other reasons"
    yield from (
        f"  {count:,} not sent: {NOT_SENT.get(why, why)}" for why, count in found.not_sent.items()
    )
    if found.send:
        yield _tokens(found)
        yield _cost(found)
        yield from _budget(found, collector.config.budget)
        yield _time(found)


def _tokens(found: Estimate) -> str:
    expected = "" if found.answer_tokens is None else f"about {found.answer_tokens:,} and "
    return (
        f"about {found.prompt_tokens:,} prompt tokens ({found.measured_by}), "
        f"{expected}at most {found.most_answer_tokens:,} answer tokens"
    )


def _cost(found: Estimate) -> str:
    if found.most_usd is None:
        return "unpriced: the model has no price in providers:"
    expected = "" if found.usd is None else f"about ${dollars(found.usd)}, "
    return f"{expected}at most ${dollars(found.most_usd)}"


def _budget(found: Estimate, budget: Budget) -> Iterator[str]:
    spent, tokens = found.spent, found.prompt_tokens + found.most_answer_tokens
    rows = (
        ("max_usd", budget.max_usd, spent.usd, found.most_usd),
        ("max_requests", budget.max_requests, spent.requests, found.send),
        ("max_tokens", budget.max_tokens, spent.tokens, tokens),
    )
    for name, limit, before, most in rows:
        if limit is None:
            continue
        show = dollars if name == "max_usd" else "{:,}".format
        now = "not known without a price" if most is None else f"at most {show(most)}"
        yield (
            f"budget.{name} {show(limit)}, spent {show(before)}, this run {now}"
            f"{_stop(before, most or 0, limit)}"
        )


def _stop(spent: float, most: float, limit: float) -> str:
    if spent >= limit:
        return "; nothing more is sent (exit code 77)"
    return "; it may stop before its end (exit code 77)" if spent + most > limit else ""


def _time(found: Estimate) -> str:
    if found.seconds is not None:
        return f"about {clock(max(found.seconds, found.least_seconds))} ({found.pace})"
    if not found.pace:
        return "wall time not known before the first answers"
    if not found.least_seconds:
        return f"wall time: {found.pace}"
    least = f"at least {clock(found.least_seconds)} ({found.pace})"
    return f"wall time not known before the first answers, {least}"
