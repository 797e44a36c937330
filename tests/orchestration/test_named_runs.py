"""Runs with names, frozen settings, and a finished student that is not replaced unasked."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import get_args

import pytest
import yaml

from nexa_distill import pipeline
from nexa_distill.errors import InputError, InputMissing, Locked, UsageError
from nexa_distill.orchestration import run_list
from nexa_distill.orchestration.frozen_config import changed_settings, freeze_config
from nexa_distill.orchestration.named_runs import with_name
from nexa_distill.orchestration.planning import Request
from nexa_distill.orchestration.run_folder import frozen_config_path, latest_run, read_record
from nexa_distill.orchestration.stages import SESSIONS
from nexa_distill.reporting.run_comparison import comparison_lines
from nexa_distill.settings.filters import PresetName, load_filter_config
from nexa_distill.settings.pipeline import load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from tests.support.tiny_project import ROOT, TinyProject, wait_until
from tests.support.tiny_stage import seal_session

CONFIG = Path("configs/distill_config.yaml")
RECIPES = ("distill_config", "text2sql", "math")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    made = TinyProject(tmp_path / "project")
    monkeypatch.chdir(made.root)
    # Several launches of one process within a second.
    number = count(10)
    monkeypatch.setattr(pipeline, "new_run_dir", lambda logs: logs / f"20261128T100000Z-{next(number)}")
    return made


@pytest.fixture
def finished(project: TinyProject) -> TinyProject:
    """A project in which a launch has ended and every stage has sealed its outputs."""
    launch()
    for session in SESSIONS:
        seal_session(session)
    return project


def launch(**asked: object) -> Path | None:
    """What the launcher does before it starts the sessions, which here have ended at once."""
    replace = bool(asked.pop("replace", False))
    config = asked.pop("config", CONFIG)
    run_dir = pipeline.prepare_run(Request(config, **asked), replace=replace)  # type: ignore[arg-type]
    if run_dir is not None:
        (run_dir.parent / "latest").unlink(missing_ok=True)
        (run_dir.parent / "latest").symlink_to(run_dir.name)
        for session in SESSIONS:
            (run_dir / f"{session}.exit").write_text("0\n")
    return run_dir


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Frozen settings.


@pytest.mark.parametrize("recipe", RECIPES)
def test_frozen_settings_are_the_settings(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(Path(f"configs/{recipe}.yaml"))
    frozen = load_config(freeze_config(config, tmp_path / "config"))
    assert changed_settings(config, frozen) == {}
    for preset in (None, *get_args(PresetName)):
        assert load_filter_config(frozen.filters, preset) == load_filter_config(config.filters, preset)
    assert load_yaml(Path(frozen.student), StudentConfig) == load_yaml(Path(config.student), StudentConfig)
    texts = [[one.collection.system_prompt_path, *one.judging.rubrics.values()] for one in (frozen, config)]
    for copy, original in zip(*texts, strict=True):
        if copy is None or original is None:  # the tasks' own
            assert copy == original
            continue
        assert tmp_path in Path(copy).parents
        assert Path(copy).read_text() == Path(original).read_text()


def test_settings_that_are_edited_during_a_run_do_not_reach_it(project: TinyProject) -> None:
    run_dir = launch(limit=2)
    assert run_dir is not None
    project.write(str(CONFIG), project.root.joinpath(CONFIG).read_text() + "chunking: {max_tokens: 77}\n")
    frozen = frozen_config_path(run_dir)
    assert frozen is not None
    plan = (run_dir / "plan").read_text()
    assert str(CONFIG) not in plan.replace(str(frozen.relative_to(project.root)), "")
    config = load_config(frozen)
    assert (config.input.limit, config.chunking.max_tokens) == (2, 400)
    record = read_record(run_dir)
    assert record is not None
    assert (record.config, record.limit, record.name) == (str(CONFIG), 2, None)


# A finished student is not replaced.


@pytest.mark.parametrize(
    ("asked", "because"),
    [
        ({"limit": 8}, "canonicalize: settings changed (input.limit was null, is 8)"),
        ({"input": Path("other.jsonl")}, "input changed: other.jsonl"),
        ({"config": Path("other.yaml")}, "train: settings changed"),
        ({"provider": "vllm"}, 'teacher: settings changed (provider was "ollama", is "vllm"'),
        ({"limit": 8, "first": "filtering"}, None),
        ({"first": "filtering", "config": Path("strict.yaml")}, "rules: settings changed"),
        ({"only": "filtering", "config": Path("strict.yaml")}, None),
        ({"only": "data_gen", "limit": 8}, "canonicalize: settings changed"),
        ({"config": Path("second.yaml")}, "final is another student than the one evaluated"),
    ],
)
def test_another_input_limit_or_setting_replaces_no_finished_student(
    finished: TinyProject, asked: dict[str, object], because: str | None
) -> None:
    write_variants(finished)
    before = hashes(finished.root / "data")
    if because is None:  # not made from the limit; or a gate, run by name
        launch(**asked)
        return
    with pytest.raises(Locked, match="would replace") as refused:
        launch(**asked)
    assert because in str(refused.value)
    assert "better than before" in str(refused.value)
    assert "`--name NAME`" in str(refused.value)
    assert hashes(finished.root / "data") == before
    assert len(finished.runs()) == 1, "nothing was started"
    assert launch(**asked, replace=True) is not None
    assert launch(**asked, name="beside") is not None
    assert hashes(finished.root / "data/processed") == {
        path: value for path, value in before.items() if "data/processed" in path
    }


def write_variants(project: TinyProject) -> None:
    """Other data, another student's training, stricter rules, a second student, each by a file."""
    project.write("other.jsonl", '{"text": "b"}\n')
    student = yaml.safe_load((project.root / "configs/student.yaml").read_text())
    project.write("faster.yaml", yaml.safe_dump(student | {"train": student["train"] | {"learning_rate": 0.01}}))
    project.write("second_student.yaml", yaml.safe_dump(student | {"run_name": "second"}))
    project.write("f.yaml", f"extends: {ROOT}/configs/filters.yaml\nmin_char_length: 121\n")
    for name, line in (
        ("other", "student: faster.yaml"), ("second", "student: second_student.yaml"), ("strict", "filters: f.yaml"),
    ):  # fmt: skip
        project.write(f"{name}.yaml", f"extends: {project.root / CONFIG}\n{line}\n")


