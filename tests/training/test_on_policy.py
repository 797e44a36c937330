"""The student's own answers, scored by its teacher."""

import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train import train_sft
from nexa_train.data import packing
from nexa_train.data.chat_tokenization import IGNORE, Sample
from nexa_train.data.dataset import load_dataset
from nexa_train.models.loading import load_model
from nexa_train.training import on_policy
from nexa_train.training.assistant_loss import ON_POLICY
from nexa_train.training.distillation import build_loss
from tests.support.tiny_model import ROOT, tokenizer
from tests.training.test_checkpoints import ends_as, stopped
from tests.training.test_distillation import Distilled
from tests.training.test_train_sft import environment, losses, metrics, train

pytestmark = pytest.mark.usefixtures("float32")
CPU = torch.device("cpu")
VOCABULARY, END = 259, 2


class OnPolicy(Distilled):
    """A tiny student with an online teacher that scores what it says."""

    def __init__(self, folder: Path, train: dict[str, Any] | None = None, **wanted: Any) -> None:
        own = {"source": "online", "on_policy": 1.0, "loss": "reverse_kl"}
        super().__init__(folder, train, **(own | wanted))

    def student(self, **wanted: Any) -> on_policy.Student:
        model = load_model(str(self.model), [0, 1, 3]).train()
        packing.enable_packing(model)
        settings = self.settings.distillation.model_copy(update=wanted)
        return on_policy.Student(model, settings, 7, VOCABULARY, END)


# Relative, of a step's loss. In both precisions: a draw that falls on the border of two tokens may
# give another one after another rounding, and then the rest of that answer is another.
SAME_WORDS = 0.02


@pytest.fixture
def run(tmp_path: Path) -> OnPolicy:
    return OnPolicy(tmp_path)


@pytest.fixture
def samples(run: OnPolicy) -> list[Sample]:
    """Their prompts differ in length."""
    made = load_dataset(run.dataset, tokenizer(), 256).train[:5]
    return [Sample(s.sample_id, s.input_ids[3 * i :], s.labels[3 * i :])
            for i, s in enumerate(made)]  # fmt: skip


