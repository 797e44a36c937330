from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nexa_train.data.chat_format import FAULTS
from nexa_train.data.chat_tokenization import IGNORE, ROW_REASONS, Sample, comparable_text, encode_conversation
from nexa_train.data.row_checks import CheckFailed
from tests.families import FAMILIES, Family
from tests.models.family_trial import (
    ANSWERS,
    GREETING,
    INTRODUCTION,
    QUESTIONS,
    SYSTEM,
    ZONES,
    Trial,
    ask,
    be_quiet,
    conversation,
    in_zone,
    lead_of,
    line,
    try_family,
)
from tests.support.tiny_model import ROOT
from tests.sweeps import some

TABLE = ROOT / "docs/model-families.md"
SPACED = {"Llama 2", "Gemma 2", "Gemma 3", "Mistral v1", "Vicuna 1.5"}  # SentencePiece


def each(families: Iterable[Family]) -> pytest.MarkDecorator:
    """The test, for each of these."""
    return pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in families])


OTHER = "each is one more template and tokenizer through the same code"
TRAINED = some("model families", [f for f in FAMILIES if not f.refused], 8, why=OTHER)
REFUSED = [f for f in FAMILIES if f.refused]
each_family = each([*TRAINED, *REFUSED])
each_trained = each(TRAINED)
each_refused = each(REFUSED)
_trials: dict[str, Trial] = {}


