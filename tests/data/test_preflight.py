import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

from nexa_distill.contracts import SFT
from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train import preflight, train_sft
from nexa_train.data.chat_format import FAULTS
from nexa_train.data.chat_tokenization import IGNORE, Sample
from nexa_train.data.row_checks import CHECK_OF_FAULT, CHECKS, CheckFailed, RowChecker
from nexa_train.models import bundled
from nexa_train.reports import preflight_text
from tests import warm
from tests.data.test_chat_tokenization import ASK, BROKEN, SAY, THINK
from tests.support.tiny_model import ROOT, save_config, save_dataset, save_model, tokenizer

Messages = list[dict[str, str]]


class Student:
    """A tiny student, its rows and its settings in one folder, and the commands on it."""

    def __init__(self, folder: Path, rows: list[Messages] | None = None, **train: Any) -> None:
        self.folder, self.model = folder, save_model(folder / "model")
        self.dataset = save_dataset(folder / "sft.parquet")
        if rows is not None:
            self.write(rows)
        self.config = save_config(folder / "student.yaml", self.model, **train)
        self.pipeline = folder / "pipeline.yaml"
        base = ROOT / "configs/distill_config.yaml"
        self.pipeline.write_text(f"extends: {base}\nstorage: {{root: {folder / 'data'}}}\n")

    def write(self, rows: list[Messages]) -> None:
        made = [
            {"sample_id": f"row-{i}", "split": "train", "messages": messages, "attempt": 0,
             "template_name": "hypothesis", "domain": "test", "model_id": "m"}
            for i, messages in enumerate(rows)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(made, SFT), self.dataset)

    def save(self, tok: Any) -> None:
        """Give the student another tokenizer, as files."""
        for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
            (self.model / name).unlink()
        tok.save_pretrained(self.model)
        file = self.model / "tokenizer_config.json"
        more = {"split_special_tokens": getattr(tok, "split_special_tokens", False)}
        file.write_text(json.dumps(json.loads(file.read_text()) | more))

    def command(self, module: str, *more: str) -> list[str]:
        return [warm.python(), "-m", module, "--config", str(self.config), "--dataset",
                str(self.dataset), "--pipeline-config", str(self.pipeline), *more]  # fmt: skip

    def preflight(self, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
        """The command, in this process."""
        monkeypatch.setattr(sys, "argv", self.command("nexa_train.preflight", *more)[2:])
        preflight.main()
        return self.report()

    @property
    def page(self) -> Path:
        return self.folder / "data/reports/training/preflight.html"

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.page.with_suffix(".json").read_text())
        return found


def outcomes(report: dict[str, Any]) -> dict[str, bool | None]:
    return {check["check"]: check["ok"] for check in report["checks"]}


def long_answer(words: int) -> Messages:
    return [ASK, {"role": "assistant", "content": "word " * words}]


@pytest.mark.parametrize(("tok", "reason"), [case for case in BROKEN if case[1] != "no_offsets"])
def test_f41_the_command_refuses_each_broken_tokenizer_with_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tok: Any, reason: str
) -> None:
    student = Student(tmp_path, [[ASK, SAY]])
    student.save(tok)
    with pytest.raises(CheckFailed) as refused:
        student.preflight(monkeypatch)
    assert refused.value.exit_code == 65
    assert FAULTS[reason] in str(refused.value)
    failed = student.report()["failed"]
    assert failed["check"] == CHECK_OF_FAULT[reason]
    assert FAULTS[reason] in failed["found"]
    assert CHECKS[failed["check"]] == failed["expected"]
    assert outcomes(student.report())[CHECK_OF_FAULT[reason]] is False


def test_every_fault_belongs_to_a_check() -> None:
    assert set(CHECK_OF_FAULT) == set(FAULTS)
    assert set(CHECK_OF_FAULT.values()) <= set(CHECKS)