def next_of(model: Any, ids: list[int], temperature: float) -> torch.Tensor:
    """Probabilities after `ids`, without a cache, padding or neighbours."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids]), use_cache=False).logits[0, -1, :VOCABULARY]
    found: torch.Tensor = (logits.double() / temperature).softmax(-1)
    return found


def test_each_token_is_drawn_from_the_students_own_distribution(run: OnPolicy, samples: list[Sample]) -> None:
    student = run.student(sampling_temperature=0.7)
    plain = load_model(str(run.model), [0, 1, 3])
    for before, after in zip(samples, student.resample_answers(samples, 3), strict=True):
        start = next(i for i, label in enumerate(before.labels) if label != IGNORE)
        draws = random.Random(f"7:3:{before.sample_id}")
        assert after.input_ids[:start] == before.input_ids[:start]
        assert after.labels == [IGNORE] * start + after.input_ids[start:]
        assert 0 < after.trained_tokens <= before.trained_tokens
        for place in range(start, len(after.input_ids)):
            cumulated = next_of(plain, after.input_ids[:place], 0.7).cumsum(-1)
            point, token = draws.random(), after.input_ids[place]
            assert float(cumulated[token]) >= point - 1e-5
            assert token == 0 or float(cumulated[token - 1]) <= point + 1e-5


def test_nearly_cold_the_student_says_what_is_likeliest(run: OnPolicy, samples: list[Sample]) -> None:
    student = run.student(sampling_temperature=1e-5)
    told = student.resample_answers(samples[:2], 0)
    for sample in told:
        ids = sample.input_ids
        start = len(ids) - sample.trained_tokens
        plain = load_model(str(run.model), [0, 1, 3])
        assert ids[start] == int(next_of(plain, ids[:start], 1.0).argmax())


def test_tokens_come_as_often_as_they_are_likely(run: OnPolicy) -> None:
    student = run.student()
    logits = torch.full((1, 300), -1e9)
    logits[0, :3] = torch.tensor([0.1, 0.6, 0.3]).log()
    logits[0, 280] = 5.0  # padding of the vocabulary is never said
    many = 5000
    drawn = student._draw_tokens(logits.expand(many, -1), [random.Random(i) for i in range(many)])
    seen = Counter(drawn.tolist())
    assert [seen[i] / many for i in range(3)] == pytest.approx([0.1, 0.6, 0.3], abs=0.03)
    assert sum(seen.values()) == many == seen[0] + seen[1] + seen[2]


def test_an_answer_ends_with_the_end_of_turn_token(run: OnPolicy, samples: list[Sample]) -> None:
    student = run.student()
    head = student.model.get_output_embeddings()
    student.model.lm_head = torch.nn.Linear(32, 300)
    torch.nn.init.zeros_(student.model.lm_head.weight)
    student.model.lm_head.bias.data = torch.full((300,), -50.0)
    student.model.lm_head.bias.data[END] = 50.0
    assert head is not student.model.lm_head
    for sample in student.resample_answers(samples, 0):
        assert sample.trained_tokens == 1
        assert sample.input_ids[-1] == END


def test_it_is_the_last_answer_that_is_said_anew(run: OnPolicy) -> None:
    labels = [IGNORE, IGNORE, 5, 6, IGNORE, IGNORE, 8, 9, 2, IGNORE]
    sample = Sample("s", [3, 4, 5, 6, 3, 7, 8, 9, 2, 10], labels)
    nothing = Sample("n", [3, 4, 5], [IGNORE] * 3)
    told, same = run.student().resample_answers([sample, nothing], 0)
    assert told.input_ids[:6] == sample.input_ids[:6]
    assert told.labels[:6] == [IGNORE] * 6
    assert 1 <= told.trained_tokens <= 3
    assert same == nothing
    assert run.student().resample_answers([nothing], 0) == [nothing]


def test_what_it_says_follows_the_step_and_not_its_neighbours(run: OnPolicy, samples: list[Sample]) -> None:
    together = run.student().resample_answers(samples, 4)
    alone = [run.student().resample_answers([sample], 4)[0] for sample in samples]
    assert together == alone
    assert together != run.student().resample_answers(samples, 5)


def test_the_share_of_batches_is_the_setting(run: OnPolicy) -> None:
    some, none, all_ = (run.student(on_policy=share) for share in (0.3, 0.0, 1.0))
    assert 0.2 < sum(some.is_on_policy(step, 0) for step in range(200)) / 200 < 0.4
    assert not any(none.is_on_policy(step, 0) for step in range(50))
    assert all(all_.is_on_policy(step, 0) for step in range(50))


def test_its_own_words_are_scored_by_divergence_alone(run: OnPolicy) -> None:
    found = []
    for ratio in (0.1, 0.9):
        run = OnPolicy(run.folder, kd_ratio=ratio)
        data = load_dataset(run.dataset, tokenizer(), 256)
        model = load_model(str(run.model), [0, 1, 3])
        packing.enable_packing(model)
        loss, batch_of = build_loss(run.settings, run.storage(), model, tokenizer(), data, packing.collate_packed)
        with torch.no_grad():
            batch = batch_of(data.train[:4], CPU)
            found.append([float(loss(batch)), float(loss(batch | {ON_POLICY: torch.ones(1)}))])
    (mixed, own), (other, same) = found
    assert own == same
    assert mixed != pytest.approx(other, rel=1e-3)


def test_the_student_comes_to_its_teacher_and_packed_attention_comes_back(tmp_path: Path) -> None:
    run = OnPolicy(tmp_path, {"epochs": 5})
    before = (run.teacher / "model.safetensors").read_bytes()
    assert run.here(tmp_path / "out")
    curve = list(losses(tmp_path / "out").values())
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])
    assert (run.teacher / "model.safetensors").read_bytes() == before
    student = run.student()
    student.resample_answers(load_dataset(run.dataset, tokenizer(), 256).train[:2], 0)
    assert student.model.config._attn_implementation.startswith(packing.PER_SAMPLE)
    assert student.model.training


def test_nothing_of_the_teacher_is_trained(run: OnPolicy, tmp_path: Path) -> None:
    config = run.settings
    trainer, _, _ = train_sft._prepare_trainer(
        config, run.storage(), str(run.model), run.dataset, tmp_path / "out", "key", shard=False
    )
    loss: Any = trainer.loss
    teacher = loss.teacher.model
    before = [tensor.clone() for tensor in teacher.parameters()]
    trainer.train_steps(0)
    for one, other in zip(before, teacher.parameters(), strict=True):
        assert torch.equal(one, other)
        assert other.grad is None


def test_f40_a_resumed_run_says_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    run = OnPolicy(tmp_path, {"gradient_accumulation": 2, "epochs": 4}, on_policy=0.5)
    run.here(tmp_path / "out")
    rows, student = metrics(tmp_path / "out")[1:], run.student()
    kinds = [sum(student.is_on_policy(row["step"] - 1, batch) for batch in range(2)) for row in rows]
    assert set(kinds) == {0, 1, 2}
    for own, row in zip(kinds, rows, strict=True):  # its own words have no cross entropy
        assert ("cross_entropy" in row) == (own < 2)
        assert row["divergence"] > 0
        if own == 0:
            mixed = 0.5 * row["cross_entropy"] + 0.5 * row["divergence"]
            assert row["loss"] == pytest.approx(mixed, rel=1e-6)
        if own == 2:
            assert row["loss"] == row["divergence"]
    stopped(run, tmp_path / "again", monkeypatch, 7)
    run.here(tmp_path / "again")
    ends_as(run, tmp_path / "again")


def test_two_processes_follow_the_losses_of_one(run: OnPolicy, precision: str) -> None:
    run.here(run.folder / "one")
    done = train(run, run.folder / "two", "true")
    assert done.returncode == 0, done.stderr
    assert losses(run.folder / "two") == pytest.approx(losses(run.folder / "one"), rel=SAME_WORDS)


@pytest.mark.parametrize("wanted", [{"source": "cache"}, {"loss": "none"}])
def test_nobody_scores_it_in_advance(tmp_path: Path, wanted: dict[str, Any]) -> None:
    run = OnPolicy(tmp_path, **wanted)
    with pytest.raises(InputError, match=r"distillation\.on_policy is 1\.0: the student.s own"):
        load_yaml(run.config, StudentConfig)


def test_a_model_in_parts_says_nothing(run: OnPolicy, tmp_path: Path) -> None:
    script = "scripts/shell/training/run_training.sh"
    command = ["bash", script, str(run.config), "fsdp", *run.flags(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 65, done.stderr
    assert "distillation.on_policy" in done.stderr
