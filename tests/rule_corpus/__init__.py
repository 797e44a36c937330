"""The rule corpus: per text rule, texts that it must let pass and texts that it must not.

`python -m tests.rule_corpus` measures the shipped rules on it and writes the table of
docs/baseline.md. A rule that errs keeps its texts: misses are counted, not removed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import yaml

from nexa_distill.gating.rules import RuleResult, Rules
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.settings.yaml_loading import load_yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent
BASELINE = ROOT / "docs/baseline.md"
BEGIN, END = "<!-- rule corpus: begin -->", "<!-- rule corpus: end -->"
JSON_TASK = "json"
CHECKS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


class Text(NamedTuple):
    """One text, and whether the rule must let it pass."""

    text: str
    language: str
    passes: bool


class Figures(NamedTuple):
    """How a rule did. `missed`: faults that passed; `false_alarms`: sound texts that did not."""

    texts: list[Text]
    missed: list[str]
    false_alarms: list[str]

    @property
    def precision(self) -> float:
        """Of the texts that it stopped, the share that it had to stop."""
        right = self._faults - len(self.missed)
        return right / max(right + len(self.false_alarms), 1)

    @property
    def recall(self) -> float:
        """Of the texts that it had to stop, the share that it stopped."""
        return (self._faults - len(self.missed)) / self._faults

    @property
    def _faults(self) -> int:
        return sum(not text.passes for text in self.texts)


def read_texts(check: str) -> list[Text]:
    """The texts about one check, as they are measured."""
    stored = yaml.safe_load((FOLDER / f"{check}.yaml").read_text(encoding="utf-8"))
    split = check == "safety.pii_secret"
    return [
        Text(text.replace("{}", "") if split else text, str(language), verdict == "pass")
        for verdict, languages in stored.items()
        for language, listed in languages.items()
        for text in map(_written_out, listed)
    ]


def _written_out(entry: str | Mapping[str, Any]) -> str:
    if isinstance(entry, str):
        return entry
    return str(entry.get("start", "") + entry["repeat"] * entry["times"])


def measure(check: str) -> Figures:
    """The shipped rule on all texts of its file."""
    texts = read_texts(check)
    config = load_yaml(ROOT / "configs/filters.yaml", FilterConfig, {"require_json_for": [JSON_TASK]})
    rows = pa.table(
        {
            "teacher_output": pa.array([text.text for text in texts], pa.string()),
            "finish_reason": pa.array(["stop"] * len(texts)),
            "template_name": pa.array([JSON_TASK] * len(texts)),
            "answer_flag": pa.array([None] * len(texts), pa.string()),
        }
    )
    (measured,) = [m for m in Rules(config).measure_batch(rows) if m.check == check]
    stopped = list(_stopped(measured))
    return Figures(
        texts,
        [t.text for t, stop in zip(texts, stopped, strict=True) if not t.passes and not stop],
        [t.text for t, stop in zip(texts, stopped, strict=True) if t.passes and stop],
    )


def _stopped(measured: RuleResult) -> Iterator[bool]:
    """Whether the rule has something against a row; personal data that is only flagged counts."""
    found = measured.value if measured.check.startswith("safety.pii_") else None
    for row, passed in enumerate(measured.passed_rows.tolist()):
        yield bool(found[row]) if found is not None else not passed


def table() -> str:
    """The figures as Markdown."""
    lines = [
        "| check | languages | sound texts | stopped of them | faults | missed of them | precision | recall |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for check in CHECKS:
        found = measure(check)
        faults = sum(not text.passes for text in found.texts)
        cells = [
            len({text.language for text in found.texts}), len(found.texts) - faults,
            len(found.false_alarms), faults, len(found.missed),
            f"{found.precision:.3f}", f"{found.recall:.3f}",
        ]  # fmt: skip
        lines.append(f"| `{check}` | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def committed_table() -> str:
    """The table as docs/baseline.md has it."""
    return BASELINE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def write_table() -> None:
    """Put the table of today into docs/baseline.md."""
    text = BASELINE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    BASELINE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
