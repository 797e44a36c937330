"""Two finished runs side by side: their students on the held-out prompts that both answered.

Paired: per prompt, whether the answer passes the gates and how likely the teacher's answer is. The
figures are of `significance.py`; an outcome has `document`, `passes` (null: not answered), and `nats`
and `tokens` of the teacher's answer (null: not measured).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from nexa_distill.reporting.significance import compare_losses, compare_passes
from nexa_distill.storage.atomic import Json


def compare_outcomes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Json:
    """Of two reports: `{shared, same_gates, gate, loss}`; the last two null where nothing can be compared."""
    first, second = before["outcomes"], now["outcomes"]
    both = sorted(answered_prompts(first) & answered_prompts(second))
    same_gates = before["gates_sha256"] == now["gates_sha256"]
    passes = [[run[key]["passes"] for key in both] for run in (first, second)]
    documents = [second[key]["document"] for key in both]
    return {
        "shared": len(both),
        "same_gates": same_gates,
        "gate": compare_passes(documents, *passes) if same_gates else None,
        "loss": _compare_losses(first, second),
    }


def answered_prompts(outcomes: Json) -> set[str]:
    # `max_prompts` may leave out samples, which have a loss then and no answer.
    return {key for key, outcome in outcomes.items() if outcome["passes"] is not None}


def _compare_losses(then: Json, today: Json) -> Json | None:
    before, after = (
        {key: outcome for key, outcome in run.items() if outcome["tokens"] is not None} for run in (then, today)
    )
    # Losses on other answers cannot be compared.
    return compare_losses(before, after) if before.keys() == after.keys() else None


def comparison_lines(names: tuple[str, str], reports: tuple[Json, Json]) -> Iterator[str]:
    """A table of both runs, and the paired differences in words (second minus first)."""
    width = max(24, *(len(name) + 2 for name in names))
    result = compare_outcomes(*reports)
    yield f"{'':<30}" + "".join(f"{name:<{width}}" for name in names)
    for label, cells in _rows(reports):
        yield f"{label:<30}" + "".join(f"{cell:<{width}}" for cell in cells)
    yield ""
    yield f"{result['shared']} held-out prompts were answered by both; differences are {names[1]} less {names[0]}."
    if not result["same_gates"]:
        yield "past the gates: not compared, because thresholds, tasks or judges differ"
    else:
        yield f"past the gates: {_difference(result['gate'], share=True)}"
    yield f"loss per token, nats: {_difference(result['loss'])}"


def _rows(reports: tuple[Json, Json]) -> Iterator[tuple[str, list[str]]]:
    yield "student", [report["run_name"] for report in reports]
    yield "evaluated", [report["created_at"][:16].replace("T", " ") for report in reports]
    yield "trained on, samples", [str(_trained_rows(report)) for report in reports]
    for label, name in (("past the gates before", "before"), ("past the gates after", "after")):
        yield label, [_passes(report["models"][name]) for report in reports]


def _trained_rows(report: Json) -> Any:
    counts = {row["step"]: row["count"] for row in report["funnel"]}
    return counts.get("train", "not known")


def _passes(model: Json) -> str:
    gate = model["gate"]
    interval = "" if gate["low"] is None else f" ({gate['low']:.0%} to {gate['high']:.0%})"
    return f"{gate['passed']} of {gate['total']}{interval}"


def _difference(result: Json | None, *, share: bool = False) -> str:
    if result is None:
        return "not compared: no common measurement"
    scale, unit = (100, " points") if share else (1, "")
    low, high = result["low"], result["high"]
    interval = "" if low is None else f", 95 % interval {low * scale:+.3g} to {high * scale:+.3g}{unit}"
    documents = f" ({result['samples']} prompts of {result['documents']} documents)"
    return f"{result['verdict']}: {result['difference'] * scale:+.3g}{unit}{interval}{documents}"
