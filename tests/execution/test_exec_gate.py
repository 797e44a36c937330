"""The exec gate as a stage: what it reads and writes, when it runs again, what it refuses."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nexa_distill import exec_gate, filter_pairs, sample_gate
from nexa_distill.contracts import CONTENT_COLUMNS, TABLES, canonical_input
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.execution import sandbox
from nexa_distill.orchestration.freshness import Freshness, verify_chain
from nexa_distill.orchestration.stages import STAGES
from nexa_distill.raw_data.columns import PASSED_ON
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.manifests import StageRun, load_manifest, sha256_path
from nexa_distill.storage.tables import read_table
from tests import warm
from tests.execution.test_hostile import processes
from tests.support.answers import REPOSITORY, answer, collect, project, write_answers
from tests.support.databases import make_shops
from tests.support.tiny_project import heed_ctrl_c, wait_until

GOLD = "SELECT name FROM goods WHERE price > 5"
LAX = {
    "min_char_length": 1, "min_token_length": 1, "require_action_verb": False,
    "max_repetition": None,
}  # fmt: skip
EXEC = next(stage for stage in STAGES if stage.name == "exec")


def sql(number: int, output: str | None, **more: Any) -> dict[str, Any]:
    """An answer to a text2sql task on the shops."""
    columns = {"template_name": "text2sql", "database": "shops", "gold_sql": GOLD}
    return answer(number, output, **(columns | more))


def prepared(folder: Path, rows: list[dict[str, Any]], **execution: Any) -> DistillConfig:
    """A project whose answers pass the rules, with the shops' database."""
    databases = folder / "databases"
    databases.mkdir()
    make_shops(databases / "shops.sqlite")
    filters = folder / "filters.yaml"
    shipped = REPOSITORY / "configs/filters.yaml"
    filters.write_text(json.dumps({"extends": str(shipped), **LAX}))
    values = {"databases": str(databases), "timeout_seconds": 2.0, "workers": 2} | execution
    config = project(folder, execution=values, filters=str(filters))
    collect(config, rows)
    filter_pairs.run(config)
    return config


