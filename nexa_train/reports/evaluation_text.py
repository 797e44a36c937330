"""The evaluation report as text: the headline, and report.json in Markdown.

The headline contains the measurements with counts, also if the student did not improve.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from nexa_distill.reporting.markdown import as_code, markdown_table

Json = Mapping[str, Any]
TITLES = {"teacher": "teacher", "before": "student before training", "after": "student after training"}
NOT_MEASURED = "not measured"


def headline_sentences(report: Json) -> list[str]:
    """Three to five sentences, the verdict first."""
    models, comparison = report["models"], report["comparison"]
    sentences = [verdict_sentence(comparison), _gate_sentence(models, comparison["gate"])]
    sentences.append(_loss_sentence(models, comparison["loss"]))
    sizes = [models[name]["parameters"] for name in ("after", "teacher")]
    if all(sizes):
        share = f"{format_percent(sizes[0] / sizes[1])} of the teacher's {format_millions(sizes[1])}"
        sentences.append(f"It has {format_millions(sizes[0])} parameters, {share}.")
    elif sizes[0]:
        sentences.append(f"It has {format_millions(sizes[0])} parameters; the teacher's are not known.")
    return sentences


def verdict_sentence(comparison: Json) -> str:
    """One sentence: better, worse, both or neither, by the verdicts of `comparison`."""
    pairs = {name: comparison[name] for name in ("gate", "loss") if comparison[name]}
    if _is_undecided(pairs.values()):
        count = max((pair["documents"] for pair in pairs.values()), default=0)
        needed = comparison.get("fewest_documents")  # absent in a report of an earlier version
        least = f": at least {needed} are needed" if needed else ""
        return f"Whether training helped cannot be said from {format_documents(count)}{least}."
    gate, loss = (pairs[name]["verdict"] if name in pairs else None for name in ("gate", "loss"))
    better = ["gate pass rate"] * (gate == "higher") + ["loss"] * (loss == "lower")
    worse = ["gate pass rate"] * (gate == "lower") + ["loss"] * (loss == "higher")
    if better and worse:
        return f"Training helped and hurt: better {better[0]}, worse {worse[0]} on held-out prompts."
    if better:
        return f"Training improved the student on held-out prompts: better {' and '.join(better)}."
    if worse:
        return f"Training made the student worse on held-out prompts: worse {' and '.join(worse)}."
    return "No difference between the student before and after training can be shown."


def _is_undecided(pairs: Iterable[Json]) -> bool:
    return all(pair["verdict"] == "cannot be said" for pair in pairs)


def _gate_sentence(models: Json, gate: Json | None) -> str:
    after, before, teacher = (format_passes(models[name]["gate"]) for name in ("after", "before", "teacher"))
    text = f"After training it passes the gate on {after} held-out prompts, before on {before}"
    if gate:
        text += f" ({format_interval(gate, percent=True)}; McNemar {format_p_value(gate['mcnemar_p'])})"
    return f"{text}; the teacher on {teacher}."


def _loss_sentence(models: Json, loss: Json | None) -> str:
    after, before, teacher = (models[name]["loss"] for name in ("after", "before", "teacher"))
    if not after or not before:
        return "The loss on the teacher's held-out answers was not measured."
    text = (
        f"Its loss on the teacher's held-out answers is {after['nats_per_token']:.3f} nats per "
        f"token after and {before['nats_per_token']:.3f} before ({after['tokens']:,} tokens of "
        f"{after['samples']} answers"
    )
    text += f"; {format_interval(loss)})" if loss else ")"
    return text + (f"; the teacher's own is {teacher['nats_per_token']:.3f}." if teacher else ".")


def format_passes(gate: Json) -> str:
    """`21 of 26 (81 %)`."""
    if gate["rate"] is None:
        return NOT_MEASURED
    return f"{gate['passed']} of {gate['total']} ({format_percent(gate['rate'])})"


def format_with_interval(gate: Json) -> str:
    """`21 of 26 (81 %) [62 %, 92 %]`: with its 95 % score interval."""
    if gate["rate"] is None:
        return NOT_MEASURED
    return f"{format_passes(gate)} [{format_percent(gate['low'])}, {format_percent(gate['high'])}]"


def format_interval(difference: Json, *, percent: bool = False) -> str:
    """`difference +0.20, 95 % interval +0.10 to +0.30`; shares in percentage points."""
    scale, digits, unit = (100, 0, " points") if percent else (1, 3, "")

    def format_value(value: float) -> str:
        return f"{value * scale:+.{digits}f}" if value else "0"

    text = f"difference {format_value(difference['difference'])}{unit}"
    if difference["low"] is None:
        return f"{text}, no interval from {format_documents(difference['documents'])}"
    return f"{text}, 95 % interval {format_value(difference['low'])} to {format_value(difference['high'])}"


def format_documents(count: int) -> str:
    """`1 document`, `3 documents`."""
    return f"{count:,} document{'' if count == 1 else 's'}"


def format_percent(share: float | None) -> str:
    """`81 %` with a no-break space, or "not measured"."""
    return NOT_MEASURED if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def format_p_value(p: float) -> str:
    """`p = 0.031`; below 0.001 a bound."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def format_millions(count: int | None) -> str:
    """`135 M`; a number below a million in full."""
    if count is None:
        return NOT_MEASURED
    return f"{count / 1e6:.0f} M" if count >= 1e6 else f"{count:,}"


