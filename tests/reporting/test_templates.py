"""Templates of reports: text from data is text, and a value that is missing stops the report."""

from collections import Counter
from typing import Any

import pytest
from jinja2 import UndefinedError

from nexa_distill.gating.gate_report import FilterStats, count_funnel, render_markdown, render_page
from nexa_distill.reporting.templates import render_template
from nexa_distill.settings.filters import GateConfig

GATE = GateConfig(required=["rules"], judge_f_threshold=0.7, judge_r_threshold=0.7, require_both=True)
HOSTILE = "a|b\n# <script>alert(1)</script>"


def gate_report() -> dict[str, Any]:
    groups = {("domain", HOSTILE): [3, 2], ("template_name", "qa"): [3, 2]}
    return count_funnel(FilterStats(total=3, kept=2, reasons=Counter(refusal=1), groups=groups), GATE)


def test_a_name_from_data_stays_in_its_cell_of_a_markdown_table() -> None:
    (row,) = (line for line in render_markdown(gate_report()).splitlines() if "script" in line)
    assert row == "| a\\|b # <script>alert(1)</script> | 3 | 2 | 66.7% |"


def test_a_name_from_data_is_text_on_a_page_and_a_plot_is_drawn() -> None:
    page = render_page(gate_report())
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count('<div class="plot">') == 3
    assert "<title>&lt;b&gt;</title>" in render_template("page.html.j2", title="<b>")


def test_a_value_that_a_template_needs_and_does_not_get_stops_the_report() -> None:
    with pytest.raises(UndefinedError, match="by_domain"):
        render_template("gate_report.md.j2", **{k: v for k, v in gate_report().items() if k != "by_domain"})
