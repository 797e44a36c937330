"""The cost report as text: its Markdown version, and the lines of `pipeline summary`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nexa_distill.collection.requests.budget import dollars
from nexa_distill.console.progress import clock

Figures = Mapping[str, Any]
UNKNOWN = "not known"
HEADERS = {"usd": "cost", "seconds": "wall time", "answers_per_second": "answers/s"}
STAGE_COLUMNS = (
    "requests_sent",
    "answered",
    "refused",
    "uncertain",
    "prompt_tokens",
    "completion_tokens",
    "usd",
    "seconds",
    "answers_per_second",
)
PROJECTED_COLUMNS = ("requests", "tokens", "seconds", "usd")


def shown(key: str, value: float | None) -> str:
    """A figure of the report as text; its key tells the unit."""
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
    """The whole report as Markdown."""
    total, kept, each = report["total"], report["kept"] or {}, report["per_kept_sample"]
    projection = report["projection"]
    in_all = {**projection, "usd": projection["total_usd"]}
    values = {
        "cost": _cost(total),
        "perhaps billed on top": _doubt(total) or "nothing",
        "wall time": shown("seconds", total["seconds"]),
        "teacher tokens, prompts and answers": shown("", total["teacher_tokens"]),
        "distilled tokens, of the kept answers": shown("", total["distilled_tokens"]),
        "prompts": shown("", kept.get("prompts")),
        "kept samples": shown("", kept.get("kept_samples")),
        "kept of the prompts": shown("keep_rate", kept.get("keep_rate")),
        "cost per kept sample": shown("usd", each["usd"]),
        "wall time per kept sample": shown("seconds", each["seconds"]),
        "teacher tokens per kept sample": shown("teacher_tokens", each["teacher_tokens"]),
    }
    return f"""# Cost

Run {report["run_id"]}, {report["created_at"]}.

{_table(STAGE_COLUMNS, report["stages"])}

| in all | value |
|---|---|
{_join_lines(f"| {name} | {value} |" for name, value in values.items())}

## Projected to {projection["target_samples"]:,} kept samples

{_table(PROJECTED_COLUMNS, {**projection["stages"], "in all": in_all})}

{_join_lines(f"- {note}" for note in report["notes"])}
"""


def _join_lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _table(columns: tuple[str, ...], rows: Mapping[str, Figures]) -> str:
    headers = [HEADERS.get(key, key.replace("_", " ")) for key in columns]
    head = [f"| stage | {' | '.join(headers)} |", "|---" * (len(columns) + 1) + "|"]
    body = (
        f"| {name} | {' | '.join(shown(key, figures[key]) for key in columns)} |"
        for name, figures in rows.items()
    )
    return _join_lines([*head, *body])


def headline(report: Figures) -> Iterator[str]:
    """Spending per stage, cost per kept sample, projection. Empty if nothing was spent."""
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
    """Number and maximum cost of the uncertain requests; empty if there are none."""
    most = shown("usd", stage["uncertain_usd_at_most"])
    return f"{stage['uncertain']:,} requests, at most {most}" if stage["uncertain"] else ""
