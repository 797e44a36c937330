import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from nexa_distill.collection.answers.extraction import Cleaner
from nexa_distill.collection.requests.body import row_messages
from nexa_distill.contracts import OUTPUTS, TABLES
from nexa_distill.errors import InputMissing
from nexa_distill.storage.tables import read_table
from nexa_train import generate_student
from nexa_train.data import chat_tokenization
from nexa_train.data.chat_format import chat_format
from nexa_train.generate_student import Prompt, batch_prompts
from nexa_train.models.generation import new_tokens
from nexa_train.models.loading import load_for_inference
from nexa_train.models.replies import read_reply
from tests.support.exam import prepare, rows, save_untrained
from tests.support.tiny_model import save_model, tokenizer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def prompt(key: str, length: int) -> Prompt:
    return Prompt({"sample_id": key}, [3] * length)


def test_batches_hold_prompts_of_similar_length_longest_first() -> None:
    made = batch_prompts([prompt("a", 5), prompt("b", 9), prompt("c", 5), prompt("d", 8)], 2)
    assert [[p.row["sample_id"] for p in batch] for batch in made] == [["b", "d"], ["a", "c"]]


def test_a_row_without_a_system_prompt_gets_the_collections() -> None:
    row = {"system_prompt": None, "user_prompt": "Why?"}
    assert row_messages(row, "Be exact.")[0] == {"role": "system", "content": "Be exact."}
    assert row_messages(row | {"system_prompt": "Own."}, "Be exact.")[0]["content"] == "Own."


def test_the_prompt_is_what_training_put_before_the_answer(tmp_path: Path) -> None:
    _, student = prepare(tmp_path)
    _, tokenizer = load_for_inference(student.student)
    row = rows(1)[0]
    asked = row_messages(row, "unused")
    answered = [*asked, {"role": "assistant", "content": row["teacher_output"]}]
    form = chat_format(tokenizer)
    sample = chat_tokenization.encode_conversation(form, "a", answered, 500)
    assert isinstance(sample, chat_tokenization.Sample)
    start = next(i for i, label in enumerate(sample.labels) if label != chat_tokenization.IGNORE)
    assert form.prompt_ids(asked) == sample.input_ids[:start]


def test_a_checkpoints_own_generation_settings_have_no_say(tmp_path: Path) -> None:
    model, tokenizer = load_for_inference(str(save_model(tmp_path / "model")))
    ask: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0, "top_k": 0, "top_p": 1.0,
                           "stops": [2], "seed": 1}  # fmt: skip
    plain = new_tokens(model, tokenizer, [[5, 6, 7]], **ask)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.suppress_tokens = plain[0][:2]
    own = model.generation_config
    assert new_tokens(model, tokenizer, [[5, 6, 7]], **ask) == plain
    assert model.generation_config is own


def test_every_held_out_prompt_is_answered_once_by_both_students(tmp_path: Path) -> None:
    config, student = prepare(tmp_path)
    save_untrained(config, student)
    generate_student.run(config, student)
    wanted = sorted(row["sample_id"] for row in rows() if row["split"] == "test")
    for key, model_id in {"student_outputs": "baseline", "baseline_outputs": "baseline (before training)"}.items():
        table = read_table(config.storage.path_of(key), TABLES[key])
        assert table.schema.names == OUTPUTS.names
        found = table.to_pylist()
        assert [row["sample_id"] for row in found] == wanted
        for row in found:
            assert row["model_id"] == model_id
            assert (row["finish_reason"], row["completion_tokens"]) == ("length", 40)
            assert row["total_tokens"] == row["prompt_tokens"] + 40
            assert row["latency_ms"] > 0
            assert (row["cost_usd"], row["request_key"], row["attempt"]) == (None, None, 0)


def test_left_padding_does_not_change_an_answer(tmp_path: Path) -> None:
    _, student = prepare(tmp_path)
    model, tokenizer = load_for_inference(student.student)
    model = model.float()  # in bfloat16 a tie between two tokens may fall either way
    found = [row | {"user_prompt": "Count " + "1" * n} for n, row in enumerate(rows(3))]
    form = chat_format(tokenizer)
    asked = [Prompt(row, form.prompt_ids(row_messages(row, ""))) for row in found]

    def texts(size: int) -> dict[str, Any]:
        generate = student.generate.model_copy(update={"batch_size": size})
        made = generate_student.answer_prompts(model, form, asked, generate, "m", Cleaner({}, []))
        return {row["sample_id"]: row["teacher_output"] for row in made}

    assert texts(3) == texts(1)


