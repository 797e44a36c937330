"""The estimate of a stage as text, for `--estimate` and `plan`."""

from collections.abc import Iterator

from nexa_distill.collection.collector import Collector
from nexa_distill.collection.requests.budget import format_usd
from nexa_distill.console.progress import format_duration
from nexa_distill.cost.estimate import Estimate, estimate_collection
from nexa_distill.settings.pipeline import Budget

SHOWN_REASONS = 8
NOT_SENT = {
    "request_refused": "refused before; --retry-failed asks them again",
    "provider_failed": "given up before; --retry-failed asks them again",
    "under_way": "in a batch at the provider; the next run collects its answers",
    "held": "held, perhaps billed; on_uncertain is hold",
    "prompt_too_large": "larger than any model accepts",
}


def print_estimate(collector: Collector) -> None:
    """Print the estimate of the stage."""
    for line in estimate_lines(collector):
        print(f"{collector.name}: {line}")


def estimate_lines(collector: Collector) -> Iterator[str]:
    """Requests to send and why, requests reused or held back; tokens, dollars, budget, time."""
    plan = estimate_collection(collector)
    reused = {"answered already": plan.answered, "shared with another row": plan.shared}
    parts = ", ".join(f"{count:,} {why}" for why, count in reused.items() if count)
    yield (
        f"{plan.send:,} requests to send to {collector.provider_name} ({collector.model}), "
        f"{plan.answered + plan.shared:,} reused{f' ({parts})' if parts else ''}"
    )
    shown = plan.why.most_common(SHOWN_REASONS)
    yield from (f"  {count:,} {why}" for why, count in shown)
    if others := plan.send - sum(count for _, count in shown):
        yield f"  {others:,} for other reasons"
    yield from (f"  {count:,} not sent: {NOT_SENT.get(why, why)}" for why, count in plan.not_sent.items())
    if plan.send:
        yield _token_line(plan)
        yield _cost_line(plan)
        yield from _budget_lines(plan, collector.config.budget)
        yield _time_line(plan)


def _token_line(plan: Estimate) -> str:
    expected = "" if plan.answer_tokens is None else f"about {plan.answer_tokens:,} and "
    return (
        f"about {plan.prompt_tokens:,} prompt tokens ({plan.measured_by}), "
        f"{expected}at most {plan.most_answer_tokens:,} answer tokens"
    )


def _cost_line(plan: Estimate) -> str:
    if plan.most_usd is None:
        return "unpriced: the model has no price in providers:"
    expected = "" if plan.usd is None else f"about ${format_usd(plan.usd)}, "
    return f"{expected}at most ${format_usd(plan.most_usd)}"


def _budget_lines(plan: Estimate, budget: Budget) -> Iterator[str]:
    spent, tokens = plan.spent, plan.prompt_tokens + plan.most_answer_tokens
    rows = (
        ("max_usd", budget.max_usd, spent.usd, plan.most_usd),
        ("max_requests", budget.max_requests, spent.requests, plan.send),
        ("max_tokens", budget.max_tokens, spent.tokens, tokens),
    )
    for name, limit, before, most in rows:
        if limit is None:
            continue
        show = format_usd if name == "max_usd" else "{:,}".format
        now = "not known without a price" if most is None else f"at most {show(most)}"
        yield (
            f"budget.{name} {show(limit)}, spent {show(before)}, this run {now}{_stop_note(before, most or 0, limit)}"
        )


def _stop_note(spent: float, most: float, limit: float) -> str:
    if spent >= limit:
        return "; nothing more is sent (exit code 77)"
    return "; it may stop before its end (exit code 77)" if spent + most > limit else ""


def _time_line(plan: Estimate) -> str:
    if plan.seconds is not None:
        return f"about {format_duration(max(plan.seconds, plan.least_seconds))} ({plan.pace})"
    if not plan.pace:
        return "wall time not known before the first answers"
    if not plan.least_seconds:
        return f"wall time: {plan.pace}"
    least = f"at least {format_duration(plan.least_seconds)} ({plan.pace})"
    return f"wall time not known before the first answers, {least}"
