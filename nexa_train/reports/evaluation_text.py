"""The evaluation report in words: the headline, and the Markdown twin of report.json.

The headline says what was measured, with counts, also when the student did not improve.
"""

from collections.abc import Mapping, Sequence
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
    """Three to five plain sentences, the verdict first."""
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
    found = [comparison[name] for name in ("gate", "loss") if comparison[name]]
    if _unsaid(found):
        count = max((pair["documents"] for pair in found), default=0)
        needed = comparison.get("fewest_documents")  # a report of an earlier version has it not
        least = f": at least {needed} are needed" if needed else ""
        return f"Whether training helped cannot be said from {documents(count)}{least}."
    gate, loss = (
        comparison[name]["verdict"] if comparison[name] else None for name in ("gate", "loss")
    )
    better = [
        name
        for name, good in (("gate pass rate", gate == "higher"), ("loss", loss == "lower"))
        if good
    ]
    worse = [
        name
        for name, bad in (("gate pass rate", gate == "lower"), ("loss", loss == "higher"))
        if bad
    ]
    if better and worse:
        return (
            f"Training helped and hurt: better {better[0]}, worse {worse[0]} on held-out prompts."
        )
    if better:
        return f"Training improved the student on held-out prompts: better {' and '.join(better)}."
    if worse:
        return f"Training made the student worse on held-out prompts: worse {' and '.join(worse)}."
    return "No difference between the student before and after training can be shown."


def _unsaid(pairs: Sequence[Json]) -> bool:
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
    """`81 %` with a space that does not break, or that it was not measured."""
    return NOT_MEASURED if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def p_value(p: float) -> str:
    """`p = 0.031`; very small ones as a bound."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def millions(count: int | None) -> str:
    """`135 M`; a model below a million in full."""
    if count is None:
        return NOT_MEASURED
    return f"{count / 1e6:.0f} M" if count >= 1e6 else f"{count:,}"


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators, or that it was not measured."""
    return NOT_MEASURED if value is None else f"{value:,.{digits}f}"


def figures(models: Json) -> list[tuple[str, list[str]]]:
    """(measure, one text per model in the order of TITLES): the table of both documents."""

    def row(name: str, shown: Any) -> tuple[str, list[str]]:
        return name, [shown(models[key]) for key in TITLES]

    def inside(key: str, field: str, digits: int = 0) -> Any:
        return lambda m: number(m[key][field] if m[key] else None, digits)

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
    """The whole report for a terminal or a pull request."""
    lines = [f"# Evaluation of {report['run_name']}", ""]
    lines += [f"- {sentence}" for sentence in report["headline"]]
    lines += ["", f"Run {report['run_id']}, {report['created_at']}; {report['prompts']} prompts of "
              f"the {report['split']} split."]  # fmt: skip
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
    rows = [
        [
            as_code(name),
            *(
                with_interval(models[m][key][name]) if name in models[m][key] else NOT_MEASURED
                for m in TITLES
            ),
        ]
        for name in names
    ]
    return table([title, *TITLES.values()], rows)


def compared(comparison: Json, title: str, key: str) -> list[str]:
    """Before and after training by group: many comparisons, so one alone proves little."""
    rows = [
        [as_code(name), interval(pair, percent=True), pair["verdict"], p_value(pair["mcnemar_p"])]
        for name, pair in comparison[key].items()
    ]
    return table([title, "after minus before", "verdict", "McNemar"], rows)


def regression(found: Json) -> str:
    """What the comparison with the accepted run says, in one paragraph."""
    if found["accepted"] is None:
        return (
            "No run has been accepted yet, so nothing was compared with this one; "
            "`python -m nexa_train.regression accept` accepts it."
        )
    run = found["accepted"]
    text = f"Accepted run {as_code(run['run_id'])} of {run['accepted_at'][:10]}"
    if found["gate"]:
        text += f": gate pass rate {interval(found['gate'], percent=True)}"
    if found["loss"]:
        text += f"; loss {interval(found['loss'])}"
    if found["misses"]:
        return f"{text}. Worse than it may be: {'; '.join(found['misses'])}."
    if _unsaid([found[name] for name in ("gate", "loss") if found[name]]):
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
    """What the gate said of one answer."""
    if answer is None:
        return "was not asked or did not answer"
    return f"rejected: {', '.join(answer['reasons'])}" if answer["reasons"] else "passes"


def _quoted(text: str) -> list[str]:
    """Model text cannot become a heading or a table, and every line break is kept."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return [f"> {line}  " for line in safe.splitlines()] or ["> "]
