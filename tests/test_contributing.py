"""The diffs of CONTRIBUTING.md apply, and what they add is in use."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.workspace import ROOT

DIFFS = re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
RULE, RUBRIC, DIALECT, TASK, FORMAT = range(5)
TEXTS = """
import pyarrow as pa
from pathlib import Path
from nexa_distill.settings.filters import load_filter_config
from nexa_distill.gating.rules import COLUMNS, Rules
row = dict.fromkeys(COLUMNS) | {"finish_reason": "stop", "template_name": "hypothesis"}
texts = ["We measure the cells. Wait, let me think about this again.", "We measure the cells, and this is all."]
schema = pa.schema([(c, pa.string()) for c in COLUMNS])
rows = pa.Table.from_pylist([row | {"teacher_output": text} for text in texts], schema)
results = Rules(load_filter_config(Path("configs/filters.yaml"))).measure_batch(rows)
print(next(r for r in results if r.check == "rules.self_talk").ok.tolist())
"""
USES = [
    (RULE, TEXTS, "[False, True]"),
    (
        RULE,
        "from nexa_distill.contracts import REASONS as R; print(R['self_talk'].instruction)",
        "Give the finished answer",
    ),
    (
        RUBRIC,
        "from pathlib import Path; from nexa_distill.settings.filters import load_filter_config as load;"
        "from nexa_distill.judging.rubrics import load_rubrics; from nexa_distill.settings.pipeline import load_config;"
        "print([r.name for r in load_rubrics(load_config(Path('configs/distill_config.yaml')))],"
        "load(Path('configs/filters.yaml')).sample_gate.score_thresholds['judge.style'])",
        "['factuality', 'reasoning', 'style'] 0.5",
    ),
    (
        RUBRIC,
        "from pathlib import Path; from nexa_distill.sample_gate import SampleGate;"
        "from nexa_distill.settings.filters import load_filter_config as load;"
        "gate = SampleGate(load(Path('configs/filters.yaml')).sample_gate);"
        "row = {'ok': True, 'reason': None, 'detail': None};"
        "print(gate.filter_sample([row | {'check': 'judge.style', 'value': 0.4}]))",
        "low_style",
    ),
    (
        DIALECT,
        "from nexa_distill import dialects as d;"
        "print(d.dialect_of_host('api.example.com').name, d.has_used_its_quota('Your monthly allowance is used up.'),"
        "d.normal_finish_reason('token_limit'))",
        "example True length",
    ),
    (
        TASK,
        "from nexa_distill.settings import tasks;"
        "from nexa_distill.settings.pipeline import load_config;"
        "from pathlib import Path; config = load_config(Path('configs/distill_config.yaml'));"
        "print(*(task.text_template for task in [tasks.load_task('simplify')]),"
        "tasks.load_system_prompts(config).find_prompt('simplify'), tasks.TaskFilters(config).preset_of('simplify'))",
        "a child of ten knows. You write for children. chat",
    ),
    (
        FORMAT,
        "from nexa_distill.to_sft import FORMATS;"
        "m = [{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}];"
        "print(FORMATS['chosen']({'messages': m})['chosen'])",
        "[{'role': 'assistant', 'content': 'A'}]",
    ),
]


def test_there_is_one_diff_for_each() -> None:
    assert len(DIFFS) == 5


@pytest.mark.parametrize(("number", "program", "printed"), USES)
def test_what_a_diff_adds_is_in_use(tmp_path: Path, number: int, program: str, printed: str) -> None:
    for name in ("nexa_distill", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    without = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert printed not in without.stdout, "the program would pass without the diff"
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=DIFFS[number], text=True, check=True)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert printed in done.stdout, done.stderr
