"""The launcher with a real tmux, real signals and tiny stages. F4, F6, F10, F12 of the faults."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexa_distill.orchestration.planning import Step
from nexa_distill.orchestration.run_folder import write_plan
from nexa_distill.orchestration.stages import SESSIONS
from tests.support.tiny_project import ROOT, TinyProject, wait_until

RUN_STAGE = ROOT / "scripts/shell/orchestration/run_stage.sh"
pytestmark = [pytest.mark.slow, pytest.mark.alone]
QUIET = "print('ran')\n"
WAITS = "import time\nprint('working', flush=True)\ntime.sleep(60)\n"


@pytest.fixture
def project() -> Iterator[TinyProject]:
    """A project whose stages end at once; its path is short because sockets need that."""
    root = Path(tempfile.mkdtemp(prefix="nx-"))
    made = TinyProject(root)
    for session in SESSIONS:
        made.does(session, QUIET)
    yield made
    made.close()
    shutil.rmtree(root)


def started(project: TinyProject, session: str) -> bool:
    return (project.root / "logs/latest" / f"{session}.started").exists() and ("working" in project.log(session))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def run_stage(run_dir: Path, session: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(RUN_STAGE), session, str(run_dir)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=False,
    )  # fmt: skip


# One session, by itself.


def test_f12_the_exit_code_is_the_commands_own_and_the_log_is_complete(tmp_path: Path) -> None:
    command = ["bash", "-c", "seq 20000; echo to stderr >&2; exit 65"]
    write_plan(tmp_path / "run", [Step("filtering", True, "", command)])
    done = run_stage(tmp_path / "run", "filtering")
    log = (tmp_path / "run/filtering.log").read_text().splitlines()
    assert done.returncode == 65
    assert (tmp_path / "run/filtering.exit").read_text() == "65\n"
    assert log[:20001] == [*(str(n) for n in range(1, 20001)), "to stderr"]
    assert "filtering failed with code 65" in log[-1]


def test_f6_a_log_on_a_full_disk_neither_stops_nor_fails_the_stage(tmp_path: Path) -> None:
    command = ["bash", "-c", f"set -e; seq 50000; touch {tmp_path}/finished"]
    write_plan(tmp_path / "run", [Step("filtering", True, "", command)])
    (tmp_path / "run/filtering.log").symlink_to("/dev/full")
    assert run_stage(tmp_path / "run", "filtering").returncode == 0
    assert (tmp_path / "finished").exists()
    assert (tmp_path / "run/filtering.exit").read_text() == "0\n"


def test_words_of_a_command_arrive_as_they_are(tmp_path: Path) -> None:
    words = ["two words", "", "a\nline", "$(touch x)", "semi;", "'\"*"]
    write_plan(tmp_path / "run", [Step("a", True, "", ["true"]),
                                  Step("b", True, "", ["printf", "<%s>", *words])])  # fmt: skip
    assert "".join(f"<{word}>" for word in words) in run_stage(tmp_path / "run", "b").stdout


def test_a_stage_gets_its_run_id_and_progress_file_and_unbuffered_output(tmp_path: Path) -> None:
    shown = "echo $NEXA_RUN_ID $NEXA_PROGRESS_FILE $PYTHONUNBUFFERED ${PATH%%:*}"
    write_plan(tmp_path / "run", [Step("a", True, "", ["bash", "-c", shown])])
    run = tmp_path / "run"
    assert f"run {run}/a.progress 1 {ROOT}/.venv/bin" in run_stage(run, "a").stdout


def test_a_stage_after_a_killed_wrapper_is_not_started(tmp_path: Path) -> None:
    steps = [Step("a", True, "", ["true"]), Step("b", True, "", ["true"], after="a")]
    write_plan(tmp_path / "run", steps)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "run/a.pid").write_text(str(gone.pid))
    done = run_stage(tmp_path / "run", "b")
    assert done.returncode == 75
    assert f"a ended with code 137; its log: {tmp_path}/run/a.log" in done.stdout


def test_a_stage_waits_for_the_file_of_its_server_and_not_for_an_older_one(tmp_path: Path) -> None:
    ready = tmp_path / "endpoint"
    ready.write_text("of the run before")
    os.utime(ready, (1, 1))
    server = Step("s", True, "", ["bash", "-c", f"sleep 1; echo new >{ready}; sleep 2"])
    user = Step("u", True, "", ["cat", str(ready)], ready_by="s", ready_file=str(ready))
    write_plan(tmp_path / "run", [server, user])
    with subprocess.Popen(["bash", str(RUN_STAGE), "s", str(tmp_path / "run")]) as running:
        wait_until((tmp_path / "run/s.pid").exists, "the server's pid")
        done = run_stage(tmp_path / "run", "u")
        assert running.poll() is None
    assert (done.returncode, "new" in done.stdout) == (0, True)


# The whole, in tmux.


def test_a_failing_stage_stops_those_after_it_and_the_launcher_says_where(project: TinyProject) -> None:
    project.does("filtering", "import sys\nsys.exit('error: column text is missing')\n")
    done = project.launch(check=1)
    assert [project.exit_code(s) for s in ("data_gen", "filtering", "packaging", "evaluation")] == [
        0, 1, 75, 75,
    ]  # fmt: skip
    assert f"filtering ended with code 1; its log: logs/{project.run_dir.name}/filtering.log" in (done.stdout)
    assert "error: column text is missing" in done.stdout
    assert "packaging ended" not in done.stdout
    said = project.log("regeneration")
    assert "regeneration is not started: filtering ended with code 1" in said
    said = project.log("packaging")
    assert "packaging is not started: regeneration ended with code 75" in said


def test_the_pane_of_a_stage_that_ends_at_once_stays_and_is_replaced_by_the_next_launch(project: TinyProject) -> None:
    for _ in range(2):
        project.launch("--only", "filtering", check=0)
        pane = project.tmux("capture-pane", "-p", "-S", "-", "-t", "=filtering:")
        assert "ran" in pane
        assert "filtering is done" in pane
    assert project.sessions() == ["filtering"]
    assert len(project.runs()) == 2
    assert project.tmux("display-message", "-p", "-t", "=filtering:", "#{@nexa_run}").strip() == (str(project.run_dir))


def test_f10_a_second_launch_is_refused_and_stop_ends_only_our_sessions(project: TinyProject) -> None:
    project.tmux("new-session", "-d", "-s", "training_eval", "sleep 60")
    project.does("data_gen", WAITS)
    done = project.launch("--detach", check=0)
    assert "tmux attach -t data_gen" in done.stdout
    wait_until(lambda: started(project, "data_gen"), "data_gen works")
    again = project.launch(check=75)
    assert "data_gen, filtering" in again.stdout
    assert "--status` shows it" in again.stdout
    assert "--stop` stops it" in again.stdout
    assert len(project.runs()) == 1
    assert "data_gen      running" in project.launch("--status").stdout
    stage = stage_pid(project, "data_gen")
    stopped = project.launch("--stop", check=0)
    assert "Stopped 6 running sessions" in stopped.stdout
    assert project.sessions() == ["training_eval"]
    assert {project.exit_code(s) for s in ("data_gen", "filtering", "evaluation")} == {143}
    assert not is_running(stage)
    assert "data_gen      stopped" in project.launch("--status").stdout


def test_only_inspect_starts_the_inspection_room_on_this_machine_and_stop_ends_it(project: TinyProject) -> None:
    (project.root / "nexa_distill").symlink_to(ROOT / "nexa_distill")
    done = project.launch("--only", "inspect", "--detach", check=0)
    assert "tmux attach -t inspect" in done.stdout
    assert project.sessions() == ["inspect"]
    address = re.compile(r"http://127\.0\.0\.1:\d+")
    log = project.run_dir / "inspect.log"
    wait_until(lambda: log.exists() and address.search(log.read_text()), "an address", 60)
    found = address.search(log.read_text())
    assert found
    with urllib.request.urlopen(f"{found[0]}/_stcore/health", timeout=30) as answer:  # noqa: S310
        assert answer.status == 200
    project.launch("--stop", check=0)
    assert project.exit_code("inspect") == 143
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{found[0]}/_stcore/health", timeout=5)  # noqa: S310


def stage_pid(project: TinyProject, session: str) -> int:
    """The pid of the wrapper's python child."""
    ps = ["ps", "-o", "pid=,args=", "--ppid", str(project.pid(session))]
    lines = subprocess.run(ps, capture_output=True, text=True, check=True).stdout.splitlines()
    (pid,) = [int(line.split()[0]) for line in lines if "scripts/python" in line]
    return pid


