"""The launcher's window: what a line shows, on a terminal and in a file."""

import io
import os
import time
from pathlib import Path

import pytest

from nexa_distill.console.progress import Progress
from nexa_distill.orchestration.planning import Step
from nexa_distill.orchestration.run_folder import RunRecord, SessionState, read_session, write_plan, write_record
from nexa_distill.orchestration.window import Window, run_line, session_line, usual_seconds, wrap_lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def state(name: str, word: str, code: int | None = None, **rows: object) -> SessionState:
    return SessionState(name, word, code, 0.0 if word == "waiting" else 60.0, **rows)  # type: ignore[arg-type]


RUNNING = state("filtering", "running", step="rules", done=30, total=120, rate=1.0)
STATES = [state("teacher", "done", 0), state("data_gen", "done", 0), RUNNING, state("regeneration", "waiting")]


def test_columns_stand_under_each_other() -> None:
    lines = [session_line(one) for one in STATES]
    assert {line.index(one.state) for line, one in zip(lines, STATES, strict=True)} == {14}
    assert lines[2].split()[-3:] == ["about", "1:30", "left"]
    assert "━━━━┄┄┄┄┄┄┄┄┄┄┄┄" in lines[2]


def test_a_rate_of_nothing_is_not_shown() -> None:
    line = session_line(state("evaluation", "running", step="answers", done=0, total=16, note="token 3 of 9"))
    assert "0.0/s" not in line
    assert line.endswith("token 3 of 9")


@pytest.mark.parametrize(
    ("usual", "says"),
    [
        ({}, "Step 2 of 3 · 4:12"),  # of a step that waits nothing is known
        ({"regeneration": 100.0}, "Step 2 of 3 · 4:12 · about 3:10 left"),
        ({"regeneration": 100.0, "filtering": 300.0}, "Step 2 of 3 · 4:12 · about 5:40 left"),
    ],
)
def test_the_whole_is_estimated_when_every_step_can_be(usual: dict[str, float], says: str) -> None:
    assert run_line(STATES, 252, usual) == says


def test_the_step_is_the_one_that_runs_also_when_a_later_one_has_failed() -> None:
    failed = [state("data_gen", "running"), state("filtering", "failed 65", 65), state("packaging", "not started", 75)]
    assert run_line(failed, 252, {}).startswith("Step 1 of 3")


def test_a_terminal_is_drawn_over_and_cut_at_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    shown = Window(out, time.time(), {})
    shown.show_states(STATES)
    assert "\x1b[36m" in out.getvalue(), "what runs has a colour"
    assert "\x1b[5A" not in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out.truncate(0)
    shown.show_states(STATES)
    assert out.getvalue().lstrip("\0").startswith("\x1b[5A")
    lines = out.getvalue().replace("\x1b[2K", "").splitlines()[1:]
    assert "\x1b[3" not in "".join(lines)
    assert max(map(len, lines)) <= 39


def test_a_file_gets_a_line_per_change_and_one_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = io.StringIO()
    shown = Window(out, time.time(), {})
    for seconds, lines in ((0, 3), (29, 3), (31, 4), (40, 4), (62, 5)):
        now[0] = 1000.0 + seconds
        shown.show_states(STATES)
        assert len(out.getvalue().splitlines()) == lines, seconds
    assert "\x1b" not in out.getvalue()


def test_long_lines_are_cut_at_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    line = "the answers of the student are longer (difference 3)"
    assert list(wrap_lines([line, "short"], io.StringIO())) == [line, "short"]
    cut = list(wrap_lines([line, "short"], Terminal()))
    assert [word for part in cut for word in part.split()] == [*line.split(), "short"]
    assert max(map(len, cut)) <= 29


def test_the_usual_seconds_are_of_older_runs_of_the_same_files_that_ended_well(tmp_path: Path) -> None:
    for number, root, code in ((1, "a", 0), (2, "a", 1), (3, "b", 0), (4, "a", 0)):
        run = tmp_path / f"2026112{number}T100000Z-1"
        write_plan(run, [Step("filtering", True, "", ["true"])])
        write_record(run, RunRecord(None, root, "c.yaml", "raw", None, "2026"))
        (run / "filtering.started").touch()
        (run / "filtering.seconds").write_text(f"{number * 10}\n")
        (run / "filtering.exit").write_text(f"{code}\n")
    assert usual_seconds(tmp_path / "20261124T100000Z-1") == {"filtering": 10.0}
    os.utime(tmp_path / "20261121T100000Z-1/filtering.started", (1, 1))  # a copied folder has other times
    assert read_session(tmp_path / "20261121T100000Z-1", "filtering").elapsed == 10


def test_rows_of_earlier_runs_are_in_no_rate_and_a_log_has_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXA_PROGRESS_FILE", str(tmp_path / "data_gen.progress"))
    with Progress("teacher", 128) as progress:
        progress.skip_rows(74)
    kept = (tmp_path / "data_gen.progress").read_text()
    assert '"done": 74' in kept
    assert '"rate": 0.0' in kept
    said = capsys.readouterr().err
    assert "teacher: 74 of 128 rows" in said
    assert "\r" not in said