def format_number(value: float | None, digits: int = 0) -> str:
    """With thousands separators, or "not measured"."""
    return NOT_MEASURED if value is None else f"{value:,.{digits}f}"


def figure_rows(models: Json) -> list[tuple[str, list[str]]]:
    """The table of all documents: (measure, one text per model in the order of TITLES)."""

    def figure_row(name: str, shown: Any) -> tuple[str, list[str]]:
        return name, [shown(models[key]) for key in TITLES]

    def nested_number(key: str, field: str, digits: int = 0) -> Any:
        return lambda m: format_number(m[key][field] if m[key] else None, digits)

    # Without any judge the row is not a missing measurement.
    without = NOT_MEASURED if any(m["judge"] for m in models.values()) else "judge: not run"

    def judge_score(check: str) -> Any:
        return lambda m: format_number(m["judge"].get(check), 2) if m["judge"] else without

    def execution_share(check: str) -> Any:
        return lambda m: format_with_interval(m["execution"][check]) if m["execution"][check] else "none"

    return [
        figure_row("model", lambda m: m["model_id"] or NOT_MEASURED),
        figure_row("parameters", lambda m: format_millions(m["parameters"])),
        figure_row("layers", lambda m: format_number(m["layers"])),
        figure_row("passes the gate", lambda m: format_with_interval(m["gate"])),
        figure_row("executes", execution_share("exec.executes")),
        figure_row("right result, by execution", execution_share("exec.matches")),
        figure_row("judged factual, of what passes the rules", judge_score("judge.factuality")),
        figure_row("judged well reasoned, of what passes the rules", judge_score("judge.reasoning")),
        figure_row("loss, nats per token", nested_number("loss", "nats_per_token", 3)),
        figure_row("tokens of the loss", nested_number("loss", "tokens")),
        figure_row("answer length, mean tokens", nested_number("answer_tokens", "mean")),
        figure_row("tokens per second, here", nested_number("generation", "tokens_per_second", 1)),
    ]