def test_the_same_launch_continues_and_an_unfinished_run_takes_other_settings(finished: TinyProject) -> None:
    assert launch() is None, "nothing to do"
    shutil.rmtree(finished.root / "data/processed/evaluation")
    assert launch() is not None, "the same again, as after a crash"
    shutil.rmtree(finished.root / "data/processed/training/checkpoints")
    assert launch(limit=8) is not None, "nothing finished is there"


def test_decisions_of_people_steer_the_next_launch(finished: TinyProject) -> None:
    labels = finished.root / "data/processed/distillation/labels/annotations.jsonl"
    labels.parent.mkdir(parents=True)
    labels.write_text('{"sample_id": "a"}\n')
    assert launch() is not None


def test_a_dry_run_says_what_would_be_replaced(finished: TinyProject) -> None:
    (last,) = list(pipeline.describe_plan(Request(CONFIG, limit=8)))[-1:]
    assert last.startswith("needs --replace or --name NAME: it would replace")


# Names.


def test_a_named_run_shares_the_journal_and_the_models_and_nothing_else(project: TinyProject) -> None:
    plain = load_config(CONFIG)
    named = with_name(plain, "try")
    for key in plain.storage.file_keys():
        same = named.storage.path_of(key) == plain.storage.path_of(key)
        assert same == (key in plain.storage.SHARED), key
        assert same or Path("data/runs/try") in named.storage.path_of(key).parents
    assert named.storage.logs == "data/runs/try/logs"
    assert named.providers["embedded"].endpoint_file == "data/runs/try/embedded_server.json"
    assert with_name(named, "try") == named


@pytest.mark.parametrize("name", ["", "a b", "../up", "x.y", "x:y", "-x", "a" * 41])
def test_a_name_that_is_no_folder_and_no_session_is_refused(name: str, project: TinyProject) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        with_name(load_config(CONFIG), name)


def test_a_path_that_two_runs_would_share_is_refused(project: TinyProject) -> None:
    project.write("far.yaml", f"extends: {project.root / CONFIG}\nstorage: {{students: /disk/students}}\n")
    with pytest.raises(InputError, match=r"storage\.students is /disk/students, outside storage\.root"):
        with_name(load_config(Path("far.yaml")), "try")


def test_a_named_run_goes_on_with_its_own_flags(project: TinyProject) -> None:
    first = launch(name="try", limit=2)
    assert first is not None
    Path("data/runs/try/config").symlink_to("logs/latest/config")
    status = list(pipeline.describe_status(with_name(load_config(CONFIG), "try")))
    assert status[0].startswith(f"Run {first.name} of data/runs/try")
    again = pipeline._build_request(pipeline._build_parser().parse_args(["plan", "--name", "try"]))
    assert again.load_settings().input.limit == 2
    other = pipeline._build_request(pipeline._build_parser().parse_args(["plan", "--name", "try", "--limit", "3"]))
    assert other.load_settings().input.limit == 3


def test_the_status_of_each_root_is_its_own(project: TinyProject) -> None:
    project.write("two.yaml", f"extends: {project.root / CONFIG}\nstorage: {{root: data/two}}\n")
    plain = load_config(CONFIG)
    first = launch()
    second = launch(config=Path("two.yaml"))
    logs = Path("logs").resolve()
    assert first is not None
    assert second is not None
    assert [latest_run(logs, root) for root in ("data/processed", "data/two", None)] == [first, second, second]
    assert next(pipeline.describe_status(plain)).startswith(f"Run {first.name}")
    seal_session("data_gen", Path("two.yaml"))
    newest = "\n".join(pipeline.describe_status(plain, any_root=True))
    assert newest.startswith(f"Run {second.name} of data/two")
    assert "canonicalize                3        2" in newest, "with its own settings"
    assert "canonicalize                3" not in "\n".join(pipeline.describe_status(plain))