def test_a_foreign_session_of_the_same_name_is_refused_and_left_alone(project: TinyProject) -> None:
    project.tmux("new-session", "-d", "-s", "packaging", "sleep 60")
    done = project.launch(check=75)
    assert "a tmux session named packaging exists and is not the pipeline's" in done.stdout
    assert "tmux attach -t '=packaging'" in done.stdout
    assert project.sessions() == ["packaging"]
    assert project.runs() == []


def test_a_session_whose_name_begins_like_ours_is_neither_a_clash_nor_stopped(project: TinyProject) -> None:
    project.tmux("new-session", "-d", "-s", "training_eval", "sleep 60")
    project.launch("--only", "training", check=0)
    assert project.sessions() == ["training", "training_eval"]
    project.launch("--stop", check=0)
    assert project.sessions() == ["training_eval"]


def test_f4_ctrl_c_leaves_the_sessions_running_and_says_how_to_come_back(project: TinyProject) -> None:
    project.does("data_gen", WAITS)
    launcher = project.start()
    wait_until(lambda: started(project, "data_gen"), "data_gen works")
    wait_until(lambda: project.sessions().count("evaluation"), "all sessions")
    time.sleep(1)
    os.killpg(launcher.pid, signal.SIGINT)
    said, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert "tmux attach -t data_gen" in said
    assert "--status" in said
    assert project.exit_code("data_gen") is None
    assert is_running(project.pid("data_gen"))
    assert is_running(stage_pid(project, "data_gen"))