def render_markdown(report: Json) -> str:
    """The whole report in Markdown."""
    lines = [f"# Evaluation of {report['run_name']}", ""]
    lines += [f"- {sentence}" for sentence in report["headline"]]
    prompts = f"{report['prompts']} prompts of the {report['split']} split"
    lines += ["", f"Run {report['run_id']}, {report['created_at']}; {prompts}."]
    lines += ["", *markdown_table(["", *TITLES.values()], [[n, *v] for n, v in figure_rows(report["models"])])]
    for title, key in (("task type", "by_task"), ("domain", "by_domain")):
        lines += ["", f"## Gate by {title}", "", *group_table(report["models"], title, key)]
        lines += ["", *comparison_table(report["comparison"], title, key)]
    lines += ["", "## Against the accepted run", "", regression_paragraph(report["regression"])]
    lines += ["", "## First reasons of rejection", "", *_reason_table(report["models"])]
    lines += ["", "## From raw data to training", ""]
    lines += markdown_table(["step", "rows"], [[s["step"], format_number(s["count"])] for s in report["funnel"]])
    lines += ["", "## Side by side", ""]
    for example in report["examples"]:
        lines += _example_lines(example)
    return "\n".join(lines) + "\n"


def group_table(models: Json, title: str, key: str) -> list[str]:
    """The gate by task type or domain: one row per name, a share with its interval per model."""
    names = sorted({name for model in models.values() for name in model[key]})

    def share_text(model: Json, name: str) -> str:
        return format_with_interval(model[key][name]) if name in model[key] else NOT_MEASURED

    rows = [[as_code(name), *(share_text(models[m], name) for m in TITLES)] for name in names]
    return markdown_table([title, *TITLES.values()], rows)


def comparison_table(comparison: Json, title: str, key: str) -> list[str]:
    """Before and after training by group. A single one of many comparisons proves little."""
    rows = [
        [as_code(name), format_interval(pair, percent=True), pair["verdict"], format_p_value(pair["mcnemar_p"])]
        for name, pair in comparison[key].items()
    ]
    return markdown_table([title, "after minus before", "verdict", "McNemar"], rows)


def regression_paragraph(comparison: Json) -> str:
    """The comparison with the accepted run, in one paragraph."""
    if comparison["accepted"] is None:
        return (
            "No run has been accepted yet, so nothing was compared with this one; "
            "`python -m nexa_train.regression accept` accepts it."
        )
    run = comparison["accepted"]
    text = f"Accepted run {as_code(run['run_id'])} of {run['accepted_at'][:10]}"
    if comparison["gate"]:
        text += f": gate pass rate {format_interval(comparison['gate'], percent=True)}"
    if comparison["loss"]:
        text += f"; loss {format_interval(comparison['loss'])}"
    if comparison["misses"]:
        return f"{text}. Worse than allowed: {'; '.join(comparison['misses'])}."
    if _is_undecided([comparison[name] for name in ("gate", "loss") if comparison[name]]):
        return f"{text}. Too few documents to tell whether it is worse."
    return f"{text}. No worse than `regression_gate:` allows."


def _reason_table(models: Json) -> list[str]:
    counts = [models[name]["reject_reason_counts"] for name in TITLES]
    names = sorted({name for count in counts for name in count})
    if not names:
        return ["Nothing was rejected."]
    rows = [[name, *(str(count[name]) if name in count else "0" for count in counts)] for name in names]
    return markdown_table(["reason", *TITLES.values()], rows)


def _example_lines(example: Json) -> list[str]:
    named = filter(None, (example["template_name"], example["domain"]))
    title = " · ".join(as_code(name) for name in named)
    lines = [f"### {title} `{example['sample_id'][:12]}`", "", *_quote_text(example["user_prompt"]), ""]
    for name, label in TITLES.items():
        answer = example["answers"][name]
        lines += [f"**{label}** ({describe_outcome(answer)})", ""]
        lines += _quote_text(answer["text"] if answer and answer["text"] else "(no answer)") + [""]
    return lines


def describe_outcome(answer: Json | None) -> str:
    """The gate's result of one answer."""
    if answer is None:
        return "no answer"
    return f"rejected: {', '.join(answer['reasons'])}" if answer["reasons"] else "passes"


def _quote_text(text: str) -> list[str]:
    # As a quote, model text cannot become a heading or a table, and line breaks are kept.
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return [f"> {line}  " for line in safe.splitlines()] or ["> "]