def test_f41_training_does_not_begin_when_the_preflight_fails(tmp_path: Path) -> None:
    student = Student(tmp_path)
    (student.model / "chat_template.jinja").write_text("{{ messages[-1]['content'] | upper }}")
    command = ["bash", "scripts/shell/training/run_training.sh", str(student.config), "false"]
    flags = student.command("")[5:] + ["--output", str(tmp_path / "out")]
    done = subprocess.run(command + flags, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 65, done.stderr
    assert "error: preflight, " in done.stderr
    assert "changes the words of an answer" in done.stderr
    assert not list((tmp_path / "out").glob("*/*.safetensors"))
    assert student.report()["failed"]["check"] == "recoverable"


# A defect in the masks themselves, which `encode` would have to have: each check sees it.


def whole_row(sample: Sample) -> Sample:
    return replace(sample, labels=list(sample.input_ids))


def without_end(sample: Sample) -> Sample:
    return replace(sample, labels=[IGNORE if label == 2 else label for label in sample.labels])


def unlabelled(sample: Sample) -> Sample:
    return replace(sample, labels=[IGNORE] * len(sample.labels))


def shifted(sample: Sample) -> Sample:
    return replace(sample, labels=[*sample.labels[1:], IGNORE])


def second_bos(sample: Sample) -> Sample:
    return Sample(sample.sample_id, [1, *sample.input_ids], [IGNORE, *sample.labels])


def bos_inside(sample: Sample) -> Sample:
    ids, labels = sample.input_ids, sample.labels
    return Sample(sample.sample_id, [*ids[:9], 1, *ids[9:]], [*labels[:9], IGNORE, *labels[9:]])


def another_prompt(sample: Sample) -> Sample:
    return replace(sample, input_ids=[1, 99, *sample.input_ids[2:]])


def other_words(sample: Sample) -> Sample:
    return replace(sample, labels=[10 if label > 2 else label for label in sample.labels])


def cut_before_the_answer(sample: Sample) -> Sample:
    end = next(i for i, label in enumerate(sample.labels) if label != IGNORE)
    return Sample(sample.sample_id, sample.input_ids[1:], sample.labels[1:][: end + 99])


def other_answer_token(sample: Sample) -> Sample:
    """As where the answer is tokenised apart: other tokens of the same text."""
    ids, at = list(sample.input_ids), len(sample.input_ids) - 2
    return replace(sample, input_ids=[*ids[:at], 99, *ids[at + 1 :]])


def token_without_embedding(sample: Sample) -> Sample:
    return replace(sample, input_ids=[300, *sample.input_ids[1:]])


# What the code that makes masks might do wrong, the checks that find it, and a sentence for the
# documents (tests/proofs.py).
DEFECTS: list[tuple[Callable[[Sample], Sample], tuple[str, ...], str]] = [
    (whole_row, ("template_equal", "end_of_turn"), "The loss is on the whole conversation."),
    (cut_before_the_answer, ("template_equal",), "The first token of the row is lost."),
    (another_prompt, ("template_equal",), "The prompt of a row is another than inference reads."),
    (other_answer_token, ("template_equal",), "The answer is tokenised apart from its prompt."),
    (without_end, ("end_of_turn",), "The end of turn is not in the loss."),
    (unlabelled, ("labelled", "thinking_kept"), "A row has no token in the loss."),
    (shifted, ("labelled",), "The labels are shifted by one token."),
    (second_bos, ("one_bos",), "A second BOS token at the beginning."),
    (bos_inside, ("one_bos",), "A BOS token inside the row."),
    (other_words, ("recoverable", "thinking_kept"), "The labels are other words than the answer."),
    (token_without_embedding, ("in_vocabulary",), "A token id that the model has no embedding for."),
]


@pytest.mark.parametrize(("defect", "checks", "_sentence"), DEFECTS)
def test_f41_a_defect_in_the_masks_is_seen(
    defect: Callable[[Sample], Sample], checks: tuple[str, ...], _sentence: str
) -> None:
    examination = RowChecker(tokenizer(), None, embeddings=300)
    made = examination.check_row("train", "s", [ASK, THINK])
    assert isinstance(made, Sample)
    for check in checks:
        assert examination.checks[check](made, [ASK, THINK]) == ""
        assert examination.checks[check](defect(made), [ASK, THINK])


def test_f41_a_row_that_a_check_refuses_stops_the_examination() -> None:
    examination = RowChecker(tokenizer(), None)
    examination.check_row("train", "before", [ASK, SAY])
    examination.checks["labelled"] = lambda _made, _messages: "a finding"
    with pytest.raises(CheckFailed, match="labelled: found in sample s: a finding; expected: each"):
        examination.check_row("train", "s", [ASK, SAY])
    assert examination.to_record()["failed"]["sample_id"] == "s"
    asked = outcomes(examination.to_record())
    assert asked.pop("labelled") is False
    assert set(asked.values()) == {None}, "what was not asked of all rows is no pass"


# Lengths.


def test_max_length_is_chosen_so_that_nothing_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student(tmp_path, [long_answer(n) for n in range(1, 61)], max_length=None)
    report = student.preflight(monkeypatch)
    most = report["tokens_per_row"]["max"]
    assert report["max_length"] - 64 < most <= report["max_length"]
    assert report["max_length"] % 64 == 0
    assert report["max_length_from"] == "the rows"
    assert report["trained_on"] == {"train": 60}
    assert report["refused"] == {}


def test_max_length_from_the_rows_is_bounded_by_what_the_model_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [long_answer(2), long_answer(2000)]
    student = Student(tmp_path, rows, max_length=None, max_refused_share=0.5)
    report = student.preflight(monkeypatch)
    assert report["context"] == 4096 < report["tokens_per_row"]["max"]
    assert report["refused"] == {"over_max_length": 1}


def test_f41_a_longer_max_length_than_the_model_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student(tmp_path, max_length=4097)
    with pytest.raises(CheckFailed, match=r"not_cut.*4097.*at most 4096 tokens"):
        student.preflight(monkeypatch)


@pytest.mark.parametrize(("allowed", "passes"), [(0.25, True), (0.24, False)])
def test_f41_too_many_refused_rows_stop_the_training_and_none_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: float, passes: bool
) -> None:
    rows = [*(long_answer(2) for _ in range(3)), long_answer(100)]
    student = Student(tmp_path, rows, max_length=256, max_refused_share=allowed)
    if passes:
        assert student.preflight(monkeypatch)["trained_on"] == {"train": 3}
    else:
        with pytest.raises(CheckFailed, match=r"1 of 4 rows refused \(25.0%\).*over_max_length 1"):
            student.preflight(monkeypatch)
        assert outcomes(student.report())["few_refused"] is False
        assert outcomes(student.report())["recoverable"] is True, "it was asked of every row"
    report = student.report()
    assert report["refused"] == {"over_max_length": 1}
    assert report["rows"] == sum(report["trained_on"].values()) + sum(report["refused"].values())
    assert report["tokens_per_row"]["max"] > 256, "what was refused is among the lengths"