def test_f4_ctrl_c_in_a_pane_stops_the_stage_and_what_it_started(project: TinyProject) -> None:
    child = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\nprint(child.pid)\n"
    project.does("filtering", child + WAITS)
    project.launch("--only", "filtering", "--detach", check=0)
    wait_until(lambda: started(project, "filtering"), "filtering works")
    grandchild = int(project.log("filtering").split()[0])
    project.tmux("send-keys", "-t", "=filtering:", "C-c")
    project.tmux("send-keys", "-t", "=filtering:", "C-c")
    wait_until(lambda: project.exit_code("filtering") == 130, "exit 130")
    assert not is_running(grandchild)


def test_f4_a_closed_session_is_a_stopped_stage_with_code_129(project: TinyProject) -> None:
    project.does("filtering", WAITS)
    project.launch("--only", "filtering", "--detach", check=0)
    wait_until(lambda: started(project, "filtering"), "filtering works")
    stage = stage_pid(project, "filtering")
    project.tmux("kill-session", "-t", "=filtering")
    wait_until(lambda: project.exit_code("filtering") == 129, "exit 129")
    wait_until(lambda: not is_running(stage), "the stage has ended")


def test_f12_a_killed_stage_fails_the_run_with_137(project: TinyProject) -> None:
    project.does("filtering", "import os\nos.kill(os.getpid(), 9)\n")
    done = project.launch(check=137)
    assert project.exit_code("filtering") == 137
    assert project.exit_code("packaging") == 75
    assert "filtering ended with code 137" in done.stdout


