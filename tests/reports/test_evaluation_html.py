import re
from html.parser import HTMLParser
from typing import Any

import pytest

from nexa_distill.reporting import charts
from nexa_distill.settings.filters import RegressionGate
from nexa_train import regression
from nexa_train.evaluation.metrics import HeldOutResults, compute_metrics
from nexa_train.reports.evaluation_html import inline_code, render_page
from nexa_train.reports.evaluation_text import headline_sentences, render_markdown
from tests.support.answers import answer

GATE = RegressionGate(max_pass_rate_drop=0.0, max_loss_rise=0.0)
ATTACK = "<script>alert('x')</script>&<img src=x onerror=alert(1)>\"'"
VOID = {"meta", "br", "img", "line", "circle", "polyline", "input", "link"}


def report(text: str = "An answer.", *, curve: bool = True, **columns: Any) -> dict[str, Any]:
    prompts = [answer(i, text, user_prompt=text, **columns) for i in range(3)]
    keys = [row["sample_id"] for row in prompts]
    answers = dict(zip(keys, prompts, strict=True))
    exams = {
        "teacher": HeldOutResults(answers, {key: [] for key in keys}, None),
        "before": HeldOutResults(answers, {key: ["too_short", "refusal"] for key in keys}, None),
        "after": HeldOutResults(answers, {key: [] for key in keys}, None),
    }
    found = compute_metrics(prompts, exams)
    rows = [{"step": 0, "val_loss": 2.0}, {"step": 1, "loss": 2.1}, {"step": 2, "loss": 1.9}]
    return {
        "headline": headline_sentences(found), "run_id": "run-1", "run_name": text, "split": "test", **found,
        "funnel": [{"step": text, "count": 9}, {"step": "packaged", "count": None}],
        "regression": regression.compare_runs(None, {}, GATE),
        "training_curve": rows if curve else [],
        "facts": {
            "student": text, "keep_layers": None, "train": {"seed": 7},
            "generate": {"split": "test"},
            "seconds": {"teacher": 1.0, "training": None}, "inputs": [],
            "dataset_sha256": "ab" * 32, "checkpoint_sha256": None,
        },
        "created_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


class Reader(HTMLParser):
    """The tags of a page, its text, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_model_text_cannot_become_markup() -> None:
    read = Reader(render_page(report(ATTACK, domain=ATTACK, template_name=ATTACK, model_id=ATTACK)))
    assert not {"script", "img"} & set(read.tags)
    assert "onerror" not in read.attributes
    assert ATTACK in read.text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = render_page(report())
    assert not re.findall(r"https?://|src=|@import|url\(|<link", text)


def test_every_tag_is_closed() -> None:
    read = Reader(render_page(report()))
    assert read.open == []
    assert {"h1", "svg", "table", "article"} <= set(read.tags)


def test_what_was_not_measured_is_said_and_never_zero() -> None:
    found = report(completion_tokens=None, latency_ms=None)
    read = Reader(render_page(found))
    assert "not measured" in read.text
    assert "training not measured" in read.text
    assert not re.search(r"\bNone\b|\bnan\b", read.text + render_markdown(found))
    assert found["models"]["after"]["answer_tokens"] is None


def test_without_a_training_curve_there_is_no_empty_plot() -> None:
    assert "<svg" not in render_page(report(curve=False))


def test_reasons_and_outcomes_stand_beside_the_answers() -> None:
    text = Reader(render_page(report())).text
    assert "rejected: too_short, refusal" in text
    assert "only after 3" in text
    pair = "cannot be said: difference +100 points, no interval from 3 documents; McNemar p = 0.250"
    assert text.count(pair) == 2  # its task type and its domain


def test_three_prompts_do_not_say_whether_training_helped() -> None:
    found = report()
    assert found["comparison"]["gate"]["difference"] == 1
    assert found["headline"][0] == ("Whether training helped cannot be said from 3 documents: at least 6 are needed.")
    assert "no interval from 3 documents" in found["headline"][1]


def test_commands_are_code_on_the_page_and_names_in_them_are_text() -> None:
    text = render_page(report())
    assert "<code>python -m nexa_train.regression accept</code>" in text
    assert "`" not in text
    assert inline_code("``a ` <b>`` c") == "<code>a ` &lt;b&gt;</code> c"


def test_markdown_keeps_model_text_in_its_quotation() -> None:
    text = render_markdown(report("# not a heading\n<b>bold</b>"))
    assert "\n# not a heading" not in text.split("## Side by side")[1]
    assert "<b>" not in text.split("## Side by side")[1]


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 30, True, [0, 10, 20, 30]),
        (1.2, 2.9, False, [1.0, 1.5, 2.0, 2.5, 3.0]),
        (2, 2, False, [2.0, 2.5]),
        (0, 1, True, [0, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low: float, high: float, whole: bool, expected: list[float]) -> None:
    assert charts.choose_ticks(low, high, whole=whole) == expected


def test_a_line_of_one_point_is_a_dot() -> None:
    drawn = render_page({**report(), "training_curve": [{"step": 3, "loss": 1.0}]})
    assert "<circle" in drawn
    assert "<polyline" not in drawn