def test_f41_an_empty_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no sample to train on"):
        Student(tmp_path, []).preflight(monkeypatch)


# What is trained on is what was shown.


def test_the_rows_that_were_looked_at_are_those_that_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student(tmp_path, epochs=1)
    before = student.preflight(monkeypatch)
    storage, out = load_config(student.pipeline).storage, tmp_path / "out"
    train_sft.run(load_yaml(student.config, StudentConfig), storage, student.dataset, out)
    facts = json.loads((out / "final/training.json").read_text())
    assert facts["samples_sha256"] == before["samples_sha256"]
    assert student.report() == before, "the same rows give the same report"
    view = before["shown"][0]
    said = [text for text, trained, _special in view["tokens"] if trained]
    assert "".join(said) == "one two three <|im_end|>"


def test_another_row_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student(tmp_path, [[ASK, SAY]])
    first = student.preflight(monkeypatch)
    student.write([[ASK, {"role": "assistant", "content": "Eight."}]])
    second = student.preflight(monkeypatch)
    assert first["samples_sha256"] != second["samples_sha256"]
    assert first["tokenizer"] == second["tokenizer"]
    (student.model / "chat_template.jinja").write_text(chat_template() + "{# changed #}")
    third = student.preflight(monkeypatch)
    assert third["tokenizer"]["template_sha256"] != second["tokenizer"]["template_sha256"]


