"""The preflight report as text: on the terminal, and preflight.json in Markdown."""

import re
from itertools import groupby

from nexa_train.reports.formats import Json, render_report

TRAINED, SPECIAL, QUIET, END = "\x1b[30;42m", "\x1b[1m", "\x1b[2m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"  # around tokens in the loss, without colour
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
OUTCOME = {True: "ok", False: "FAILED", None: "not finished"}


def check_outcome(check: Json) -> str:
    """`ok`, `FAILED`, `no such row`, or `not finished`, which is no pass."""
    return "no such row" if check["ok"] is None and not check["rows"] else OUTCOME[check["ok"]]


def format_figure(value: float | None, form: str = ",") -> str:
    """A number in the given form, `.1%` for a share; `not run` for None."""
    return "not run" if value is None else format(value, form)


FORMATS = {"figure": format_figure, "outcome": check_outcome}  # of the templates


def summary_lines(report: Json) -> str:
    """Two lines: rows and tokens that are trained on, and their lengths."""
    return render_report("preflight_summary.md.j2", report=report, **FORMATS).rstrip("\n")


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
    return render_report("preflight.md.j2", report=report, open=OPEN, close=CLOSE, fence=_fence_sample, **FORMATS)


def _fence_sample(view: Json) -> str:
    text = format_sample(view, colour=False)
    # Longer than any run of tildes in the text.
    fence = "~" * (3 + max((len(run) for run in re.findall("~+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