# Lists and comparisons.


def write_report(root: str, passes: list[bool], name: str = "tiny", gates: str = "g") -> None:
    outcomes = {
        f"s{n}": {"document": f"d{n}", "passes": ok, "nats": 2.0 - ok, "tokens": 1} for n, ok in enumerate(passes)
    }
    shares = [{"passed": n, "total": len(passes), "low": 0.1, "high": 0.9} for n in (0, sum(passes))]
    report = {
        "run_name": name, "created_at": "2026-11-28T10:00:00", "gates_sha256": gates, "outcomes": outcomes,
        "models": {"before": {"gate": shares[0]}, "after": {"gate": shares[1]}},
        "funnel": [{"step": "train", "count": 7}],
    }  # fmt: skip
    path = Path(root) / "evaluation/report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))


def pipeline_command(project: TinyProject, *words: str) -> list[str]:
    args = pipeline._build_parser().parse_args([*words])
    return list(run_list.run_lines(run_list.main_logs(pipeline._load_settings(args))))


def test_runs_lists_each_run_with_its_result(project: TinyProject) -> None:
    assert pipeline_command(project, "runs") == ["Nothing has run yet."]
    launch()
    launch(name="try", limit=2)
    frozen = frozen_config_path(Path("data/runs/try/logs/latest"))
    assert frozen is not None
    seal_session("data_gen", frozen)
    seal_session("filtering", frozen)
    write_report("data/runs/try", [True, False, True])
    _, plain, named = pipeline_command(project, "runs")
    assert plain.split()[0] == "data/processed"
    assert "raw.jsonl, first 2" in named
    assert named.split("first 2")[1].split() == ["2", "0", "of", "3", "2", "of", "3"]


def test_compare_pairs_the_prompts_that_both_answered(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    launch(name="a")
    launch(name="b")
    write_report("data/runs/a", [False] * 12)
    with pytest.raises(InputMissing, match="run b has no evaluation yet"):
        run_list.load_report("b", Path("logs"))
    with pytest.raises(InputMissing, match=r"no run 'c'.*known: a, b"):
        run_list.load_report("c", Path("logs"))
    write_report("data/runs/b", [True] * 10 + [False, False, True])
    reports = tuple(run_list.load_report(name, Path("logs")) for name in "ab")
    text = "\n".join(comparison_lines(("a", "b"), reports))  # type: ignore[arg-type]
    assert "12 held-out prompts were answered by both; differences are b less a." in text
    assert "past the gates: higher: +83.3 points" in text
    assert "loss per token, nats: not compared" in text, "b has measured one more"
    write_report("data/runs/b", [True] * 12, gates="others")
    reports = tuple(run_list.load_report(name, Path("logs")) for name in "ab")
    text = "\n".join(comparison_lines(("a", "b"), reports))  # type: ignore[arg-type]
    assert "not compared, because thresholds, tasks or judges differ" in text
    assert "loss per token, nats: lower: -1" in text


# Two at once, in tmux.


@pytest.fixture
def tmux_project() -> Iterator[TinyProject]:
    root = Path(tempfile.mkdtemp(prefix="nx-"))  # short: tmux sockets need that
    made = TinyProject(root)
    yield made
    made.close()
    shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.alone
def test_two_named_runs_go_on_at_once_and_each_is_stopped_by_its_name(tmux_project: TinyProject) -> None:
    project = tmux_project
    project.does("filtering", "import time\nprint('working', flush=True)\ntime.sleep(60)\n")
    for name in ("a", "b"):
        said = project.launch("--name", name, "--detach", check=0).stdout
        assert f"tmux attach -t {name}/data_gen" in said
    assert {f"{name}/{session}" for name in "ab" for session in SESSIONS} == set(project.sessions())
    runs = {name: project.root / f"data/runs/{name}/logs/latest" for name in "ab"}
    for run in runs.values():
        wait_until((run / "filtering.started").exists, f"{run} filters")
    assert "a run of this project is running" in project.launch("--name", "a", check=75).stdout
    assert "filtering     running" in project.launch("--name", "b", "--status").stdout
    project.launch("--stop", "--name", "a", check=0)
    assert {name.split("/")[0] for name in project.sessions()} == {"b"}
    assert not (runs["b"] / "filtering.exit").exists()
    project.succeeds("filtering")
    project.launch("--name", "a", check=0)
    assert "better than before" in project.launch("--status", "--name", "a").stdout
    project.launch("--stop", check=0)
    assert project.sessions() == []
    kept = {path.name: path.exists() for path in (project.root / "data").glob("*")}
    assert kept == {"runs": True}, "nothing was written outside"