def chat_template() -> str:
    return str(tokenizer().chat_template)


def test_the_refused_share_is_no_setting_that_decides_the_checkpoint(tmp_path: Path) -> None:
    made = [
        load_yaml(Student(tmp_path / name, max_refused_share=share).config, StudentConfig)
        for name, share in (("a", 0.0), ("b", 0.5))
    ]
    strict, lax = (config.training_settings()["train"] for config in made)
    assert strict == lax


def test_the_bundled_model_is_trained_where_it_speaks() -> None:
    weights = bundled.bundled_weights()
    tok = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
    examination = RowChecker(tok, 8192)
    examination.check_tokenizer()
    made = examination.check_row("train", "s", [ASK, THINK, ASK, SAY])
    assert isinstance(made, Sample)
    said = tok.decode([label for label in made.labels if label != IGNORE])
    assert said == "<think>3 + 4</think>Seven.<|im_end|>Seven.<|im_end|>"
    asked = examination.chat_format.prompt_ids([ASK])
    assert made.input_ids[: len(asked)] == asked
    examination.check_totals(0.0)
    asked_of = outcomes(examination.to_record())
    assert asked_of.pop("in_vocabulary") is None, "the size of the embedding was not given"
    assert set(asked_of.values()) == {True}


# Shown to a person, and never run.


def test_colour_goes_to_a_terminal_and_brackets_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Student(tmp_path, [[ASK, SAY]] * 3)
    student.preflight(monkeypatch, "--show", "1")
    said = capsys.readouterr().out
    assert said.count("⟦Seven.<|im_end|>⟧") == 1
    assert "\x1b" not in said
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    student.preflight(monkeypatch, "--show", "1")
    assert preflight_text.TRAINED in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    student.preflight(monkeypatch, "--show", "1")
    assert "\x1b" not in capsys.readouterr().out


def test_what_a_model_wrote_is_text_on_the_page_and_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {"role": "assistant", "content": "<script>alert(1)</script> \x1b[2J ~~~~ | done"}
    student = Student(tmp_path, [[ASK, evil]])
    report = student.preflight(monkeypatch)
    view = report["shown"][0]
    for colour in (False, True):
        assert "\x1b[2J" not in preflight_text.format_sample(view, colour=colour)
    page = student.page.read_text()
    for between in ("</span><span", '</span><span class="in">'):
        assert "<script" not in page.replace(between, "")
    assert "~~~~~" in student.page.with_suffix(".md").read_text()


def test_f39_code_in_a_tokenizer_a_template_or_the_settings_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, trace = Student(tmp_path, [[ASK, SAY]]), tmp_path / "trace"
    (student.model / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        file = student.model / name
        mapped = {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}}
        file.write_text(json.dumps(json.loads(file.read_text()) | mapped))
    opened = "{{ cycler.__init__.__globals__.os.system('touch " + str(trace) + "') }}"
    (student.model / "chat_template.jinja").write_text(opened + chat_template())
    with pytest.raises(InputError):
        student.preflight(monkeypatch)
    settings = yaml.safe_load(student.config.read_text())
    settings["run_name"] = "RUN"
    code = f"!!python/object/apply:os.system ['touch {trace}']"
    student.config.write_text(yaml.safe_dump(settings).replace("RUN", code))
    with pytest.raises(InputError, match="not valid YAML"):
        student.preflight(monkeypatch)
    assert not trace.exists()


def test_an_unsealed_dataset_is_refused(tmp_path: Path) -> None:
    student = Student(tmp_path)
    stored = load_config(student.pipeline).storage.path_of("sft_parquet")
    stored.parent.mkdir(parents=True)
    stored.write_bytes(student.dataset.read_bytes())
    student.dataset = stored
    done = subprocess.run(
        student.command("nexa_train.preflight"), cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 66, done.stderr
    assert "has no manifest" in done.stderr