def test_sampling_is_the_same_on_every_run(tmp_path: Path) -> None:
    _, student = prepare(tmp_path)
    model, tokenizer = load_for_inference(student.student)
    form = chat_format(tokenizer)
    asked = [Prompt(row, form.prompt_ids(row_messages(row, ""))) for row in rows(4)]
    generate = student.generate.model_copy(update={"temperature": 1.0})

    def texts() -> list[Any]:
        made = generate_student.answer_prompts(model, form, asked, generate, "m", Cleaner({}, []))
        return [row["teacher_output"] for row in made]

    first = texts()
    torch.rand(7)  # the state of the generator before must not matter
    assert texts() == first
    assert len(set(first)) == 4


def test_an_answer_ends_at_the_end_of_turn_and_the_token_is_counted(tmp_path: Path) -> None:
    _, student = prepare(tmp_path)
    _, tokenizer = load_for_inference(student.student)
    stops = chat_format(tokenizer).stop_tokens
    assert stops == [2]
    said = [*tokenizer("Yes.", add_special_tokens=False)["input_ids"], 2, 2, 2]
    row = generate_student._output_row(prompt("a", 10), read_reply(tokenizer, [3] * 10, said, stops), "m", 1.0)
    assert (row["teacher_output"], row["finish_reason"]) == ("Yes.", "stop")
    assert (row["completion_tokens"], row["total_tokens"]) == (5, 15)
    silent = generate_student._output_row(prompt("a", 10), read_reply(tokenizer, [3] * 10, [2, 2], stops), "m", 1.0)
    assert (silent["teacher_output"], silent["completion_tokens"]) == (None, 1)


def test_a_new_checkpoint_regenerates_only_the_trained_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, student = prepare(tmp_path)
    save_untrained(config, student)
    generate_student.run(config, student)
    baseline = config.storage.path_of("baseline_outputs").read_bytes()
    (student.checkpoint_path(config.storage) / "model.safetensors").unlink()
    with pytest.raises(InputMissing, match="train_sft"):
        generate_student.run(config, student)
    save_untrained(config, student)
    capsys.readouterr()
    generate_student.run(config, student)
    assert capsys.readouterr().out.count("up to date") == 2
    assert config.storage.path_of("baseline_outputs").read_bytes() == baseline


def test_a_split_without_prompts_says_what_to_do(tmp_path: Path) -> None:
    config, student = prepare(tmp_path)
    other = student.generate.model_copy(update={"split": "val"})
    with pytest.raises(InputMissing, match=r"no prompt in the val split.*split\.val"):
        generate_student.run(config, student.model_copy(update={"generate": other}))


def test_another_checkpoint_goes_to_another_file(tmp_path: Path) -> None:
    config, student = prepare(tmp_path)
    dst = tmp_path / "other.parquet"
    generate_student.run(config, student, checkpoint=Path(student.student), dst=dst)
    assert pq.ParquetFile(dst).metadata.num_rows == 12
    assert not config.storage.path_of("baseline_outputs").exists()


def test_help_answers_without_loading_torch() -> None:
    start = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "nexa_train.generate_student", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 10
    assert "--checkpoint" in done.stdout
    assert "torch" not in done.stderr
    assert "transformers" not in done.stderr


@pytest.mark.parametrize(
    ("opened", "written"), [("", "<think>\nHm.\n</think>\n\nFour."), ("<think>\n", "Hm. </think> Four.")]
)
def test_t06_a_students_reasoning_is_not_in_its_answer(opened: str, written: str) -> None:
    tok = tokenizer()
    asked = Prompt({"sample_id": "a"}, tok(f"<|im_start|>assistant\n{opened}")["input_ids"])
    new = tok(f"{written}<|im_end|>")["input_ids"]
    row = generate_student._output_row(asked, read_reply(tok, asked.ids, new, [tok.eos_token_id]), "m", 1.0)
    assert (row["reasoning_output"], row["teacher_output"]) == ("Hm.", "Four.")
    assert (row["finish_reason"], row["completion_tokens"]) == ("stop", len(new))
    row = generate_student._output_row(asked, read_reply(tok, asked.ids, new[:4], [tok.eos_token_id]), "m", 1.0)
    assert row["finish_reason"] == "length"
    assert (row["teacher_output"] is None) == bool(opened), "a cut reasoning has no answer"
