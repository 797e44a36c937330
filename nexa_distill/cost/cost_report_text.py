"""The cost report for people: its Markdown twin, and the lines of `pipeline summary`."""

from collections.abc import Iterator, Mapping
from typing import Any

from nexa_distill.collection.requests.budget import dollars
from nexa_distill.console.progress import clock

Figures = Mapping[str, Any]
UNKNOWN = "not known"
STAGE_COLUMNS = {
    "requests sent": "requests_sent", "answered": "answered", "refused": "refused",
    "uncertain": "uncertain", "prompt tokens": "prompt_tokens",
    "completion tokens": "completion_tokens", "cost": "usd", "wall time": "seconds",
    "answers/s": "answers_per_second",
}  # fmt: skip
PROJECTED_COLUMNS = {
    "requests": "requests", "tokens": "tokens", "wall time": "seconds", "cost": "usd"
}  # fmt: skip


def shown(key: str, value: float | None) -> str:
    """A figure of the report; its key says what it is."""
    if value is None:
        return UNKNOWN
    if "usd" in key:
        return f"${dollars(value)}"
    if key == "seconds":
        return clock(value) if value >= 60 else f"{value:.{1 if value >= 1 else 3}f} s"
    if key == "keep_rate":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def markdown(report: Figures) -> str:
    """The whole report."""
    total, kept, each = report["total"], report["kept"] or {}, report["per_kept_sample"]
    lines = [
        "# Cost", "", f"Run {report['run_id']}, {report['created_at']}.", "",
        *_table("stage", STAGE_COLUMNS, report["stages"]), "",
        "| in all | value |", "|---|---|",
        f"| cost | {_cost(total)} |",
        f"| perhaps billed on top | {_doubt(total) or 'nothing'} |",
        f"| wall time | {shown('seconds', total['seconds'])} |",
        f"| teacher tokens, prompts and answers | {shown('', total['teacher_tokens'])} |",
        f"| distilled tokens, of the kept answers | {shown('', total['distilled_tokens'])} |",
        f"| prompts | {shown('', kept.get('prompts'))} |",
        f"| kept samples | {shown('', kept.get('kept_samples'))} |",
        f"| kept of the prompts | {shown('keep_rate', kept.get('keep_rate'))} |",
        *(
            f"| {name} per kept sample | {shown(key, each[key])} |"
            for name, key in (
                ("cost", "usd"), ("wall time", "seconds"), ("teacher tokens", "teacher_tokens")
            )
        ),
        "", *_projection(report["projection"]), "", *(f"- {note}" for note in report["notes"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(first: str, columns: Mapping[str, str], rows: Mapping[str, Figures]) -> Iterator[str]:
    yield f"| {first} | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, figures in rows.items():
        values = " | ".join(shown(key, figures[key]) for key in columns.values())
        yield f"| {name} | {values} |"


def _projection(projection: Figures) -> Iterator[str]:
    yield f"## Projected to {projection['target_samples']:,} kept samples"
    yield ""
    in_all = {**projection, "usd": projection["total_usd"]}
    yield from _table("stage", PROJECTED_COLUMNS, {**projection["stages"], "in all": in_all})


def headline(report: Figures) -> Iterator[str]:
    """Per stage what was spent; what a kept sample cost, and what more would. Empty when unpaid."""
    for name, stage in report["stages"].items():
        doubt = f"; perhaps billed twice: {_doubt(stage)}" if stage["uncertain"] else ""
        if stage["under_way"]:
            doubt += f"; {stage['under_way']:,} requests in batches at the provider"
        yield (
            f"{name}: {stage['answered']:,} answers of {stage['requests_sent']:,} requests, "
            f"{_cost(stage)}, {shown('seconds', stage['seconds'])}, "
            f"{shown('', stage['answers_per_second'])} answers/s{doubt}"
        )
    kept, each, more = report["kept"], report["per_kept_sample"], report["projection"]
    if kept:
        yield (
            f"kept: {kept['kept_samples']:,} of {kept['prompts']:,} prompts; per kept sample "
            f"{shown('usd', each['usd'])}, {shown('seconds', each['seconds'])}, "
            f"{shown('', each['teacher_tokens'])} teacher tokens"
        )
        yield (
            f"{more['target_samples']:,} kept samples, at these rates: "
            f"{shown('', more['requests'])} requests, {shown('', more['teacher_tokens'])} teacher "
            f"tokens, {shown('seconds', more['seconds'])}, {shown('usd', more['total_usd'])}"
        )


def _cost(stage: Figures) -> str:
    without = stage["answers_without_price"]
    if stage["usd"] is None:
        return "unpriced" if without else UNKNOWN
    return shown("usd", stage["usd"]) + (f" ({without:,} answers unpriced)" if without else "")


def _doubt(stage: Figures) -> str:
    """What the uncertain requests may have cost; empty when there are none."""
    most = shown("usd", stage["uncertain_usd_at_most"])
    return f"{stage['uncertain']:,} requests, at most {most}" if stage["uncertain"] else ""
