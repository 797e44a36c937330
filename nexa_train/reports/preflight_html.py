"""preflight.json as one HTML page that needs nothing else: no script, every text escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any

from nexa_distill.reporting import charts
from nexa_distill.reporting.html import document
from nexa_distill.reporting.stage_reports import shown
from nexa_train.reports.preflight_text import facts, outcome

Json = Mapping[str, Any]
# In the loss: coloured and underlined, so that paper and every eye can tell.
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


def page(report: Json) -> str:
    """The complete document."""
    title = f"Preflight of {report['run_name']}"
    body = [_head(report), _tiles(report), _checks(report), _lengths(report), _refused(report),
            _rows(report), _facts(report)]  # fmt: skip
    return document(title, STYLE + "".join(body))


def _section(title: str, note: str, body: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>'


def _head(report: Json) -> str:
    failed = report["failed"]
    about = f'<p class="note">Preflight of {escape(report["run_name"])}</p>'
    if not failed:
        said = "Every row that is trained on was looked at, and every check passed"
        return f"<header>{about}<h1>{said}</h1></header>"
    where = f"Sample {failed['sample_id']}: " if failed["sample_id"] else ""
    return (
        f'<header>{about}<h1 class="bad">Refused: {escape(failed["check"])}</h1><ul>'
        f"<li>Found: {escape(where + failed['found'])}</li>"
        f"<li>Expected: {escape(failed['expected'])}</li>"
        "<li>Nothing was trained.</li></ul></header>"
    )


def _tiles(report: Json) -> str:
    kept = report["trained_on"]
    rows = sum(kept.values())
    tiles = [
        ("rows that passed", f"{rows:,}",
         f"train {kept.get('train', 0):,}, val {kept.get('val', 0):,}"),
        ("rows refused", f"{sum(report['refused'].values()):,}",
         f"at most {report['max_refused_share']:.1%} allowed"),
        ("tokens in the loss", shown(report["trained_share"], share=True),
         f"{report['trained_tokens']:,} of {report['tokens']:,}"),
        ("max_length", f"{report['max_length'] or 'not known'}",
         f"from {report['max_length_from']}"),
    ]  # fmt: skip
    made = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(big)}</b>'
        f"<small>{escape(small)}</small></div>"
        for name, big, small in tiles
    )
    return f'<div class="tiles">{made}</div>'


def _checks(report: Json) -> str:
    kind = {True: "good", False: "bad", None: "note"}
    rows = "".join(
        f'<tr><td><b class="{kind[check["ok"]]}">{escape(outcome(check))}</b></td>'
        f"<td>{escape(check['says'])} <code>{escape(check['check'])}</code></td>"
        f"<td>{check['rows']:,}</td></tr>"
        for check in report["checks"]
    )
    head = "<tr><th></th><th>what was asked</th><th>rows</th></tr>"
    table = f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    return _section("Checks", "Asked of every row; the first that fails stops the training.", table)


def _lengths(report: Json) -> str:
    of, limit = report["tokens_per_row"], report["max_length"]
    bars = [charts.Bar(name, value, shown(value), "after") for name, value in of.items()]
    bars.append(charts.Bar("max_length", limit, shown(limit)))
    return _section("Tokens per row", "Prompt and answer. No row is cut.", charts.bars(bars))


def _refused(report: Json) -> str:
    if not report["refused"]:
        return ""
    bars = [charts.Bar(name, n, f"{n:,}", "before") for name, n in report["refused"].items()]
    return _section("Rows that are not trained on", "By their reason.", charts.bars(bars))


def _rows(report: Json) -> str:
    if not report["shown"]:
        return ""
    legend = (
        '<p class="legend tokens"><span class="in">in the loss</span><span>only read</span>'
        '<span class="mark">token of the template</span></p>'
    )
    rows = "".join(
        f"<article><h3>{escape(view['split'])} <code>{escape(view['sample_id'][:12])}</code></h3>"
        '<div class="tokens" dir="auto">'
        f"{''.join(_token(*token) for token in view['tokens'])}</div>"
        "</article>"
        for view in report["shown"]
    )
    return _section("The first rows, token by token", "As the model gets them.", legend + rows)


def _token(text: str, trained: bool, special: bool) -> str:
    names = " ".join(["in"] * trained + ["mark"] * special)
    shown_text = escape(text).replace("\n", "<u>↵</u>\n")
    return f'<span class="{names}">{shown_text}</span>' if names else f"<span>{shown_text}</span>"


def _facts(report: Json) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(report))
    return _section("What it was made from", "", f"<dl>{rows}</dl>")