@pytest.fixture
def trial(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Trained once for all tests of this file."""
    be_quiet()
    if family.name not in _trials:
        _trials[family.name] = try_family(family, tmp_path_factory.mktemp("family"))
    return _trials[family.name]


@pytest.fixture
def trained(trial: Trial) -> Trial:
    assert trial.refused is None, trial.refused
    return trial


def named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def border(sample: Sample) -> int:
    """How many tokens the prompt of its last answer has."""
    return max(i + 1 for i in range(len(sample.labels) - 1) if sample.labels[i] == IGNORE != sample.labels[i + 1])


@each_trained
def test_a_family_trains_and_its_preflight_passes(trained: Trial) -> None:
    assert all(check["ok"] is not False for check in trained.preflight["checks"])
    assert trained.preflight["failed"] is None
    assert (trained.final / "model.safetensors").is_file()


@each_refused
def test_a_family_that_cannot_be_trained_is_refused_before_anything_is_spent(trial: Trial) -> None:
    assert isinstance(trial.refused, CheckFailed)
    assert trial.why_refused == trial.family.refused
    assert FAULTS[trial.family.refused] in str(trial.refused)
    assert not list(trial.final.parent.rglob("*.safetensors"))
    assert not list(trial.final.parent.rglob("metrics.jsonl"))


@each_trained
def test_the_loss_is_on_the_answer_and_its_end_and_on_nothing_of_the_prompt(trained: Trial) -> None:
    for question in QUESTIONS:
        sample, decode = trained.sample(question), trained.format.tokenizer.decode
        begin = border(sample)
        assert sample.labels == [IGNORE] * begin + sample.input_ids[begin:]
        said = comparable_text(decode(sample.labels[begin:]))
        assert said.endswith(comparable_text(ANSWERS[question] + trained.format.end_text))
        assert comparable_text(question) in comparable_text(decode(sample.input_ids[:begin]))
        assert SYSTEM["content"].split()[0] in decode(sample.input_ids[:begin])
        assert lead_of(trained, question) == trained.family.lead


@each_trained
def test_the_exported_folder_says_what_it_learned_by_heart_and_ends(trained: Trial) -> None:
    """With its own generation_config: stop tokens and sampling as shipped, no other argument."""
    model: Any = AutoModelForCausalLM.from_pretrained(trained.final)
    torch.manual_seed(0)
    for question in QUESTIONS:
        sample = trained.sample(question)
        ids = torch.tensor([sample.input_ids[: border(sample)]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80)
        assert out[0].tolist() == sample.input_ids


@each_trained
def test_the_exported_folder_gives_the_prompt_of_the_training_on_any_day(trained: Trial) -> None:
    reader = AutoTokenizer.from_pretrained(trained.final)
    for zone in ZONES:
        with in_zone(zone):
            read: Any = reader.apply_chat_template(
                trained.format.plain_messages(ask(QUESTIONS[0])), add_generation_prompt=True
            )
        sample = trained.sample(QUESTIONS[0])
        assert list(read["input_ids"]) == sample.input_ids[: border(sample)]


@each_trained
def test_the_student_answers_with_the_text_and_stops(trained: Trial) -> None:
    answers = trained.answers()
    assert sorted(answers) == sorted(QUESTIONS)
    for question, row in answers.items():
        assert row["finish_reason"] == "stop"
        assert comparable_text(row["teacher_output"]) == comparable_text(ANSWERS[question])


@each_trained
def test_a_row_of_two_turns_is_trained_with_both_or_refused_with_the_reason(trained: Trial) -> None:
    turns = conversation(GREETING, QUESTIONS[0], reasoned=trained.family.reasoned)
    made = encode_conversation(trained.format, "turns", turns, None)
    if isinstance(made, Sample):
        assert trained.preflight["refused"] == {}
        said = trained.format.tokenizer.decode([label for label in made.labels if label != IGNORE])
        first, second = (comparable_text(ANSWERS[q]) for q in (GREETING, QUESTIONS[0]))
        assert first in comparable_text(said).partition(second)[0]
        assert made.labels.count(trained.format.end) == 2
        assert trained.family.turns == ""
    else:
        assert made.reason in ROW_REASONS
        assert trained.preflight["first_refused"] == {made.reason: "train turns"}
        assert trained.family.turns == made.reason


@each_family
def test_the_table_of_the_docs_says_what_happens(trial: Trial) -> None:
    assert line(trial) in TABLE.read_text(), "run `python -m tests.families > docs/model-families.md`"


def test_the_table_of_the_docs_has_all_families_and_no_other() -> None:
    text = TABLE.read_text()
    assert text.startswith(INTRODUCTION)
    rows = text.removeprefix(INTRODUCTION).splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [f.name for f in FAMILIES]


@each(some("families of SentencePiece", [f for f in FAMILIES if f.name in SPACED], 2, why=OTHER))
def test_t08_a_row_has_the_tokens_that_the_template_gives_for_it(trial: Trial) -> None:
    """No token of a space before an answer or a turn that inference would not read."""
    form = trial.format
    turns = conversation(GREETING, QUESTIONS[0])
    for messages in (turns, conversation(QUESTIONS[1])):
        made = encode_conversation(form, "row", messages, None)
        assert isinstance(made, Sample)
        whole = form.tokenizer.apply_chat_template(form.plain_messages(messages))["input_ids"]
        assert made.input_ids == list(whole)[: len(made.input_ids)]


@each([named("Phi-3")])
def test_t13_a_token_after_the_last_turn_is_no_rewritten_turn(trial: Trial) -> None:
    text = trial.format.render(conversation(QUESTIONS[0]), prompt=False)
    assert text.endswith("<|end|>\n<|endoftext|>")
    sample = trial.sample(QUESTIONS[0])
    assert sample.labels[-1] == trial.format.end
    assert trial.format.end_text == "<|end|>"


@pytest.mark.parametrize("family", [named("Gemma 2"), named("Gemma 3")], ids=lambda f: f.name)
def test_t14_gemma_as_shipped_ends_where_its_template_does_and_reads_the_system_text(trial: Trial) -> None:
    assert trial.format.stop_tokens != [trial.base.eos_token_id]
    assert trial.format.end_text == "<end_of_turn>"
    ids = trial.base.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    model = AutoModelForCausalLM.from_pretrained(trial.final)
    assert model.generation_config.eos_token_id == ids
    assert trial.format.folds_system == (trial.family.name == "Gemma 2")
    turn = f"<start_of_turn>user\n{SYSTEM['content']}\n\n{QUESTIONS[0]}<end_of_turn>"
    assert turn in trial.format.render(ask(QUESTIONS[0]), prompt=True)


@pytest.mark.parametrize("family", [named("DeepSeek-R1 distill")], ids=lambda f: f.name)
def test_t30_a_template_that_strips_reasoning_and_opens_it_is_refused(trial: Trial) -> None:
    assert trial.why_refused == "prompt_opens_thinking"
    assert "put a template into the folder" in str(trial.refused)


def test_the_shipped_templates_with_a_date_change_with_the_clock(tmp_path: Path) -> None:
    """What the test of any day is worth: as shipped, these templates do change."""
    for name in ("Llama 3.2", "Mistral v7", "Granite 3", "gpt-oss"):
        reader = AutoTokenizer.from_pretrained(named(name).save(tmp_path / name))
        texts = set()
        for zone in ZONES:
            with in_zone(zone):
                texts.add(reader.apply_chat_template(ask(QUESTIONS[0])[1:], tokenize=False))
        assert len(texts) == 2
