"""report.json as one self-contained HTML page: no script, no network, every text escaped."""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from nexa_distill.reporting import charts
from nexa_distill.reporting.html import render_document
from nexa_train.reports.evaluation_text import (
    NOT_MEASURED,
    TITLES,
    describe_outcome,
    figure_rows,
    format_interval,
    format_millions,
    format_number,
    format_p_value,
    format_passes,
    format_percent,
    regression_paragraph,
)
from nexa_train.reports.page_parts import definition_list, render_section, render_tiles

Json = Mapping[str, Any]
# The order of the bars in each chart.
FROM_WORST = ("before", "after", "teacher")


def render_page(report: Json) -> str:
    """The complete document."""
    sections = [_render_head(report), _render_tiles(report), _render_gate(report), _render_groups(report)]
    sections += [_render_regression(report["regression"]), _render_losses(report), _render_reasons(report["models"])]
    sections += [_render_funnel(report), _render_examples(report), _render_facts(report)]
    return render_document(f"Evaluation of {report['run_name']}", "".join(sections))


def _render_head(report: Json) -> str:
    first, *rest = report["headline"]
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in rest)
    about = f"{report['run_name']} · {report['prompts']} prompts of the {report['split']} split"
    when = f"{report['created_at'][:16].replace('T', ' ')} UTC"
    return (
        f'<header><p class="note">{escape(about)} · {escape(when)}</p><h1>{escape(first)}</h1><ul>{items}</ul></header>'
    )


def _render_tiles(report: Json) -> str:
    models = report["models"]
    after, before, teacher = (models[name] for name in ("after", "before", "teacher"))

    def loss_text(model: Json) -> str:
        return format_number(model["loss"]["nats_per_token"] if model["loss"] else None, 2)

    def speed_text(model: Json) -> str:
        return format_number(model["generation"]["tokens_per_second"] if model["generation"] else None)

    rate, earlier = (format_percent(model["gate"]["rate"]) for model in (after, before))
    tiles = [
        ("passes the gate", rate, f"before {earlier}"),
        ("loss, nats per token", loss_text(after), f"before {loss_text(before)}"),
        ("parameters", format_millions(after["parameters"]), f"teacher {format_millions(teacher['parameters'])}"),
        ("tokens per second", speed_text(after), f"before {speed_text(before)}"),
    ]
    return render_tiles(tiles)


def _render_gate(report: Json) -> str:
    rows = []
    for name in FROM_WORST:
        gate = report["models"][name]["gate"]
        limits = (gate["rate"], gate["low"], gate["high"])
        rows.append(charts.Range(TITLES[name], *limits, format_passes(gate), kind=name))
    pair = report["comparison"]["gate"]
    note = "Share of held-out answers that pass all rules and SampleGate, with 95 % score intervals."
    if pair is None:
        return render_section("Gate", note, charts.draw_ranges(rows))
    difference = format_interval(pair, percent=True)
    text = (
        f"Pairs of answers before and after: both pass {pair['both']}, only before "
        f"{pair['only_before']}, only after {pair['only_after']}, neither {pair['neither']}. "
        f"{difference[:1].upper()}{difference[1:]} (paired bootstrap over {pair['documents']} "
        f"source documents); McNemar's exact {format_p_value(pair['mcnemar_p'])}."
    )
    return render_section("Gate", note, charts.draw_ranges(rows), f"<p>{escape(text)}</p>")


def _render_groups(report: Json) -> str:
    models, parts = report["models"], []
    for title, key in (("Task type", "by_task"), ("Domain", "by_domain")):
        names = sorted({name for model in models.values() for name in model[key]})
        blocks = "".join(
            f"<div><h4>{escape(name)}</h4>"
            f"{charts.draw_ranges([_group_range(models, m, key, name) for m in FROM_WORST])}"
            f"{_pair_note(report['comparison'][key].get(name))}</div>"
            for name in names
        )
        parts.append(f'<div class="group"><h3>{title}</h3><div class="small">{blocks}</div></div>')
    note = (
        "Share of answers that pass, with 95 % score intervals; after training against before, "
        "paired. A single one of many comparisons proves little."
    )
    return render_section("Gate by task type and domain", note, *parts)


def _pair_note(pair: Json | None) -> str:
    if pair is None:
        return ""
    text = f"{pair['verdict']}: {format_interval(pair, percent=True)}; McNemar {format_p_value(pair['mcnemar_p'])}"
    return f'<p class="note">{escape(text)}</p>'


def _group_range(models: Json, model: str, key: str, name: str) -> charts.Range:
    groups = models[model][key]
    if name not in groups:
        return charts.Range(model, None, None, None, NOT_MEASURED, model)
    gate = groups[name]
    text = f"{gate['passed']} of {gate['total']}"
    return charts.Range(model, gate["rate"], gate["low"], gate["high"], text, model)


