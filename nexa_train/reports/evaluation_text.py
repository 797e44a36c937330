"""The evaluation report as text: the headline, and report.json in Markdown.

The headline contains the measurements with counts, also if the student did not improve.
"""

from collections.abc import Callable, Sequence

from nexa_distill.contracts import RUBRICS
from nexa_train.reports.formats import (
    NOT_MEASURED,
    TITLES,
    Json,
    format_millions,
    format_number,
    format_with_interval,
    render_report,
)

GROUPS = (("task type", "by_task"), ("domain", "by_domain"))


def headline_sentences(report: Json) -> list[str]:
    """Three to five sentences, the verdict first."""
    comparison = report["comparison"]
    gate, loss = (comparison[name]["verdict"] if comparison[name] else None for name in ("gate", "loss"))
    pairs = _measured_pairs(comparison)
    text = render_report(
        "headline.md.j2",
        models=report["models"],
        comparison=comparison,
        undecided=_is_undecided(pairs),
        compared=max((pair["documents"] for pair in pairs), default=0),
        better=["gate pass rate"] * (gate == "higher") + ["loss"] * (loss == "lower"),
        worse=["gate pass rate"] * (gate == "lower") + ["loss"] * (loss == "higher"),
    )
    return text.splitlines()


def regression_paragraph(comparison: Json) -> str:
    """The comparison with the accepted run, in one paragraph."""
    undecided = _is_undecided(_measured_pairs(comparison))
    return render_report("regression.md.j2", **comparison, undecided=undecided).strip()


def _measured_pairs(comparison: Json) -> list[Json]:
    return [comparison[name] for name in ("gate", "loss") if comparison[name]]


def _is_undecided(pairs: Sequence[Json]) -> bool:
    return all(pair["verdict"] == "cannot be said" for pair in pairs)


def render_markdown(report: Json) -> str:
    """The whole report in Markdown."""
    return render_report("evaluation.md.j2", **build_context(report), quote=_quote_text)


def build_context(report: Json) -> Json:
    """What the templates of the report in Markdown, of its page and of the model card share."""
    models = report["models"]
    return {
        "report": report,
        "models": models,
        "figures": _figure_rows(models),
        "groups": [(title, key, sorted({n for m in models.values() for n in m[key]})) for title, key in GROUPS],
        "reasons": sorted({name for model in models.values() for name in model["reject_reason_counts"]}),
        "regression": regression_paragraph(report["regression"]),
        "outcome": _describe_outcome,
    }


def _figure_rows(models: Json) -> list[tuple[str, list[str]]]:
    """The table of all documents: (measure, one text per model in the order of TITLES)."""
    # Without any judge the row is not a missing measurement.
    without = NOT_MEASURED if any(m["judge"] for m in models.values()) else "judge: not run"

    def nested_number(key: str, field: str, digits: int = 0) -> Callable[[Json], str]:
        return lambda m: format_number(m[key][field] if m[key] else None, digits)

    def judge_score(check: str) -> Callable[[Json], str]:
        return lambda m: format_number(m["judge"].get(check), 2) if m["judge"] else without

    def execution_share(check: str) -> Callable[[Json], str]:
        return lambda m: format_with_interval(m["execution"][check]) if m["execution"][check] else "none"

    measures: dict[str, Callable[[Json], str]] = {
        "model": lambda m: m["model_id"] or NOT_MEASURED,
        "parameters": lambda m: format_millions(m["parameters"]),
        "layers": lambda m: format_number(m["layers"]),
        "passes the gate": lambda m: format_with_interval(m["gate"]),
        "executes": execution_share("exec.executes"),
        "right result, by execution": execution_share("exec.matches"),
        **{f"{rubric.title}, of what passes the rules": judge_score(rubric.check_name) for rubric in RUBRICS},
        "loss, nats per token": nested_number("loss", "nats_per_token", 3),
        "tokens of the loss": nested_number("loss", "tokens"),
        "answer length, mean tokens": nested_number("answer_tokens", "mean"),
        "tokens per second, here": nested_number("generation", "tokens_per_second", 1),
    }
    return [(name, [text_of(models[key]) for key in TITLES]) for name, text_of in measures.items()]


def _describe_outcome(answer: Json | None) -> str:
    """The gate's result of one answer."""
    if answer is None:
        return "no answer"
    return f"rejected: {', '.join(answer['reasons'])}" if answer["reasons"] else "passes"


def _quote_text(text: str) -> str:
    # As a quote, model text cannot become a heading or a table, and line breaks are kept.
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return "\n".join(f"> {line}  " for line in safe.splitlines()) or "> "
