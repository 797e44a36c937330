"""The cost report as text: its Markdown version, and the lines of `pipeline summary`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nexa_distill.collection.requests.budget import format_usd
from nexa_distill.console.progress import format_duration

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


def format_figure(key: str, value: float | None) -> str:
    """A figure of the report as text; its key tells the unit."""
    if value is None:
        return UNKNOWN
    if "usd" in key:
        return f"${format_usd(value)}"
    if key == "seconds":
        return format_duration(value) if value >= 60 else f"{value:.{1 if value >= 1 else 3}f} s"
    if key == "keep_rate":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def render_markdown(report: Figures) -> str:
    """The whole report as Markdown."""
    total, kept, each = report["total"], report["kept"] or {}, report["per_kept_sample"]
    projection = report["projection"]
    in_all = {**projection, "usd": projection["total_usd"]}
    values = {
        "cost": _format_cost(total),
        "perhaps billed on top": _format_uncertain(total) or "nothing",
        "wall time": format_figure("seconds", total["seconds"]),
        "teacher tokens, prompts and answers": format_figure("", total["teacher_tokens"]),
        "distilled tokens, of the kept answers": format_figure("", total["distilled_tokens"]),
        "prompts": format_figure("", kept.get("prompts")),
        "kept samples": format_figure("", kept.get("kept_samples")),
        "kept of the prompts": format_figure("keep_rate", kept.get("keep_rate")),
        "cost per kept sample": format_figure("usd", each["usd"]),
        "wall time per kept sample": format_figure("seconds", each["seconds"]),
        "teacher tokens per kept sample": format_figure("teacher_tokens", each["teacher_tokens"]),
    }
    return f"""# Cost

Run {report["run_id"]}, {report["created_at"]}.

{_table_lines(STAGE_COLUMNS, report["stages"])}

| in all | value |
|---|---|
{_join_lines(f"| {name} | {value} |" for name, value in values.items())}

## Projected to {projection["target_samples"]:,} kept samples

{_table_lines(PROJECTED_COLUMNS, {**projection["stages"], "in all": in_all})}

{_join_lines(f"- {note}" for note in report["notes"])}
"""


def _join_lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _table_lines(columns: tuple[str, ...], rows: Mapping[str, Figures]) -> str:
    headers = [HEADERS.get(key, key.replace("_", " ")) for key in columns]
    head = [f"| stage | {' | '.join(headers)} |", "|---" * (len(columns) + 1) + "|"]
    body = (
        f"| {name} | {' | '.join(format_figure(key, figures[key]) for key in columns)} |"
        for name, figures in rows.items()
    )
    return _join_lines([*head, *body])


def summary_lines(report: Figures) -> Iterator[str]:
    """Spending per stage, cost per kept sample, projection. Empty if nothing was spent."""
    for name, stage in report["stages"].items():
        doubt = f"; perhaps billed twice: {_format_uncertain(stage)}" if stage["uncertain"] else ""
        if stage["under_way"]:
            doubt += f"; {stage['under_way']:,} requests in batches at the provider"
        yield (
            f"{name}: {stage['answered']:,} answers of {stage['requests_sent']:,} requests, "
            f"{_format_cost(stage)}, {format_figure('seconds', stage['seconds'])}, "
            f"{format_figure('', stage['answers_per_second'])} answers/s{doubt}"
        )
    kept, each, more = report["kept"], report["per_kept_sample"], report["projection"]
    if kept:
        yield (
            f"kept: {kept['kept_samples']:,} of {kept['prompts']:,} prompts; per kept sample "
            f"{format_figure('usd', each['usd'])}, {format_figure('seconds', each['seconds'])}, "
            f"{format_figure('', each['teacher_tokens'])} teacher tokens"
        )
        yield (
            f"{more['target_samples']:,} kept samples, at these rates: "
            f"{format_figure('', more['requests'])} requests, {format_figure('', more['teacher_tokens'])} teacher "
            f"tokens, {format_figure('seconds', more['seconds'])}, {format_figure('usd', more['total_usd'])}"
        )


def _format_cost(stage: Figures) -> str:
    without = stage["answers_without_price"]
    if stage["usd"] is None:
        return "unpriced" if without else UNKNOWN
    return format_figure("usd", stage["usd"]) + (f" ({without:,} answers unpriced)" if without else "")


def _format_uncertain(stage: Figures) -> str:
    """Number and maximum cost of the uncertain requests; empty if there are none."""
    most = format_figure("usd", stage["uncertain_usd_at_most"])
    return f"{stage['uncertain']:,} requests, at most {most}" if stage["uncertain"] else ""
