"""The preflight report as text: on the terminal, and preflight.json in Markdown."""

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from nexa_distill.reporting.stage_reports import format_number

Json = Mapping[str, Any]
TRAINED, SPECIAL, QUIET, END = "\x1b[30;42m", "\x1b[1m", "\x1b[2m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"  # around tokens in the loss, without colour
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
OUTCOME = {True: "ok", False: "FAILED", None: "not finished"}


def check_outcome(check: Json) -> str:
    """`ok`, `FAILED`, `no such row`, or `not finished`, which is no pass."""
    return "no such row" if check["ok"] is None and not check["rows"] else OUTCOME[check["ok"]]


def summary_lines(report: Json) -> str:
    """Two lines: rows and tokens that are trained on, and their lengths."""
    kept, of = report["trained_on"], report["tokens_per_row"]
    counts = ", ".join(f"{name} {kept.get(name, 0):,}" for name in ("train", "val"))
    return (
        f"{counts} rows, {report['refused_share'] or 0:.1%} refused; "
        f"{report['trained_tokens']:,} of {report['tokens']:,} tokens in the loss "
        f"({format_number(report['trained_share'], share=True)})\n"
        f"tokens per row: p50 {of['p50']}, p90 {of['p90']}, p99 {of['p99']}, max {of['max']}; "
        f"max_length {report['max_length']} from {report['max_length_from']}"
    )


def format_sample(view: Json, *, colour: bool) -> str:
    """One row; control characters of the text are escaped, never sent to the terminal."""
    parts = [f"{view['split']} {view['sample_id']}\n"]
    if colour:
        parts += [_colour_token(*token) for token in view["tokens"]]
    else:
        for trained, run in groupby(view["tokens"], key=lambda token: bool(token[1])):
            text = "".join(_escape_controls(token[0]) for token in run)
            parts.append(f"{OPEN}{text}{CLOSE}" if trained else text)
    return "".join(parts)


def _colour_token(text: str, trained: bool, special: bool) -> str:
    style = (TRAINED if trained else QUIET) + SPECIAL * special
    # A colour that is still on at a line's end would fill the rest of the line.
    return "\n".join(f"{style}{line}{END}" if line else "" for line in _escape_controls(text).split("\n"))


def _escape_controls(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def render_markdown(report: Json) -> str:
    """The whole report."""
    failed = report["failed"]
    verdict = f"**Refused** by {failed['check']}: {failed['found']}" if failed else "Passed."
    lines = [f"# Preflight of {report['run_name']}", "", verdict, "", summary_lines(report), ""]
    lines += ["| check | outcome | rows | expected |", "|---|---|---|---|"]
    lines += [
        f"| {check['check']} | {check_outcome(check)} | {check['rows']:,} | {check['says']} |"
        for check in report["checks"]
    ]
    if report["refused"]:
        lines += ["", "| refused because | rows |", "|---|---|"]
        lines += [f"| {reason} | {count:,} |" for reason, count in report["refused"].items()]
    lines += ["", "| source | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in report_facts(report)]
    lines += ["", f"## The first rows: {OPEN}in the loss{CLOSE}, the rest is only read"]
    for view in report["shown"]:
        text = format_sample(view, colour=False)
        # Longer than any run of tildes in the text.
        fence = "~" * (3 + max((len(run) for run in re.findall("~+", text)), default=0))
        lines += ["", fence, text, fence]
    return "\n".join(lines) + "\n"


def report_facts(report: Json) -> list[tuple[str, str]]:
    """The sources of the report, for a table."""
    tokenizer = report["tokenizer"]
    return [
        ("student", report["student"]),
        ("dataset", f"{report['dataset']} (sha256 {report['dataset_sha256']})"),
        ("tokenizer", f"{tokenizer['name']} (sha256 {tokenizer['sha256']})"),
        ("chat template", f"sha256 {tokenizer['template_sha256'] or 'none'}"),
        ("model reads at most", f"{report['context'] or 'unknown'} tokens"),
        ("max_refused_share", format_number(report["max_refused_share"], share=True)),
        ("ids and labels", f"sha256 {report['samples_sha256']}"),
    ]
