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

EXECUTED = {
    "exec.parses": "valid SQL",
    "exec.executes": "executes",
    "exec.matches": "right result",
    "exec.matches_perturbed": "right on changed databases too",
}
RIGHT = ("exec.matches", "exec.matches_perturbed")
GROUPS = (("task type", "by_task"), ("domain", "by_domain"))


FORM_ONLY = " (form only)"  # beside a figure of a gate that neither ran an answer nor asked a judge
LEAST_RISE = 0.01  # nats of validation loss above its minimum that are told


def name_of_gate(models: Json) -> str:
    """`gate`, or `gate (form only)` where only rules were checked."""
    is_measured = any(m["judge"] or any(m["execution"].values()) for m in models.values())
    return "gate" + ("" if is_measured else FORM_ONLY)


def _find_loss_rise(curve: Sequence[Json]) -> Json | None:
    """Where the validation loss was least, if it has risen since; None otherwise."""
    points = [row for row in curve if row.get("val_loss") is not None]
    if not points:
        return None
    least, last = min(points, key=lambda row: float(row["val_loss"])), points[-1]
    has_risen = last["val_loss"] - least["val_loss"] > LEAST_RISE
    return {"step": least["step"], "least": least["val_loss"], "last": last["val_loss"]} if has_risen else None


def headline_sentences(report: Json, curve: Sequence[Json] = ()) -> list[str]:
    """Three to seven sentences, the verdict first. `curve`: the steps of the training."""
    comparison = report["comparison"]
    gate, loss = (comparison[name]["verdict"] if comparison[name] else None for name in ("gate", "loss"))
    pairs = _measured_pairs(comparison)
    text = render_report(
        "headline.md.j2",
        models=report["models"],
        comparison=comparison,
        executed=_right_by_execution(report["models"]),
        gate_name=name_of_gate(report["models"]),
        rise=_find_loss_rise(curve),
        undecided=_is_undecided(pairs),
        compared=max((pair["documents"] for pair in pairs), default=0),
        better=["gate pass rate"] * (gate == "higher") + ["loss"] * (loss == "lower"),
        worse=["gate pass rate"] * (gate == "lower") + ["loss"] * (loss == "higher"),
    )
    return text.splitlines()


def _execution_by_group(models: Json) -> dict[str, dict[str, Json]]:
    """Prompts (all, then each domain if there are several) -> model -> check -> its share."""
    domains = sorted({name for model in models.values() for name in model["by_domain"]})
    groups = {"all prompts": {key: model["execution"] for key, model in models.items()}}
    for name in domains if len(domains) > 1 else ():
        groups[name] = {key: m["by_domain"].get(name, {"execution": {}})["execution"] for key, m in models.items()}
    return groups


def _execution_rows(models: Json) -> list[tuple[str, str, list[str]]]:
    """The table of executed answers: (prompts, measure, one text per model in the order of TITLES)."""
    return [
        (group, title, [format_with_interval(shares[key].get(check)) for key in TITLES])
        for group, shares in _execution_by_group(models).items()
        for check, title in EXECUTED.items()
        if any(shares[key].get(check) for key in TITLES)
    ]


def _right_by_execution(models: Json) -> list[tuple[str, Json, Json]]:
    """(prompts, share before, share after) of right answers, by the strictest check that was made."""
    groups = _execution_by_group(models)
    measured = [check for check in EXECUTED if groups["all prompts"]["after"].get(check)]
    if not measured or measured[-1] not in RIGHT:
        return []
    return [(name, *(shares[key][measured[-1]] for key in ("before", "after"))) for name, shares in groups.items()]


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
        "executed": _execution_rows(models),
        "gate_name": name_of_gate(models),
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

    measures: dict[str, Callable[[Json], str]] = {
        "model": lambda m: m["model_id"] or NOT_MEASURED,
        "parameters": lambda m: format_millions(m["parameters"]),
        "layers": lambda m: format_number(m["layers"]),
        f"passes the {name_of_gate(models)}": lambda m: format_with_interval(m["gate"]),
        **{f"{rubric.title}, of what passes the rules": judge_score(rubric.check_name) for rubric in RUBRICS},
        "loss, nats per token": nested_number("loss", "nats_per_token", 3),
        "tokens of the loss": nested_number("loss", "tokens"),
        "answer length, mean tokens": nested_number("answer_tokens", "mean"),
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