def _render_regression(comparison: Json) -> str:
    note = "The same prompts behind the same gates, paired; a student that is worse stops the run."
    return render_section("Against the accepted run", note, f"<p>{inline_code(regression_paragraph(comparison))}</p>")


def inline_code(text: str) -> str:
    """Escaped HTML of a sentence with Markdown's inline code."""
    return re.sub(r"(`+) ?(.+?) ?\1(?!`)", r"<code>\2</code>", escape(text))


def _render_losses(report: Json) -> str:
    rows = []
    for name in FROM_WORST:
        loss = report["models"][name]["loss"]
        value = loss["nats_per_token"] if loss else None
        rows.append(charts.Bar(TITLES[name], value, format_number(value, 3), name))
    measured = report["models"]["after"]["loss"]
    note = "Nats per token of the teacher's kept held-out answers; less is better."
    body = [charts.draw_bars(rows)]
    if measured:
        pair = report["comparison"]["loss"]
        text = f"{measured['tokens']:,} tokens of {measured['samples']} answers"
        body.append(f"<p>{escape(text + (f'; after minus before: {format_interval(pair)}' if pair else ''))}.</p>")
    curve = charts.draw_lines(
        [
            charts.Line("training loss", _curve_points(report, "loss"), "plain"),
            charts.Line("validation loss", _curve_points(report, "val_loss"), "after"),
        ],
        x_label="optimizer step",
        y_label="loss, nats per token",
    )
    body.append(f"<h3>While it was trained</h3>{curve}" if curve else "")
    return render_section("Loss", note, *body)


def _curve_points(report: Json, key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in report["training_curve"] if key in row]


def _render_reasons(models: Json) -> str:
    counts = {name: models[name]["reject_reason_counts"] for name in FROM_WORST}
    names = sorted({name for count in counts.values() for name in count})
    # One scale for all reasons, so that their bars can be compared.
    most = max((n for count in counts.values() for n in count.values()), default=1)
    blocks = ""
    for reason in names:
        numbers = {model: count.get(reason, 0) for model, count in counts.items()}
        bars = [charts.Bar(model, n, str(n), model) for model, n in numbers.items()]
        blocks += f"<div><h4>{escape(reason)}</h4>{charts.draw_bars(bars, top=most)}</div>"
    note = "Each rejected answer counts once, under its first reason."
    body = f'<div class="small">{blocks}</div>' if blocks else "<p>Nothing was rejected.</p>"
    return render_section("Why answers were rejected", note, body)


def _render_funnel(report: Json) -> str:
    rows = [charts.Bar(s["step"], s["count"], format_number(s["count"])) for s in report["funnel"]]
    note = "Rows after each step, from the manifests of the run; the last three are the splits."
    return render_section("From raw data to training", note, charts.draw_bars(rows))


def _render_examples(report: Json) -> str:
    note = "The first prompts by the hash of their content: an arbitrary choice."
    return render_section("Side by side", note, *(_render_example(example) for example in report["examples"]))


def _render_example(example: Json) -> str:
    title = " · ".join(filter(None, (example["template_name"], example["domain"])))
    answers = "".join(_render_answer(name, example["answers"][name]) for name in TITLES)
    return (
        f"<article><h3>{escape(title)} <code>{escape(example['sample_id'][:12])}</code></h3>"
        f'<pre class="prompt">{escape(example["user_prompt"])}</pre>'
        f'<div class="answers">{answers}</div></article>'
    )


def _render_answer(name: str, answer: Json | None) -> str:
    text = answer["text"] if answer and answer["text"] else "(no answer)"
    good = "good" if answer and not answer["reasons"] else "bad"
    tokens = f"{format_number(answer['tokens'])} tokens · " if answer else ""
    return (
        f'<div class="answer {name}"><h4>{escape(TITLES[name])}</h4>'
        f'<p class="note">{escape(tokens)}<span class="{good}">{escape(describe_outcome(answer))}</span></p>'
        f"<pre>{escape(text)}</pre></div>"
    )


def _render_facts(report: Json) -> str:
    header = "".join(f"<th>{escape(title)}</th>" for title in ("", *TITLES.values()))
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(v)}</td>' for v in values)}</tr>"
        for name, values in figure_rows(report["models"])
    )
    facts = report["facts"]
    seconds = ", ".join(f"{name} {format_number(s, 1)}" for name, s in facts["seconds"].items())
    rest = {
        "run": report["run_id"],
        "student from": str(facts["student"]),
        "layers kept": str(facts["keep_layers"] or "all"),
        "training": _join_pairs(facts["train"]),
        "generation": _join_pairs(facts["generate"]),
        "seconds": seconds,
        "dataset sha256": facts["dataset_sha256"] or NOT_MEASURED,
        "checkpoint sha256": facts["checkpoint_sha256"] or NOT_MEASURED,
    }
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
    note = "Of the three models and of this report."
    wide = f'<div class="wide">{table}</div>'
    return render_section("Figures and sources", note, wide, definition_list(rest.items()))


def _join_pairs(values: Json) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