def test_f12_a_killed_wrapper_is_noticed_and_does_not_block_the_next_launch(project: TinyProject) -> None:
    """The stage ignores the hang-up, so that something is left to clean up."""
    project.does("filtering", "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + WAITS)
    launcher = project.start()
    wait_until(lambda: started(project, "filtering"), "filtering works")
    left = stage_pid(project, "filtering")
    os.kill(project.pid("filtering"), signal.SIGKILL)
    said, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 137, said
    assert project.exit_code("packaging") == 75
    assert is_running(left)
    project.does("filtering", QUIET)
    project.launch(check=0)
    assert not is_running(left)


def test_what_stood_before_a_failure_is_not_done_again(project: TinyProject) -> None:
    project.succeeds("data_gen")
    project.does("filtering", "import sys\nsys.exit(3)\n")
    project.launch(check=3)
    project.does("filtering", QUIET)
    done = project.launch(check=0)
    assert "data_gen     skip  up to date" in done.stdout
    assert not (project.run_dir / "data_gen.exit").exists()
    assert project.exit_code("evaluation") == 0


def test_one_command_runs_everything_and_the_next_one_nothing() -> None:
    root = Path(tempfile.mkdtemp(prefix="nx-"))
    project = TinyProject(root, provider="embedded")
    try:
        done = project.launch(check=0)
        names = ["teacher", *SESSIONS]
        assert sorted(project.sessions()) == sorted(names)
        assert {name: project.exit_code(name) for name in names} == dict.fromkeys(names, 0)
        assert "better than before" in done.stdout
        assert not (root / "data/processed/distillation/embedded_teacher.json").exists()
        before = time.monotonic()
        again = project.launch(check=0)
        assert time.monotonic() - before < 15
        assert again.stdout.count("up to date") == 6
        assert len(project.runs()) == 1
    finally:
        project.close()
        shutil.rmtree(root)


def test_a_teacher_that_does_not_start_stops_data_gen_and_is_named() -> None:
    root = Path(tempfile.mkdtemp(prefix="nx-"))
    project = TinyProject(root, provider="embedded")
    try:
        project.write("teacher.py", "import sys\nsys.exit(69)\n")
        done = project.launch(check=69)
        assert project.exit_code("data_gen") not in (0, None)
        assert "teacher ended with code 69; its log: " in done.stdout
    finally:
        project.close()
        shutil.rmtree(root)


# Without tmux, and the small options.


def path_without_tmux(folder: Path) -> str:
    folder.mkdir()
    for name in ("bash", "dirname", "basename", "mkdir", "rm", "ln", "cat", "tee", "mv", "sleep"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return str(folder)


def test_without_tmux_the_launcher_says_how_to_install_it_and_offers_no_tmux(project: TinyProject) -> None:
    project.env["PATH"] = path_without_tmux(project.root / "bin")
    done = project.launch(check=69)
    assert "apt-get install tmux" in done.stdout
    assert "--no-tmux" in done.stdout


def test_no_tmux_runs_the_same_stages_in_order_with_the_same_files(project: TinyProject) -> None:
    project.env["PATH"] = path_without_tmux(project.root / "bin") + ":/bin-that-is-not-there"
    project.does("packaging", "import sys\nsys.exit(65)\n")
    done = project.launch("--no-tmux", check=65)
    codes = [project.exit_code(s) for s in ("data_gen", "filtering", "packaging", "training")]
    assert codes == [0, 0, 65, 75]
    assert "ran" in done.stdout
    assert "ran" in project.log("filtering")


def test_no_tmux_starts_and_ends_the_teacher_beside_data_gen() -> None:
    root = Path(tempfile.mkdtemp(prefix="nx-"))
    project = TinyProject(root, provider="embedded")
    try:
        for session in ("filtering", "regeneration", "packaging", "training", "evaluation"):
            project.does(session, QUIET)
        project.launch("--no-tmux", check=0)
        assert (project.exit_code("teacher"), project.exit_code("data_gen")) == (0, 0)
        assert (project.run_dir / "teacher.started").exists()
        assert project.sessions() == []
    finally:
        project.close()
        shutil.rmtree(root)


@pytest.mark.parametrize("options", [(), ("--no-tmux",)])
def test_a_teacher_that_nobody_asks_is_not_started(options: tuple[str, ...]) -> None:
    root = Path(tempfile.mkdtemp(prefix="nx-"))
    project = TinyProject(root, provider="embedded")
    try:
        for session in SESSIONS:
            project.does(session, QUIET)
        done = project.launch(*options, check=0)
        assert "teacher is not needed: data_gen is done" in project.log("teacher")
        assert not (project.run_dir / "teacher.started").exists()
        assert "teacher       not needed" in project.launch("--status").stdout
        assert "error" not in done.stdout
    finally:
        project.close()
        shutil.rmtree(root)


def test_f4_no_tmux_stops_on_ctrl_c_with_130_and_leaves_nothing_behind(project: TinyProject) -> None:
    project.does("data_gen", WAITS)
    launcher = project.start("--no-tmux")
    wait_until(lambda: started(project, "data_gen"), "data_gen works")
    stage = stage_pid(project, "data_gen")
    refused = project.launch("--no-tmux", check=75)
    assert "is running: data_gen" in refused.stdout
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert (project.exit_code("data_gen"), project.exit_code("filtering")) == (130, 75)
    assert not is_running(stage)


def test_dry_run_shows_what_would_run_and_starts_nothing(project: TinyProject) -> None:
    done = project.launch("--dry-run", "--limit", "3", "--from", "dedup", check=0)
    assert "data_gen     run   no output yet" in done.stdout
    assert "run_full_data_gen.py --config configs/distill_config.yaml --limit 3" in done.stdout
    assert not (project.root / "logs").exists()
    assert project.sessions() == []


def test_status_answers_when_nothing_has_run(project: TinyProject) -> None:
    done = project.launch("--status", check=0)
    assert "Nothing has run yet" in done.stdout
    shutil.rmtree(project.root / ".venv")
    assert "Nothing has run yet" in project.launch("--status", check=0).stdout


def test_stop_answers_when_nothing_runs(project: TinyProject) -> None:
    assert "Stopped 0 running sessions" in project.launch("--stop", check=0).stdout


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--help"], 0, "--provider NAME"),
        (["--frm"], 2, "unknown option --frm"),
        (["--limit"], 2, "--limit needs a value"),
        (["--limit", "many"], 2, "error: --limit many: expected a whole number"),
        (["--limit", "0"], 2, "--limit 0: expected a whole number of at least 1"),
        (["filtering"], 2, "unexpected word filtering; a stage is named by --only filtering"),
        (["--name", "a b"], 2, "up to 40 letters, digits"),
        (["--only", "trainig"], 2, 'did you mean "training"?'),
        (["--from", "train", "--only", "train"], 2, "exclude each other"),
        (["--detach", "--no-tmux"], 2, "--detach needs tmux"),
        (["--input", "nowhere.jsonl"], 66, "nowhere.jsonl: no such input"),
        (["--provider", "olama"], 65, 'did you mean "ollama"?'),
        (["--status", "--config", "bad.yaml"], 66, "bad.yaml: no such configuration file"),
        (["--dry-run", "--config", "bad.yaml"], 66, "bad.yaml: no such configuration file"),
    ],
)
def test_options_are_explained_before_anything_starts(
    project: TinyProject, options: list[str], code: int, says: str
) -> None:
    done = project.launch(*options, check=code)
    assert says in done.stdout
    assert project.sessions() == []
    assert not (project.root / "logs").exists()


def test_paths_are_meant_from_the_folder_where_they_are_typed(project: TinyProject) -> None:
    away = project.root / "away"
    away.mkdir()
    (away / "mine.jsonl").write_text("{}\n")
    done = subprocess.run(
        ["bash", "../launch_pipeline.sh", "--dry-run", "--input", "mine.jsonl"],
        cwd=away, env=project.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"--input {away}/mine.jsonl" in done.stdout
