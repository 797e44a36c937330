"""Plan, status, verify and summary over sealed files of the tiny stages."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from nexa_distill import pipeline
from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputMissing, Locked, UsageError
from nexa_distill.orchestration.freshness import verify_chain
from nexa_distill.orchestration.planning import Request, Step, make_plan
from nexa_distill.orchestration.run_folder import (
    describe_failures,
    exit_code,
    planned_sessions,
    read_session,
    write_plan,
)
from nexa_distill.orchestration.stages import CHECKPOINT, RAW, SESSIONS, STAGES, locate_path, session_of
from nexa_distill.orchestration.window import session_line
from nexa_distill.storage.manifests import FILES, StageRun, manifest_path, sha256_path
from tests import warm
from tests.support.tiny_project import ROOT, SCRIPTS, TinyProject, wait_until
from tests.support.tiny_stage import seal_session

CONFIG = Path("configs/distill_config.yaml")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """An empty project, and we stand in it."""
    made = TinyProject(tmp_path / "project")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture
def finished(project: TinyProject) -> TinyProject:
    """A project in which every stage has sealed its outputs."""
    for session in SESSIONS:
        seal_session(session)
    return project


def plan(**asked: object) -> dict[str, str]:
    """Session -> "run: why" or "skip: why"."""
    steps = make_plan(Request(CONFIG, **asked), Path("logs/run"))  # type: ignore[arg-type]
    return {step.session: f"{'run' if step.runs else 'skip'}: {step.why}" for step in steps}


def change_config(project: TinyProject, **changes: object) -> None:
    values = yaml.safe_load((project.root / CONFIG).read_text())
    project.write(str(CONFIG), yaml.safe_dump(values | changes))


def output(key: str) -> Path:
    return locate_path(key, Request(CONFIG).load_settings())


# The table.


def test_stages_agree_with_the_contracts_on_who_writes_what() -> None:
    owners = {key: table.stage for key, table in TABLES.items()} | {k: v[0] for k, v in FILES.items()}
    for stage in STAGES:
        for key in stage.outputs:
            assert key == CHECKPOINT or owners[key].split(".")[0] == stage.name.split(".")[0]


def test_every_input_is_written_by_an_earlier_stage() -> None:
    known = {RAW}
    for stage in STAGES:
        assert set(stage.inputs) <= known
        known |= set(stage.outputs)


@pytest.mark.parametrize(
    ("name", "session"), [("dedup", "data_gen"), ("rules", "filtering"), ("train", "training"),
                          ("teacher", "data_gen"), ("evaluation", "evaluation")],
)  # fmt: skip
def test_a_stage_or_a_session_can_be_named(name: str, session: str) -> None:
    assert session_of(name) == session


# Plan.


def test_with_nothing_made_everything_runs(project: TinyProject) -> None:
    assert plan() == dict.fromkeys(SESSIONS, "run: no output yet")


def test_with_everything_made_nothing_runs(finished: TinyProject) -> None:
    assert plan() == dict.fromkeys(SESSIONS, "skip: up to date")


def test_a_changed_raw_file_runs_everything_again(finished: TinyProject) -> None:
    finished.write("raw.jsonl", '{"text": "b"}\n')
    found = plan()
    assert found["data_gen"] == "run: input changed: raw.jsonl"
    assert found["filtering"] == "run: upstream runs (data_gen)"
    assert found["evaluation"] == "run: upstream runs (training)"


def test_a_changed_threshold_leaves_data_gen_alone(finished: TinyProject) -> None:
    finished.write("f.yaml", f"extends: {ROOT}/configs/filters.yaml\nmin_char_length: 121\n")
    change_config(finished, filters="f.yaml")
    found = plan()
    assert found["data_gen"] == "skip: up to date"
    assert found["filtering"] == "run: rules: settings changed"
    assert found["regeneration"] == "run: upstream runs (filtering)"
    assert found["packaging"] == "run: upstream runs (regeneration)"


def test_a_changed_learning_rate_runs_training_and_evaluation_only(finished: TinyProject) -> None:
    student = yaml.safe_load((finished.root / "configs/student.yaml").read_text())
    student["train"]["learning_rate"] = 0.01
    finished.write("configs/student.yaml", yaml.safe_dump(student))
    found = plan()
    assert [name for name in SESSIONS if found[name].startswith("run")] == ["training", "evaluation"]
    assert found["training"] == "run: train: settings changed"


def test_where_the_data_is_and_how_fast_it_is_asked_for_changes_nothing(finished: TinyProject) -> None:
    (finished.root / "raw.jsonl").rename(finished.root / "moved.jsonl")
    collection = yaml.safe_load((finished.root / CONFIG).read_text())["collection"]
    change_config(finished, input={"path": "moved.jsonl"}, collection=collection | {"concurrency": 3})
    assert plan() == dict.fromkeys(SESSIONS, "skip: up to date")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda p: p.unlink(), "is gone"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "does not match its manifest"),
        (lambda p: manifest_path(p, Request(CONFIG).load_settings().storage).unlink(), "has no manifest"),
    ],
)
def test_doubt_about_an_output_runs_its_stage(finished: TinyProject, damage: object, why: str) -> None:
    damage(output("filtered_dataset"))  # type: ignore[operator]
    assert plan()["data_gen"] == "skip: up to date"
    assert plan()["filtering"].endswith(why)


def test_other_repairs_are_a_new_input_of_filtering(finished: TinyProject) -> None:
    path = output("regen_dataset")
    path.write_bytes(b"x")
    found = plan()
    assert found["filtering"] == "skip: up to date", "a file without its seal counts for nothing"
    assert found["regeneration"].endswith("does not match its manifest")
    pq.write_table(pa.table({"sample_id": ["x"]}), path)
    config = Request(CONFIG).load_settings()
    StageRun("regenerate", config.storage, inputs=[output("collected_dataset")], settings={}).seal_output(
        path, rows_in=1, rejected=0
    )
    assert plan()["filtering"].startswith("run: input changed")


def test_from_and_only_leave_the_others_alone(project: TinyProject) -> None:
    assert [n for n, why in plan(first="rules").items() if why.startswith("run")] == list(SESSIONS[1:])
    assert [n for n, why in plan(only="training").items() if why.startswith("run")] == ["training"]
    steps = make_plan(Request(CONFIG, only="training"), Path("logs/run"))
    assert [step.after for step in steps if step.runs] == [""]


def test_a_session_asked_for_by_name_starts_even_if_it_is_up_to_date(finished: TinyProject) -> None:
    assert plan(only="evaluation")["evaluation"] == "run: requested by name; up to date"
    assert plan(first="training")["evaluation"] == "run: upstream runs (training)"
    assert plan(only="teacher", provider="embedded")["teacher"].startswith("run")  # other settings
    assert plan(first="data_gen")["data_gen"] == "run: requested by name; up to date"


def test_each_session_waits_for_the_one_before_it_that_runs(project: TinyProject) -> None:
    seal_session("data_gen")
    seal_session("filtering")
    steps = [s for s in make_plan(Request(CONFIG), Path("logs/run")) if s.runs]
    assert [(s.session, s.after) for s in steps] == [
        ("regeneration", ""), ("packaging", "regeneration"), ("training", "packaging"),
        ("evaluation", "training"),
    ]  # fmt: skip


def test_the_teacher_starts_only_for_a_provider_with_a_server_and_data_gen_to_do(project: TinyProject) -> None:
    assert "teacher" not in plan()
    steps = make_plan(Request(CONFIG, provider="embedded"), Path("logs/run"))
    teacher, data_gen = steps[:2]
    assert teacher.command[:2] == ["python", "teacher.py"]
    assert teacher.command[-2:] == ["--until", "logs/run/data_gen.exit"]
    assert (teacher.ready_by, teacher.ready_file) == ("data_gen", "logs/run/teacher.wanted")
    assert data_gen.ready_by == ""
    later = make_plan(Request(CONFIG, provider="embedded", first="filtering"), Path("logs/run"))
    assert not later[0].runs


def test_a_server_of_the_command_line_is_asked_by_both_sessions_and_starts_none(project: TinyProject) -> None:
    """Also where the configured provider starts a server of its own."""
    for provider in (None, "embedded", "vllm"):
        request = Request(CONFIG, provider=provider, base_url="http://127.0.0.1:1/v1", model="acme")
        config = request.load_settings()
        name, asked = config.chosen_provider()
        assert (asked.base_url, asked.model, asked.regen_model, asked.start) == (request.base_url, "acme", "acme", None)
        assert (name == "own") == (provider == "embedded")
        steps = {step.session: " ".join(step.command) for step in make_plan(request, Path("r"))}
        assert "teacher" not in steps
        for session in ("data_gen", "regeneration"):
            assert steps[session].endswith("--base-url http://127.0.0.1:1/v1 --model acme")
    with pytest.raises(UsageError, match="--model NAME"):
        Request(CONFIG, provider="embedded", base_url="http://127.0.0.1:1/v1").load_settings()
    change_config(project, collection={"teacher_model": "other"})
    assert (
        Request(CONFIG, base_url="http://127.0.0.1:1/v1", model="acme").load_settings().collection.teacher_model
        == "acme"
    )


def test_data_gen_gets_the_flags_and_training_the_student(project: TinyProject) -> None:
    request = Request(CONFIG, input=Path("raw.jsonl"), limit=3, provider="vllm")
    commands = {step.session: " ".join(step.command) for step in make_plan(request, Path("r"))}
    assert commands["data_gen"].endswith("--input raw.jsonl --limit 3 --provider vllm")
    assert commands["training"] == (
        "bash scripts/shell/training/run_training.sh configs/student.yaml false "
        "--pipeline-config configs/distill_config.yaml"
    )


def test_a_missing_raw_file_and_an_unknown_stage_are_said_at_once(project: TinyProject) -> None:
    with pytest.raises(InputMissing, match=r"nowhere\.csv"):
        plan(input=Path("nowhere.csv"))
    with pytest.raises(UsageError, match='did you mean "packaging"'):
        plan(only="packagin")


def test_plan_cli_commands_are_those_of_the_plan(project: TinyProject) -> None:
    made = pipeline.DistillationPipeline(CONFIG).plan_cli_commands()
    script = "scripts/python/data_processing/run_filtering.py"
    assert made[1] == f"python {script} --config configs/distill_config.yaml"
    assert len(made) == 6


def test_plan_cli_commands_lists_every_session_on_request(finished: TinyProject) -> None:
    (finished.root / "raw.jsonl").rename(finished.root / "elsewhere.jsonl")  # only a plan needs it
    made = pipeline.DistillationPipeline(CONFIG)
    commands = made.plan_cli_commands(all=True)
    assert len(commands) == len(SESSIONS)
    assert commands[0] == f"python {SCRIPTS['data_gen']} --config configs/distill_config.yaml"
    (finished.root / "elsewhere.jsonl").rename(finished.root / "raw.jsonl")
    assert made.plan_cli_commands() == []


# A run's folder.


def test_a_plan_survives_any_word(tmp_path: Path) -> None:
    steps = [Step("a", True, "", ["x", "", "two words", "a\nline"]), Step("b", False, "", ["y"]),
             Step("c", True, "", ["z"], after="a")]  # fmt: skip
    write_plan(tmp_path / "run", steps)
    assert planned_sessions(tmp_path / "run") == ["a", "c"]


def test_prepare_refuses_while_a_run_goes_on_and_not_after_its_wrapper_was_killed(project: TinyProject) -> None:
    first = pipeline.prepare_run(Request(CONFIG))
    assert first is not None
    (project.root / "logs/latest").symlink_to(first.name)
    for name in planned_sessions(first):
        (first / f"{name}.exit").write_text("0\n")
    (first / "training.exit").unlink()
    wrapper = 'echo $$ >"$2/training.pid"; sleep 60; :'
    with subprocess.Popen(["bash", "-c", wrapper, "run_stage.sh", "training", str(first)]) as w:
        wait_until(lambda: (pid := first / "training.pid").exists() and pid.read_text(), "the wrapper")
        with pytest.raises(Locked, match="training"):
            pipeline.prepare_run(Request(CONFIG))
        w.kill()
    time.sleep(1)  # a run's name is its second and the launcher's pid
    assert pipeline.prepare_run(Request(CONFIG)) != first
    assert (first / "training.exit").read_text() == "137\n"


def test_a_pid_that_another_program_has_now_is_not_taken_for_the_wrapper(tmp_path: Path) -> None:
    write_plan(tmp_path / "run", [Step("training", True, "", ["true"])])
    (tmp_path / "run/training.pid").write_text(str(os.getpid()))
    assert read_session(tmp_path / "run", "training").code == 137


def test_a_line_shows_rows_rate_elapsed_and_estimate(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_plan(run, [Step("data_gen", True, "", ["true"])])
    assert "waiting" in session_line(read_session(run, "data_gen"))
    (run / "data_gen.started").touch()
    os.utime(run / "data_gen.started", (time.time() - 62, time.time() - 62))
    state = {"step": "teacher", "done": 34, "total": 128, "rate": 2.0, "note": "$0.01", "updated": 0}
    (run / "data_gen.progress").write_text(json.dumps(state))
    line = session_line(read_session(run, "data_gen"))
    assert line.split() == ["data_gen", "running", "1:02", "teacher", "34/128", "━━━━┄┄┄┄┄┄┄┄┄┄┄┄", "2.0/s",
                            "about", "0:47", "left", "$0.01"]  # fmt: skip


def test_a_torn_progress_file_costs_only_the_numbers(tmp_path: Path) -> None:
    write_plan(tmp_path / "run", [Step("data_gen", True, "", ["true"])])
    (tmp_path / "run/data_gen.progress").write_text('{"step": "te')
    assert read_session(tmp_path / "run", "data_gen").total == 0


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 0, 0), 0), ((0, 65, 75), 65), ((0, 137, 75), 137), ((69, 75, 75), 69)]
)
def test_the_runs_code_is_the_first_failing_sessions(tmp_path: Path, codes: tuple[int, ...], code: int) -> None:
    names = ["a", "b", "c"]
    write_plan(tmp_path / "run", [Step(name, True, "", ["true"]) for name in names])
    for name, each in zip(names, codes, strict=True):
        (tmp_path / f"run/{name}.exit").write_text(f"{each}\n")
    states = [read_session(tmp_path / "run", name) for name in names]
    assert exit_code(states) == code
    assert len(list(describe_failures(tmp_path / "run", states))) == (code != 0)


# Verify, status, summary.


def test_a_whole_chain_is_named_link_by_link(finished: TinyProject) -> None:
    lines = list(verify_chain(Request(CONFIG).load_settings()))
    assert len(lines) == sum(len(stage.outputs) for stage in STAGES)
    assert "raw.jsonl" in lines[0]


@pytest.mark.parametrize(
    ("key", "link"),
    [("raw", "canonicalize"), ("canonical", "canonicalize"), ("collected_dataset", "teacher"),
     ("rules_checks", "rules"), ("sft_parquet", "packaging"), ("splits", "packaging"),
     ("checkpoint", "train"), ("student_outputs", "student_gen")],
)  # fmt: skip
def test_one_changed_byte_breaks_its_link(finished: TinyProject, key: str, link: str) -> None:
    file = Path("raw.jsonl") if key == "raw" else output(key)
    if file.is_dir():
        file = next(file.iterdir())
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(InputMissing, match=f"broken link at {link}:") as stop:
        list(verify_chain(Request(CONFIG).load_settings()))
    assert stop.value.exit_code == 66


def test_an_upstream_made_again_breaks_the_link_of_what_was_made_from_it(finished: TinyProject) -> None:
    finished.write("raw.jsonl", '{"text": "b"}\n')
    seal_session("data_gen")
    path = output("collected_dataset")
    path.write_bytes(path.read_bytes() + b" ")
    manifest = manifest_path(path, Request(CONFIG).load_settings().storage)
    sealed = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(sealed | {"sha256": sha256_path(path)}))
    with pytest.raises(InputMissing, match="broken link at rules"):
        list(verify_chain(Request(CONFIG).load_settings()))


def test_an_unfinished_chain_is_not_whole(project: TinyProject) -> None:
    for session in ("data_gen", "filtering", "regeneration", "packaging"):
        seal_session(session)
    with pytest.raises(InputMissing, match=r"broken link at train: .*final is missing"):
        list(verify_chain(Request(CONFIG).load_settings()))
    seal_session("training")
    assert list(verify_chain(Request(CONFIG).load_settings()))


def test_status_answers_when_nothing_has_run(project: TinyProject) -> None:
    lines = list(pipeline.describe_status(Request(CONFIG).load_settings()))
    assert lines[0].startswith("Nothing has run yet")
    assert sum("not made yet" in line for line in lines) == len(STAGES)


def test_a_reader_that_has_seen_enough_gets_no_traceback(project: TinyProject) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [warm.python(), "-m", "nexa_distill.pipeline", "status"]
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            command, cwd=project.root, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=closed, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


def test_the_summary_gives_rows_per_stage_and_the_reports_headline(finished: TinyProject) -> None:
    lines = list(pipeline.describe_summary(Request(CONFIG).load_settings()))
    assert lines[1].split()[:4] == ["canonicalize", "3", "2", "1"]
    assert "better than before" in lines
    assert lines[-1].startswith("Report: data/processed/evaluation/report.json")


@pytest.mark.alone
def test_help_is_quick_and_the_data_side_imports_neither_torch_nor_the_student_side() -> None:
    code = (
        "import sys, nexa_distill.pipeline, nexa_distill.orchestration.planning\n"
        "heavy = {'torch', 'transformers', 'nexa_train'}\n"
        "print([name for name in sys.modules if name.split('.')[0] in heavy])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    before = time.monotonic()
    subprocess.run([sys.executable, "-m", "nexa_distill.pipeline", "--help"], check=True, capture_output=True)
    assert time.monotonic() - before < 3  # well under 1 s on a machine that does nothing else


def test_the_command_exits_with_66_at_a_broken_link(finished: TinyProject) -> None:
    command = [warm.python(), "-m", "nexa_distill.pipeline", "verify"]
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    assert whole.stdout.endswith("All hashes verified.\n")
    finished.write("raw.jsonl", "other\n")
    broken = subprocess.run(command, capture_output=True, text=True, check=False)
    assert broken.returncode == 66
    assert "error: broken link at canonicalize: raw.jsonl is" in broken.stderr
