"""preflight.json as one self-contained HTML page: no script, every text escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any

from nexa_distill.reporting import charts
from nexa_distill.reporting.html import render_document
from nexa_distill.reporting.stage_reports import format_number
from nexa_train.reports.page_parts import definition_list, render_section, render_tiles
from nexa_train.reports.preflight_text import check_outcome, report_facts

Json = Mapping[str, Any]
# Tokens in the loss are coloured and underlined: paper and some readers lose the colour.
STYLE = """<style>
.tokens{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.65;font-size:.86rem;
font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.tokens span{color:var(--soft);border-right:1px solid var(--line)}
.tokens .in{color:var(--ink);border-bottom:2px solid var(--good);
background:color-mix(in srgb,var(--good) 20%,transparent)}
.tokens .mark{outline:1px solid var(--plain);outline-offset:-1px;border-radius:3px;padding:0 2px}
.tokens u{text-decoration:none;opacity:.55}
.legend.tokens{font-size:.88rem;gap:1.6rem}td b{font-weight:600}
td code{color:var(--soft);font-size:.8rem}
</style>"""


def render_page(report: Json) -> str:
    """The complete document."""
    title = f"Preflight of {report['run_name']}"
    body = [_render_head(report), _render_tiles(report), _render_checks(report), _render_lengths(report)]
    body += [_render_refused(report), _render_rows(report)]
    body.append(render_section("Sources", "", definition_list(report_facts(report))))
    return render_document(title, STYLE + "".join(body))


def _render_head(report: Json) -> str:
    failed = report["failed"]
    about = f'<p class="note">Preflight of {escape(report["run_name"])}</p>'
    if not failed:
        return f"<header>{about}<h1>All rows for the training passed every check</h1></header>"
    where = f"Sample {failed['sample_id']}: " if failed["sample_id"] else ""
    return (
        f'<header>{about}<h1 class="bad">Refused: {escape(failed["check"])}</h1><ul>'
        f"<li>Found: {escape(where + failed['found'])}</li>"
        f"<li>Expected: {escape(failed['expected'])}</li>"
        "<li>Nothing was trained.</li></ul></header>"
    )


def _render_tiles(report: Json) -> str:
    kept = report["trained_on"]
    rows = sum(kept.values())
    refused, allowed = sum(report["refused"].values()), f"{report['max_refused_share']:.1%}"
    splits = f"train {kept.get('train', 0):,}, val {kept.get('val', 0):,}"
    share = format_number(report["trained_share"], share=True)
    tokens = f"{report['trained_tokens']:,} of {report['tokens']:,}"
    length = str(report["max_length"] or "not known")
    tiles = [
        ("rows that passed", f"{rows:,}", splits),
        ("rows refused", f"{refused:,}", f"at most {allowed} allowed"),
        ("tokens in the loss", share, tokens),
        ("max_length", length, f"from {report['max_length_from']}"),
    ]
    return render_tiles(tiles)


def _render_checks(report: Json) -> str:
    # None: the check applied to no row, or the preflight stopped before.
    kind = {True: "good", False: "bad", None: "note"}
    rows = "".join(
        f'<tr><td><b class="{kind[check["ok"]]}">{escape(check_outcome(check))}</b></td>'
        f"<td>{escape(check['says'])} <code>{escape(check['check'])}</code></td>"
        f"<td>{check['rows']:,}</td></tr>"
        for check in report["checks"]
    )
    head = "<tr><th></th><th>check</th><th>rows</th></tr>"
    table = f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    return render_section("Checks", "Of every row; the first that fails stops the training.", table)


def _render_lengths(report: Json) -> str:
    of, limit = report["tokens_per_row"], report["max_length"]
    bars = [charts.Bar(name, value, format_number(value), "after") for name, value in of.items()]
    bars.append(charts.Bar("max_length", limit, format_number(limit)))
    return render_section("Tokens per row", "Prompt and answer. No row is cut.", charts.draw_bars(bars))


def _render_refused(report: Json) -> str:
    if not report["refused"]:
        return ""
    bars = [charts.Bar(name, n, f"{n:,}", "before") for name, n in report["refused"].items()]
    return render_section("Rows that are not trained on", "By their reason.", charts.draw_bars(bars))


def _render_rows(report: Json) -> str:
    if not report["shown"]:
        return ""
    legend = (
        '<p class="legend tokens"><span class="in">in the loss</span><span>only read</span>'
        '<span class="mark">token of the template</span></p>'
    )
    rows = "".join(
        f"<article><h3>{escape(view['split'])} <code>{escape(view['sample_id'][:12])}</code></h3>"
        '<div class="tokens" dir="auto">'
        f"{''.join(_render_token(*token) for token in view['tokens'])}</div>"
        "</article>"
        for view in report["shown"]
    )
    return render_section("The first rows, token by token", "As the model reads them.", legend + rows)


def _render_token(text: str, trained: bool, special: bool) -> str:
    names = " ".join(["in"] * trained + ["mark"] * special)
    shown_text = escape(text).replace("\n", "<u>↵</u>\n")
    return f'<span class="{names}">{shown_text}</span>' if names else f"<span>{shown_text}</span>"
