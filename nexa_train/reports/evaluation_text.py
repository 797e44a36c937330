"""The evaluation report as text: the headline, and report.json in Markdown.

The headline contains the measurements with counts, also if the student did not improve.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from nexa_distill.reporting.markdown import as_code, table

Json = Mapping[str, Any]
TITLES = {
    "teacher": "teacher",
    "before": "student before training",
    "after": "student after training",
}
NOT_MEASURED = "not measured"


def headline(report: Json) -> list[str]:
    """Three to five sentences, the verdict first."""
    models, comparison = report["models"], report["comparison"]
    sentences = [verdict(comparison), _gate_sentence(models, comparison["gate"])]
    sentences.append(_loss_sentence(models, comparison["loss"]))
    sizes = [models[name]["parameters"] for name in ("after", "teacher")]
    if all(sizes):
        share = f"{percent(sizes[0] / sizes[1])} of the teacher's {millions(sizes[1])}"
        sentences.append(f"It has {millions(sizes[0])} parameters, {share}.")
    elif sizes[0]:
        sentences.append(f"It has {millions(sizes[0])} parameters; the teacher's are not known.")
    return sentences


def verdict(comparison: Json) -> str:
    """One sentence: better, worse, both or neither, by the verdicts of `comparison`."""
    pairs = {name: comparison[name] for name in ("gate", "loss") if comparison[name]}
    if _unsaid(pairs.values()):
        count = max((pair["documents"] for pair in pairs.values()), default=0)
        needed = comparison.get("fewest_documents")  # absent in a report of an earlier version
        least = f": at least {needed} are needed" if needed else ""
        return f"Whether training helped cannot be said from {documents(count)}{least}."
    gate, loss = (pairs[name]["verdict"] if name in pairs else None for name in ("gate", "loss"))
    better = ["gate pass rate"] * (gate == "higher") + ["loss"] * (loss == "lower")
    worse = ["gate pass rate"] * (gate == "lower") + ["loss"] * (loss == "higher")
    if better and worse:
        return (
            f"Training helped and hurt: better {better[0]}, worse {worse[0]} on held-out prompts."
        )
    if better:
        return f"Training improved the student on held-out prompts: better {' and '.join(better)}."
    if worse:
        return f"Training made the student worse on held-out prompts: worse {' and '.join(worse)}."
    return "No difference between the student before and after training can be shown."


def _unsaid(pairs: Iterable[Json]) -> bool:
    return all(pair["verdict"] == "cannot be said" for pair in pairs)


def _gate_sentence(models: Json, gate: Json | None) -> str:
    after, before, teacher = (
        passes(models[name]["gate"]) for name in ("after", "before", "teacher")
    )
    text = f"After training it passes the gate on {after} held-out prompts, before on {before}"
    if gate:
        text += f" ({interval(gate, percent=True)}; McNemar {p_value(gate['mcnemar_p'])})"
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
    text += f"; {interval(loss)})" if loss else ")"
    return text + (f"; the teacher's own is {teacher['nats_per_token']:.3f}." if teacher else ".")


def passes(gate: Json) -> str:
    """`21 of 26 (81 %)`."""
    if gate["rate"] is None:
        return NOT_MEASURED
    return f"{gate['passed']} of {gate['total']} ({percent(gate['rate'])})"


def with_interval(gate: Json) -> str:
    """`21 of 26 (81 %) [62 %, 92 %]`: with its 95 % score interval."""
    if gate["rate"] is None:
        return NOT_MEASURED
    return f"{passes(gate)} [{percent(gate['low'])}, {percent(gate['high'])}]"


def interval(difference: Json, *, percent: bool = False) -> str:
    """`difference +0.20, 95 % interval +0.10 to +0.30`; shares in percentage points."""
    scale, digits, unit = (100, 0, " points") if percent else (1, 3, "")

    def shown(value: float) -> str:
        return f"{value * scale:+.{digits}f}" if value else "0"

    text = f"difference {shown(difference['difference'])}{unit}"
    if difference["low"] is None:
        return f"{text}, no interval from {documents(difference['documents'])}"
    return f"{text}, 95 % interval {shown(difference['low'])} to {shown(difference['high'])}"


def documents(count: int) -> str:
    """`1 document`, `3 documents`."""
    return f"{count:,} document{'' if count == 1 else 's'}"


def percent(share: float | None) -> str:
    """`81 %` with a no-break space, or "not measured"."""
    return NOT_MEASURED if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def p_value(p: float) -> str:
    """`p = 0.031`; below 0.001 a bound."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def millions(count: int | None) -> str:
    """`135 M`; a number below a million in full."""
    if count is None:
        return NOT_MEASURED
    return f"{count / 1e6:.0f} M" if count >= 1e6 else f"{count:,}"


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators, or "not measured"."""
    return NOT_MEASURED if value is None else f"{value:,.{digits}f}"


def figures(models: Json) -> list[tuple[str, list[str]]]:
    """The table of all documents: (measure, one text per model in the order of TITLES)."""

    def row(name: str, shown: Any) -> tuple[str, list[str]]:
        return name, [shown(models[key]) for key in TITLES]

    def inside(key: str, field: str, digits: int = 0) -> Any:
        return lambda m: number(m[key][field] if m[key] else None, digits)

    # Without any judge the row is not a missing measurement.
    without = NOT_MEASURED if any(m["judge"] for m in models.values()) else "judge: not run"

    def judged(check: str) -> Any:
        return lambda m: number(m["judge"].get(check), 2) if m["judge"] else without

    def executed(check: str) -> Any:
        return lambda m: with_interval(m["execution"][check]) if m["execution"][check] else "none"

    return [
        row("model", lambda m: m["model_id"] or NOT_MEASURED),
        row("parameters", lambda m: millions(m["parameters"])),
        row("layers", lambda m: number(m["layers"])),
        row("passes the gate", lambda m: with_interval(m["gate"])),
        row("executes", executed("exec.executes")),
        row("right result, by execution", executed("exec.matches")),
        row("judged factual, of what passes the rules", judged("judge.factuality")),
        row("judged well reasoned, of what passes the rules", judged("judge.reasoning")),
        row("loss, nats per token", inside("loss", "nats_per_token", 3)),
        row("tokens of the loss", inside("loss", "tokens")),
        row("answer length, mean tokens", inside("answer_tokens", "mean")),
        row("tokens per second, here", inside("generation", "tokens_per_second", 1)),
    ]


def markdown(report: Json) -> str:
    """The whole report in Markdown."""
    lines = [f"# Evaluation of {report['run_name']}", ""]
    lines += [f"- {sentence}" for sentence in report["headline"]]
    prompts = f"{report['prompts']} prompts of the {report['split']} split"
    lines += ["", f"Run {report['run_id']}, {report['created_at']}; {prompts}."]
    lines += ["", *table(["", *TITLES.values()], [[n, *v] for n, v in figures(report["models"])])]
    for title, key in (("task type", "by_task"), ("domain", "by_domain")):
        lines += ["", f"## Gate by {title}", "", *groups(report["models"], title, key)]
        lines += ["", *compared(report["comparison"], title, key)]
    lines += ["", "## Against the accepted run", "", regression(report["regression"])]
    lines += ["", "## First reasons of rejection", "", *_reasons(report["models"])]
    lines += ["", "## From raw data to training", ""]
    lines += table(["step", "rows"], [[s["step"], number(s["count"])] for s in report["funnel"]])
    lines += ["", "## Side by side", ""]
    for example in report["examples"]:
        lines += _example(example)
    return "\n".join(lines) + "\n"


def groups(models: Json, title: str, key: str) -> list[str]:
    """The gate by task type or domain: one row per name, a share with its interval per model."""
    names = sorted({name for model in models.values() for name in model[key]})

    def share_text(model: Json, name: str) -> str:
        return with_interval(model[key][name]) if name in model[key] else NOT_MEASURED

    rows = [[as_code(name), *(share_text(models[m], name) for m in TITLES)] for name in names]
    return table([title, *TITLES.values()], rows)


def compared(comparison: Json, title: str, key: str) -> list[str]:
    """Before and after training by group. A single one of many comparisons proves little."""
    rows = [
        [as_code(name), interval(pair, percent=True), pair["verdict"], p_value(pair["mcnemar_p"])]
        for name, pair in comparison[key].items()
    ]
    return table([title, "after minus before", "verdict", "McNemar"], rows)


def regression(comparison: Json) -> str:
    """The comparison with the accepted run, in one paragraph."""
    if comparison["accepted"] is None:
        return (
            "No run has been accepted yet, so nothing was compared with this one; "
            "`python -m nexa_train.regression accept` accepts it."
        )
    run = comparison["accepted"]
    text = f"Accepted run {as_code(run['run_id'])} of {run['accepted_at'][:10]}"
    if comparison["gate"]:
        text += f": gate pass rate {interval(comparison['gate'], percent=True)}"
    if comparison["loss"]:
        text += f"; loss {interval(comparison['loss'])}"
    if comparison["misses"]:
        return f"{text}. Worse than allowed: {'; '.join(comparison['misses'])}."
    if _unsaid([comparison[name] for name in ("gate", "loss") if comparison[name]]):
        return f"{text}. Too few documents to tell whether it is worse."
    return f"{text}. No worse than `regression_gate:` allows."


def _reasons(models: Json) -> list[str]:
    counts = [models[name]["reject_reason_counts"] for name in TITLES]
    names = sorted({name for count in counts for name in count})
    if not names:
        return ["Nothing was rejected."]
    rows = [
        [name, *(str(count[name]) if name in count else "0" for count in counts)] for name in names
    ]
    return table(["reason", *TITLES.values()], rows)


def _example(example: Json) -> list[str]:
    named = filter(None, (example["template_name"], example["domain"]))
    title = " · ".join(as_code(name) for name in named)
    lines = [f"### {title} `{example['sample_id'][:12]}`", "", *_quoted(example["user_prompt"]), ""]
    for name, label in TITLES.items():
        answer = example["answers"][name]
        lines += [f"**{label}** ({outcome(answer)})", ""]
        lines += _quoted(answer["text"] if answer and answer["text"] else "(no answer)") + [""]
    return lines


def outcome(answer: Json | None) -> str:
    """The gate's result of one answer."""
    if answer is None:
        return "no answer"
    return f"rejected: {', '.join(answer['reasons'])}" if answer["reasons"] else "passes"


def _quoted(text: str) -> list[str]:
    # As a quote, model text cannot become a heading or a table, and line breaks are kept.
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return [f"> {line}  " for line in safe.splitlines()] or ["> "]
