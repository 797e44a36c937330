"""The estimate of a stage as text, for `--estimate` and `plan`."""

from typing import Any

from nexa_distill.collection.collector import Collector
from nexa_distill.collection.requests.budget import format_usd
from nexa_distill.console.progress import format_duration
from nexa_distill.cost.estimate import estimate_collection
from nexa_distill.reporting.templates import render_template

SHOWN_REASONS = 8


def print_estimate(collector: Collector) -> None:
    """Print the estimate of the stage."""
    for line in estimate_lines(collector):
        print(f"{collector.name}: {line}")


def estimate_lines(collector: Collector) -> list[str]:
    """Requests to send and why, requests reused or held back; tokens, dollars, budget, time."""
    plan, budget = estimate_collection(collector), collector.config.budget
    tokens = plan.prompt_tokens + plan.most_answer_tokens
    context: dict[str, Any] = {
        "shown": plan.why.most_common(SHOWN_REASONS),
        "limits": [
            ("max_usd", budget.max_usd, plan.spent.usd, plan.most_usd, format_usd),
            ("max_requests", budget.max_requests, plan.spent.requests, plan.send, "{:,}".format),
            ("max_tokens", budget.max_tokens, plan.spent.tokens, tokens, "{:,}".format),
        ],
        "format_usd": format_usd,
        "format_duration": format_duration,
    }
    return render_template("estimate.md.j2", plan=plan, collector=collector, **context).splitlines()
