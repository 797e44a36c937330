"""The inspection room in a real browser: decisions survive everything, hostile text is text."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from nexa_distill import filter_pairs, sample_gate, to_sft
from nexa_distill.annotation import annotations, preferences
from nexa_distill.errors import UsageError
from nexa_distill.inspection.session import require_inside
from nexa_distill.inspection.tab_state import TabState
from nexa_distill.orchestration.frozen_config import freeze_config
from nexa_distill.orchestration.planning import Request
from nexa_distill.orchestration.run_folder import describe_launch, write_plan, write_record
from nexa_distill.storage.manifests import StageRun
from nexa_distill.ui_inspect import load_context
from tests.inspection.test_inspection import compared
from tests.support.answers import answer, project, write_answers
from tests.support.browser import inspector, pages
from tests.support.tiny_model import ROOT, save_config, save_dataset, save_model
from tests.support.workspace import Workspace, workspace
from tests.teacher.ledger_teacher import ledger_teacher

pytestmark = [pytest.mark.slow, pytest.mark.alone]
expect.set_options(timeout=20_000)
HOSTILE = (
    "<script>document.title = 'owned'; fetch('http://evil.test/x')</script>"
    "<img src='http://evil.test/i.png' onerror=\"document.title='owned'\">"
    "![i](http://evil.test/m.png) [click](javascript:document.title='owned') $\\href{http://evil.test}{x}$"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run over 40 prompts, through the gates."""
    folder = tmp_path_factory.mktemp("run")
    with ledger_teacher(folder, fault="html", share=0.2, always=True) as teacher:
        made = workspace(folder, teacher.base_url, input={"limit": 20})
        made.run("scripts/python/data_processing/run_full_data_gen.py")
    config = made.load()
    filter_pairs.run(config)
    sample_gate.run(config)
    to_sft.run(config)
    return made


@pytest.fixture
def page() -> Iterator[Page]:
    with pages() as opened:
        yield opened


def events(path: Path) -> list[annotations.Annotation]:
    return annotations.read(path)


def settled(page: Page) -> None:
    """The page is drawn: no script runs, and keys are listened to."""
    idle = page.locator("[data-testid='stApp'][data-test-script-state='notRunning']")
    expect(idle).to_be_attached()
    expect(page.get_by_role("button", name="Accept")).to_be_visible()
    page.wait_for_timeout(500)


def press(page: Page, key: str) -> None:
    settled(page)
    page.keyboard.press(key)


def decide(page: Page, path: Path, keys: str) -> None:
    """Press each key once the decision before it is shown; it is on disk when it is shown."""
    for key in keys:
        count = len(events(path))
        expect(page.get_by_text(f"{count} decided")).to_be_visible()
        press(page, key)
        expect(page.get_by_text(f"{count + 1} decided")).to_be_visible()
        assert len(events(path)) == count + 1