def rows_of(config: DistillConfig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_table(config.storage.path_of("exec_checks"), TABLES["exec_checks"]).to_pylist()
    return found


def told(config: DistillConfig) -> dict[str, dict[str, Any]]:
    """task_id number -> check -> (ok, value, reason)."""
    names = {answer(i)["sample_id"]: str(i) for i in range(50)}
    found: dict[str, dict[str, Any]] = {}
    for row in rows_of(config):
        checks = found.setdefault(names[row["sample_id"]], {})
        checks[row["check"].removeprefix("exec.")] = (row["ok"], row["value"], row["reason"])
    return found


def test_each_kind_of_answer_is_measured_and_others_are_left_alone(tmp_path: Path) -> None:
    schema = tmp_path / "person.json"
    schema.write_text(json.dumps({"type": "object", "required": ["age"]}))
    rows = [
        sql(0, GOLD),
        sql(1, "SELECT name FROM goods"),
        sql(2, "DROP TABLE goods"),
        sql(3, "SELECT name FROM goods", gold_sql=None),
        answer(4, "So it is 7.\n#### 7", template_name="math", reference="3 + 4\n#### 7"),
        answer(5, '{"age": 1}', template_name="json"),
        answer(6, "[]", template_name="json"),
        answer(7, "A hypothesis without anything to run."),
    ]
    config = prepared(tmp_path, rows)
    collection = config.collection.model_copy(update={"response_schemas": {"json": str(schema)}})
    config = config.model_copy(update={"collection": collection})
    summary = exec_gate.run(config)
    assert summary is not None
    right, wrong = (True, 1.0, None), (True, 0.5, None)
    assert told(config) == {
        "0": {"executes": right, "matches": right, "matches_perturbed": right, "score": right},
        "1": {"executes": right, "matches": (False, 0.0, "wrong_result"), "score": wrong},
        "2": {"executes": (False, 0.0, "not_a_query"), "matches": (False, 0.0, "not_a_query"),
              "score": (True, 0.0, None)},
        "3": {"executes": right, "score": wrong},
        "4": {"executes": right, "matches": right, "score": right},
        "5": {"executes": right, "matches": right, "score": right},
        "6": {"executes": right, "matches": (False, 0.0, "schema_mismatch"), "score": wrong},
    }  # fmt: skip
    report = json.loads((tmp_path / "processed/reports/exec/quality_report.json").read_text())
    assert (report["total"], report["kept"], report["rejected"]) == (7, 4, 3)
    assert report["reject_reason_counts"] == {
        "wrong_result": 1, "not_a_query": 1, "schema_mismatch": 1,
    }  # fmt: skip
    assert report["exec_error_counts"] == {"not_a_query": 1}
    assert (report["exec_pass_rate"], report["gold_match_rate"]) == (6 / 7, 3 / 6)
    manifest = load_manifest(config.storage.path_of("exec_checks"), config.storage)
    assert manifest is not None
    assert (manifest["rows_in"], manifest["kept"], manifest["rejected"]) == (8, 5, 3)


def test_the_answers_stand_in_input_order(tmp_path: Path) -> None:
    rows = [sql(i, GOLD if i % 3 else "nonsense") for i in range(40)]
    config = prepared(tmp_path, rows)
    exec_gate.run(config)
    order = list(dict.fromkeys(row["sample_id"] for row in rows_of(config)))
    assert order == [row["sample_id"] for row in rows]


def test_nothing_to_execute_is_an_empty_sealed_table_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = prepared(tmp_path, [answer(0), answer(1)], databases=None)
    capsys.readouterr()
    exec_gate.run(config)
    assert rows_of(config) == []
    assert "nothing to execute among 2 answers" in capsys.readouterr().out
    assert Freshness(config).stale_reason(EXEC) is None


def test_the_shipped_run_imports_no_parser_and_starts_no_worker(tmp_path: Path) -> None:
    prepared(tmp_path, [answer(0)], databases=None)
    code = (
        "import sys; from pathlib import Path; from nexa_distill import exec_gate\n"
        f"from nexa_distill.settings.pipeline import load_config\n"
        f"exec_gate.run(load_config(Path({str(tmp_path / 'config.yaml')!r})))\n"
        "heavy = {'sqlglot', 'sympy', 'math_verify', 'jsonschema', 'torch'}\n"
        "print(heavy & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.splitlines()[-1] == "set()"


# Up to date, and not.


def test_a_finished_stage_does_nothing_and_changes_no_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = prepared(tmp_path, [sql(0, GOLD)])
    exec_gate.run(config)
    before = {p: sha256_path(p) for p in (tmp_path / "processed").rglob("*") if p.is_file()}
    assert exec_gate.run(config) is None
    assert "is up to date" in capsys.readouterr().out
    assert {p: sha256_path(p) for p in (tmp_path / "processed").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("execution", "stale"),
    [
        ({"workers": 1}, False), ({"timeout_seconds": 3.0}, True), ({"max_rows": 2}, True),
        ({"tasks": {"text2sql": None}}, True),
    ],
)  # fmt: skip
def test_what_decides_a_verdict_makes_it_stale_and_nothing_else(
    tmp_path: Path, execution: Mapping[str, Any], *, stale: bool
) -> None:
    config = prepared(tmp_path, [sql(0, GOLD)])
    exec_gate.run(config)
    changed = config.model_copy(update={"execution": config.execution.model_copy(update=dict(execution))})
    assert (Freshness(changed).stale_reason(EXEC) is not None) == stale
    assert (exec_gate.run(changed) is not None) == stale


def test_a_changed_database_makes_the_checks_stale(tmp_path: Path) -> None:
    config = prepared(tmp_path, [sql(0, "SELECT count(*) FROM goods", gold_sql=None)])
    exec_gate.run(config)
    path = tmp_path / "databases/shops.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("DELETE FROM goods WHERE name = 'tea'")
    base.close()
    assert Freshness(config).stale_reason(EXEC) == f"input changed or gone: {path}"
    assert exec_gate.run(config) is not None
    assert Freshness(config).stale_reason(EXEC) is None


def test_verify_covers_the_databases(tmp_path: Path) -> None:
    config = prepared(tmp_path, [sql(0, GOLD)])
    exec_gate.run(config)
    links = verify_chain(config)
    with pytest.raises(InputMissing, match="canonicalize"):  # the raw data is not in this project
        list(links)
    path = tmp_path / "databases/shops.sqlite"
    manifest = load_manifest(config.storage.path_of("exec_checks"), config.storage)
    assert manifest is not None
    assert {"path": str(path), "sha256": sha256_path(path)} in manifest["inputs"]


def test_checks_of_earlier_answers_are_refused_by_sample_gate(tmp_path: Path) -> None:
    config = prepared(tmp_path, [sql(0, GOLD)])
    exec_gate.run(config)
    collect(config, [sql(0, "DROP TABLE goods"), sql(1, GOLD)])
    filter_pairs.run(config)
    with pytest.raises(InputMissing, match=r"exec\.parquet: was made from an earlier"):
        sample_gate.run(config)
    exec_gate.run(config)
    stats = sample_gate.run(config)
    assert stats is not None
    assert (stats.kept, dict(stats.reasons)) == (1, {"not_a_query": 1})


def test_sample_gate_keeps_only_what_is_known_to_be_right(tmp_path: Path) -> None:
    rows = [
        sql(0, GOLD),
        sql(1, "SELECT 'nails' UNION SELECT 'glass'"),
        sql(2, "SELECT count(*) FROM goods", gold_sql="SELECT 10"),
        sql(3, "SELECT 10", gold_sql="SELECT count(*) FROM goods"),
        sql(4, "SELECT name FROM goods WHERE 0", gold_sql="SELECT name FROM goods WHERE 0"),
        answer(5, "A hypothesis."),
    ]
    config = prepared(tmp_path, rows)
    exec_gate.run(config)
    stats = sample_gate.run(config)
    assert stats is not None
    assert stats.kept == 2
    assert stats.reasons == {"wrong_result": 1, "lucky_match": 2, "not_decidable": 1}
    assert stats.measured["exec_error_counts"] == {}
    report = json.loads((tmp_path / "processed/reports/sample_gate/gate_report.json").read_text())
    assert report["families"] == {"rules": True, "exec": True, "judge": False}
    assert (report["exec_pass_rate"], report["gold_match_rate"]) == (1.0, 3 / 5)


# What is refused before anything runs.


def test_without_a_folder_the_database_stands_beside_the_raw_data(tmp_path: Path) -> None:
    config = prepared(tmp_path, [sql(0, GOLD)], databases=None)
    with pytest.raises(InputMissing, match=r"raw: holds no database shops .*--databases DIR"):
        exec_gate.run(config)  # data/raw is what the shipped configuration reads
    assert not config.storage.path_of("exec_checks").exists()
    raw = tmp_path / "databases" / "questions.jsonl"
    canonical = config.storage.path_of("canonical")
    write_answers(canonical, [])
    raw.write_text("{}\n")
    stage = StageRun("canonicalize", config.storage, inputs=[raw], settings={})
    stage.seal_output(canonical, rows_in=0, rejected=0)
    summary = exec_gate.run(config)
    assert summary
    assert summary.passed["exec.matches"] == 1


def test_a_row_without_a_database_is_named(tmp_path: Path) -> None:
    row = sql(1, GOLD, database=None)
    config = prepared(tmp_path, [sql(0, GOLD), row])
    with pytest.raises(InputError, match=rf"answer {row['sample_id']} \(text2sql\) names no"):
        exec_gate.run(config)


@pytest.mark.parametrize("name", ["../shops", "/etc/passwd", "..", "."])
def test_a_database_is_a_name_and_no_path(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "databases/inner"
    config = prepared(tmp_path, [sql(0, GOLD, database=name)], databases=str(inner))
    inner.mkdir()
    with pytest.raises(InputError, match="is not a file name"):
        exec_gate.run(config)


@pytest.mark.parametrize("place", ["other.sqlite", "other", "other/other.sqlite"])
def test_a_database_is_found_by_its_name(tmp_path: Path, place: str) -> None:
    config = prepared(tmp_path, [sql(0, GOLD, database="other")])
    path = tmp_path / "databases" / place
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "databases/shops.sqlite").rename(path)
    exec_gate.run(config)
    assert told(config)["0"]["matches_perturbed"][0] is True


def test_a_missing_broken_or_unfinished_database_is_named(tmp_path: Path) -> None:
    config = prepared(tmp_path, [sql(0, GOLD)])
    path = tmp_path / "databases/shops.sqlite"
    log = path.with_name("shops.sqlite-wal")
    log.write_bytes(b"not written back")
    with pytest.raises(InputError, match="wal_checkpoint"):
        exec_gate.run(config)
    log.unlink()
    path.write_bytes(b"this is no database, though it has bytes" * 100)
    with pytest.raises(InputError, match="not an SQLite database"):
        exec_gate.run(config)
    path.unlink()
    with pytest.raises(InputMissing, match="holds no database shops"):
        exec_gate.run(config)


def test_programs_are_not_run_without_isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = answer(0, "x = 1", template_name="python", tests="assert x == 1")
    config = prepared(tmp_path, [row])
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.sandbox_command.cache_clear()
    with pytest.raises(sandbox.SandboxUnavailable):
        exec_gate.run(config)
    sandbox.sandbox_command.cache_clear()
    assert not config.storage.path_of("exec_checks").exists()


def test_programs_are_run_where_they_can_be_isolated(tmp_path: Path) -> None:
    if shutil.which("bwrap") is None and not os.environ.get("CI"):
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    rows = [answer(i, code, template_name="python", tests="assert x == 1") for i, code in enumerate(["x = 1", "x = 2"])]
    config = prepared(tmp_path, rows)
    exec_gate.run(config)
    assert [told(config)[n]["matches"][0] for n in "01"] == [True, False]


def test_an_answer_that_stands_twice_is_refused(tmp_path: Path) -> None:
    config = prepared(tmp_path, [sql(0, GOLD)])
    src = write_answers(tmp_path / "twice.parquet", [sql(0, GOLD), sql(0, GOLD)])
    with pytest.raises(InputError, match="occurs 2 times"):
        exec_gate.run(config, src=[src], checks=tmp_path / "checks.parquet")


# The commands.


def test_the_command_takes_answers_checks_and_databases(tmp_path: Path) -> None:
    config = prepared(tmp_path, [sql(0, GOLD)], databases=None)
    src = write_answers(tmp_path / "mine.parquet", [sql(3, GOLD)])
    command = [
        warm.python(), "-m", "nexa_distill.exec_gate", "--config", f"{tmp_path}/config.yaml",
        "--src", str(src), "--checks", f"{tmp_path}/c.parquet",
        "--databases", f"{tmp_path}/databases",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "1 of 1 answers execute, 1 of 1 match" in done.stdout
    assert read_table(tmp_path / "c.parquet", TABLES["exec_checks"]).num_rows == 4
    assert not config.storage.path_of("exec_checks").exists()
    refused = subprocess.run(command[:-2], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (refused.returncode, "holds no database shops" in refused.stderr) == (66, True)


def test_filtering_runs_it_between_the_rules_and_sample_gate(tmp_path: Path) -> None:
    config = prepared(tmp_path, [sql(0, GOLD), sql(1, "DROP TABLE goods")])
    script = REPOSITORY / "scripts/python/data_processing/run_filtering.py"
    command = [warm.python(), str(script), "--config", f"{tmp_path}/config.yaml"]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    (kept,) = read_table(config.storage.path_of("filtered_dataset"), TABLES["filtered_dataset"]).to_pylist()
    assert kept["teacher_output"] == GOLD
    assert all(Freshness(config).stale_reason(s) is None for s in STAGES if s.session == "filtering")


def test_ctrl_c_leaves_no_process_and_no_half_table(tmp_path: Path) -> None:
    bomb = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"
    config = prepared(tmp_path, [sql(i, bomb) for i in range(40)], timeout_seconds=60.0, max_sql_steps=10**12)
    command = [
        warm.python(), "-m", "nexa_distill.exec_gate", "--config", str(tmp_path / "config.yaml"),
    ]  # fmt: skip
    run = warm.Process(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    wait_until(lambda: processes(run.real_pid), "the workers", 20)
    time.sleep(1)
    workers = processes(run.real_pid)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=20)
    assert (run.returncode, "stopped by Ctrl-C" in said) == (130, True)
    assert not processes() & workers
    assert not list(config.storage.path_of("exec_checks").parent.glob("*exec*"))


@pytest.mark.alone
def test_help_is_quick() -> None:
    before = time.monotonic()
    command = [sys.executable, "-m", "nexa_distill.exec_gate", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "--databases DIR" in done.stdout
    assert time.monotonic() - before < 3  # well under 1 s on a machine that does nothing else


# The column `tests`.


def test_tests_are_content_and_are_passed_on_and_change_no_old_key() -> None:
    assert "tests" in CONTENT_COLUMNS
    assert "tests" in PASSED_ON
    old = {"template_name": "math", "user_prompt": "1 + 1?"}
    assert canonical_input(old | {"tests": None}) == canonical_input(old)
    assert canonical_input(old | {"tests": "assert f(1)"}) != canonical_input(old)