def test_f32_ten_rows_by_keyboard_a_reload_a_second_tab_and_a_kill_lose_and_double_nothing(
    made: Workspace, page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "annotations.jsonl"
    flags = ("--config", made.config, "--label-path", path, "--annotator", "ann")
    with inspector(tmp_path / "log", *flags, failpoint="event:37") as server:  # 3 hits per save
        page.goto(server.url)
        decide(page, path, "aaxagaaxaa")
        page.reload()
        expect(page.get_by_text("10 decided")).to_be_visible()
        second = page.context.new_page()
        second.goto(server.url)
        press(second, "u")
        decide(second, path, "a")
        press(page, "u")
        expect(page.get_by_text("11 decided")).to_be_visible()
        decide(page, path, "x")
        press(page, "a")
        assert server.killed()
    after_kill = events(path)
    assert [one.action for one in after_kill[:12]] == [
        {"a": "accept", "x": "reject", "g": "regenerate"}[key] for key in "aaxagaaxaa" + "ax"
    ]
    assert len(after_kill) in (12, 13)
    with inspector(tmp_path / "log", *flags) as server:
        page.goto(server.url)
        expect(page.get_by_text(f"{len(after_kill)} decided")).to_be_visible()
        press(page, "u")
        decide(page, path, "a")
    keys = [one.answer_key for one in events(path)]
    assert len(set(keys)) == len(keys) == len(after_kill) + 1


def test_f32_an_edit_a_reason_and_a_disagreement_are_shown(made: Workspace, page: Page, tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    room = load_context(["--config", str(made.config), "--annotator", "bob"])
    key = room.load_answers().key_at(0)
    first = {"sample_id": key[0], "attempt": key[1], "action": "accept", "annotator": "bob"}
    annotations.append(path, annotations.Annotation.model_validate(first))
    flags = ("--config", made.config, "--label-path", path, "--annotator", "ann")
    with inspector(tmp_path / "log", *flags) as server:
        page.goto(server.url)
        page.get_by_placeholder("note (optional)").fill("too *short*")
        page.get_by_placeholder("note (optional)").press("Enter")
        page.get_by_text("Prompt", exact=True).click()
        press(page, "e")
        page.get_by_label("The answer as it should be").fill("Better.")
        page.get_by_text("Save the edit").click()
        expect(page.get_by_text("1 decided")).to_be_visible()
        expect(page.get_by_text("No decision yet.")).to_be_visible()
        press(page, "k")
        expect(page.get_by_text("The annotators disagree.")).to_be_visible()
        expect(page.get_by_text("too *short*")).to_be_visible()
    last = events(path)[-1]
    assert (last.action, last.edited_output, last.note) == ("edit", "Better.", "too *short*")


def test_f32_a_key_that_is_pressed_twice_decides_no_row_twice(made: Workspace, page: Page, tmp_path: Path) -> None:
    """The second press comes while the browser still shows the row of the first one."""
    path = tmp_path / "annotations.jsonl"
    flags = ("--config", made.config, "--label-path", path, "--annotator", "ann")
    with inspector(tmp_path / "log", *flags) as server:
        page.goto(server.url)
        for _ in range(6):
            settled(page)
            page.keyboard.press("a")
            page.keyboard.press("a")
        settled(page)
    keys = [one.answer_key for one in events(path)]
    assert len(keys) >= 6
    assert len(set(keys)) == len(keys)


def test_f32_only_what_was_drawn_last_is_written_and_once() -> None:
    desk, written = TabState(), list[str]()
    desk.mark_drawn("a")
    for name in ("a", "a", "b"):
        desk.commit_once(name, lambda name=name: written.append(name), 7)  # type: ignore[misc]
    desk.mark_drawn("b")
    desk.commit_once("a", lambda: written.append("stale"), 9)
    assert (written, desk.at) == (["a"], 7)


def test_f32_where_writing_fails_the_press_may_be_repeated() -> None:
    desk, written = TabState(), list[str]()
    desk.move_to(3)
    desk.mark_drawn("a")

    def full() -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        desk.commit_once("a", full, 4)
    assert desk.at == 3
    desk.commit_once("a", lambda: written.append("a"), 4)
    assert (written, desk.at) == (["a"], 4)


def test_f38_a_hostile_answer_is_shown_as_text_and_fetches_nothing(tmp_path: Path) -> None:
    project(tmp_path)
    rows = [
        answer(0, HOSTILE, user_prompt=HOSTILE, context=None, domain=HOSTILE, model_id=HOSTILE,
               reasoning_output=HOSTILE),
        answer(1, "x" * 5_000_000),
    ]  # fmt: skip
    src = write_answers(tmp_path / "processed" / "hostile.parquet", rows)
    asked: list[str] = []
    flags = ("--config", tmp_path / "config.yaml", "--src", src)
    with inspector(tmp_path / "log", *flags) as server, pages(asked) as page:
        page.goto(server.url)
        expect(page.locator(".text").first).to_have_text(HOSTILE)
        expect(page.locator(".text").nth(1)).to_have_text(HOSTILE)
        page.wait_for_timeout(1000)
        assert page.title() != "owned"
        assert page.locator("a[href^='javascript'], img[src*='evil']").count() == 0
        press(page, "j")
        expect(page.get_by_text("4,980,000 more characters are not shown")).to_be_visible()
        assert [url for url in asked if not url.startswith((server.url, "data:", "blob:"))] == []


def test_f38_a_file_outside_the_project_is_refused_on_the_page_and_the_server_is_local(
    tmp_path: Path, page: Page
) -> None:
    project(tmp_path)
    src = write_answers(tmp_path / "elsewhere.parquet", [answer()])
    flags = ("--config", tmp_path / "config.yaml", "--src", src)
    with inspector(tmp_path / "log", *flags) as server:
        page.goto(server.url)
        expect(page.get_by_text("--allow-outside")).to_be_visible()
        listening = subprocess.run(
            ["ss", "-ltnH"], capture_output=True, text=True, check=True
        ).stdout  # fmt: skip
        own = [line.split()[3] for line in listening.splitlines() if f":{server.port}" in line]
        assert own == [f"127.0.0.1:{server.port}"]


def test_f38_src_is_allowed_in_the_project_below_the_storage_or_when_it_is_meant(tmp_path: Path) -> None:
    config = project(tmp_path)
    inside = tmp_path / "processed" / "a.parquet"
    assert require_inside(inside, config, outside=False) == inside
    assert require_inside(Path("data/a.parquet"), config, outside=False) == Path("data/a.parquet")
    link = tmp_path / "processed" / "link.parquet"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to("/etc/passwd")
    for other in (link, Path("/etc/passwd"), Path("data/../../a.parquet")):
        with pytest.raises(UsageError, match="--allow-outside"):
            require_inside(other, config, outside=False)
        assert require_inside(other, config, outside=True) == other


def test_every_page_draws_a_run_and_says_what_was_not_run(made: Workspace, page: Page) -> None:
    with inspector(made.folder / "ui.log", "--config", made.config) as server:
        for path, text in (
            ("run", "From prompts to training"), ("compare", "the evaluation was not run"),
        ):  # fmt: skip
            page.goto(f"{server.url}/{path}")
            expect(page.get_by_text(text).first).to_be_visible()
        assert "Traceback" not in server.log.read_text()


def test_a_blind_preference_is_written_once_and_compare_moves_by_keyboard(page: Page, tmp_path: Path) -> None:
    config = compared(tmp_path)
    path = config.storage.path_of("preferences")
    with inspector(tmp_path / "log", "--config", tmp_path / "config.yaml") as server:
        page.goto(f"{server.url}/compare")
        expect(page.get_by_text("Prompt 1 of 2")).to_be_visible()
        page.wait_for_timeout(500)
        page.keyboard.press("j")
        expect(page.get_by_text("Prompt 2 of 2")).to_be_visible()
        page.get_by_text("Blind").click()
        expect(page.get_by_text("0 of 2 compared")).to_be_visible()
        expect(page.get_by_text("Student before training")).to_have_count(0)
        page.get_by_text("Left", exact=True).click()  # away from the switch
        for _ in range(2):
            page.wait_for_timeout(800)
            page.keyboard.press("1")
            page.keyboard.press("1")
        page.wait_for_timeout(800)
        page.keyboard.press("1")  # where an interrupted press was lost
        expect(page.get_by_text("You have compared all of them")).to_be_visible()
        assert "Traceback" not in server.log.read_text()
    found = preferences.read(path)
    assert len(found) == len({one.sample_id for one in found}) == 2


def test_two_runs_stand_side_by_side_on_the_prompts_that_both_answered(page: Page, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    config, other = compared(tmp_path), compared(tmp_path / "second")
    run_dir = Path(config.storage.logs) / "20261128T100000Z-1"
    write_plan(run_dir, [])
    freeze_config(other, run_dir / "config")
    write_record(run_dir, describe_launch(Request(tmp_path / "second/config.yaml"), other))
    with inspector(tmp_path / "log", "--config", tmp_path / "config.yaml") as server:
        page.goto(f"{server.url}/compare")
        page.get_by_label("Beside run").click()
        page.get_by_role("option", name=other.storage.root[-20:]).click()
        expect(page.get_by_text("S0")).to_have_count(2)
        page.get_by_text("Prompt 1 of 2").click()  # out of the field, where letters are letters
        page.wait_for_timeout(500)
        page.keyboard.press("j")
        expect(page.get_by_text("S1")).to_have_count(2)
        assert "Traceback" not in server.log.read_text()


def test_the_training_view_shows_what_is_trained(page: Page, tmp_path: Path) -> None:
    student = save_config(tmp_path / "student.yaml", save_model(tmp_path / "model"))
    config = project(tmp_path, student=str(student))
    path = config.storage.path_of("sft_parquet")
    path.parent.mkdir(parents=True)
    save_dataset(path, train=2, val=1)
    StageRun("packaging", config.storage, inputs=[], settings={}).seal_output(path, rows_in=3, rejected=0)
    with inspector(tmp_path / "log", "--config", tmp_path / "config.yaml") as server:
        page.goto(f"{server.url}/training")
        expect(page.get_by_text("Sample 1 of 3")).to_be_visible(timeout=60_000)
        trained = page.locator("span.trained")
        expect(trained.first).to_be_visible(timeout=60_000)
        assert "".join(trained.all_inner_texts()).endswith("<|im_end|>")
        page.wait_for_timeout(500)
        page.keyboard.press("j")
        expect(page.get_by_text("Sample 2 of 3")).to_be_visible()
        assert "Traceback" not in server.log.read_text()


def test_without_chromium_the_tests_say_so_and_under_ci_they_fail(tmp_path: Path) -> None:
    """In a process whose PATH has no browser."""
    file = tmp_path / "test_page.py"
    file.write_text(
        "from tests.support.browser import pages\n\n\n"
        "def test_page():\n    with pages():\n        raise AssertionError\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(file)]
    for ci, code in (("", 0), ("true", 1)):
        env = os.environ | {"PATH": str(tmp_path), "CI": ci}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout
        assert "apt-get install chromium" in done.stdout


def test_a_bad_flag_is_an_instruction() -> None:
    with pytest.raises(UsageError, match="flags follow `--`"):
        load_context(["--srcc", "x"])
