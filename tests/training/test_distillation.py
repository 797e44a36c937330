"""Training on a teacher's probabilities: online, and from a cache that is made once and checked."""

import signal
import subprocess
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nexa_distill.contracts import SFT, TABLES
from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.tables import read_table
from nexa_train import teacher_logits
from nexa_train.data import packing
from nexa_train.data.dataset import load_dataset
from nexa_train.models.loading import load_model
from nexa_train.training import teacher_cache
from nexa_train.training.assistant_loss import AnswerLogits, AnswerLoss
from nexa_train.training.distillation import DistillationLoss, build_loss
from nexa_train.training.teacher_cache import CachedTeacher
from tests import warm
from tests.support.precision import SAME_DIVERGENCE, SAME_LOSS
from tests.support.tiny_model import MARKS, save_dataset, save_model, tokenizer
from tests.training.test_train_sft import Run, environment, follow, metrics, train

pytestmark = pytest.mark.usefixtures("float32")
CPU = torch.device("cpu")


class Distilled(Run):
    """A tiny student with a teacher of six layers."""

    def __init__(self, folder: Path, train: dict[str, Any] | None = None, **wanted: Any) -> None:
        super().__init__(folder, **(train or {}))
        self.teacher = save_model(folder / "teacher", layers=6)
        values = yaml.safe_load(self.config.read_text())
        values["distillation"] |= {"loss": "forward_kl", "teacher": str(self.teacher)} | wanted
        self.config.write_text(yaml.safe_dump(values))

    @property
    def settings(self) -> StudentConfig:
        return load_yaml(self.config, StudentConfig)

    def cache(self) -> Path:
        return teacher_logits.run(self.settings, self.storage(), self.dataset)


def loss_of(run: Distilled, samples: slice = slice(0, 6)) -> float:
    """Of the untrained student on some training samples, per `distillation:`."""
    data = load_dataset(run.dataset, tokenizer(), 256)
    model = load_model(str(run.model), [0, 1, 3])
    packing.enable_packing(model)
    loss, batch_of = build_loss(run.settings, run.storage(), model, tokenizer(), data, packing.collate_packed)
    with torch.no_grad():
        return float(loss(batch_of(data.train[samples], CPU)))


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_the_cache_of_every_token_is_the_teacher_itself(tmp_path: Path, loss: str) -> None:
    run = Distilled(tmp_path, loss=loss, top_k=300, temperature=2.0)
    run.cache()
    cached = loss_of(run)
    run = Distilled(tmp_path, loss=loss, source="online", temperature=2.0)
    assert cached == pytest.approx(loss_of(run), rel=2e-3)  # the cache is in float16


def test_the_ratio_weighs_words_against_probabilities(tmp_path: Path) -> None:
    found = [loss_of(Distilled(tmp_path, source="online", kd_ratio=ratio)) for ratio in (0.0, 0.3, 1.0)]
    words, mixed, probabilities = found
    assert mixed == pytest.approx(0.7 * words + 0.3 * probabilities, rel=1e-5)
    data = load_dataset(tmp_path / "sft.parquet", tokenizer(), 256)
    model = load_model(str(tmp_path / "model"), [0, 1, 3])
    packing.enable_packing(model)
    alone = AnswerLoss(model)(packing.collate_packed(data.train[:6], CPU))
    assert words == pytest.approx(float(alone.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "source", "packing"),
    [
        ("forward_kl", "cache", True),
        ("reverse_kl", "cache", True),
        ("jensen_shannon", "cache", False),
        ("forward_kl", "online", False),
    ],
)
def test_t01_training_brings_the_student_to_its_teacher(
    tmp_path: Path, loss: str, source: str, packing: bool, precision: str
) -> None:
    train = {"epochs": 4, "packing": packing}
    run = Distilled(tmp_path, train, kd_ratio=1.0, loss=loss, source=source)
    assert run.here(tmp_path / "out")
    rows = metrics(tmp_path / "out")[1:]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert all(row["loss"] == row["divergence"] < row["cross_entropy"] for row in rows)
    assert not run.here(tmp_path / "out"), "a finished run does nothing"


def test_two_processes_follow_the_losses_of_one(tmp_path: Path, precision: str) -> None:
    """23 samples: in the last batch the second process has none of its own."""
    run = Distilled(tmp_path, {"batch_size": 2, "epochs": 1, "gradient_accumulation": 2})
    save_dataset(run.dataset, train=23)
    run.here(tmp_path / "one")
    done = train(run, tmp_path / "two", "true")
    assert done.returncode == 0, done.stderr
    follow(tmp_path / "two", tmp_path / "one", precision)
    both = [metrics(tmp_path / name)[1:] for name in ("one", "two")]
    for row in (*both[0], *both[1]):
        mixed = 0.5 * row["cross_entropy"] + 0.5 * row["divergence"]
        assert row["loss"] == pytest.approx(mixed, rel=1e-6)
    for part, same in (("cross_entropy", SAME_LOSS), ("divergence", SAME_DIVERGENCE)):
        one, two = ([row[part] for row in rows] for rows in both)
        assert two == pytest.approx(one, rel=same[precision])
    assert len(both[0]) == 6


def test_the_cache_is_made_once_and_again_for_another_teacher(tmp_path: Path) -> None:
    run = Distilled(tmp_path)
    path = run.cache()
    before = path.stat().st_mtime_ns
    assert run.cache().stat().st_mtime_ns == before
    rows = read_table(path, TABLES["teacher_logits"]).to_pylist()
    assert len(rows) == 28
    assert all(len(row["top_ids"]) == 128 * row["tokens"] for row in rows)
    assert not list(path.parent.glob(".*parts*"))
    Distilled(tmp_path, temperature=2.0).cache()
    assert path.stat().st_mtime_ns != before


def test_rows_that_are_added_or_changed_are_the_only_ones_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Distilled(tmp_path)
    asked: list[str] = []
    run.cache()
    save_dataset(run.dataset, train=30)
    rows = pq.read_table(run.dataset).to_pylist()
    rows[3]["messages"][1]["content"] = "other words"
    pq.write_table(pa.Table.from_pylist(rows, SFT), run.dataset)
    original = teacher_cache.logits_rows

    def counted(config: Any, model: Any, samples: Any, *rest: Any) -> Any:
        asked.extend(sample.sample_id for sample in samples)
        return original(config, model, samples, *rest)

    monkeypatch.setattr(teacher_logits, "logits_rows", counted)
    made = read_table(run.cache(), TABLES["teacher_logits"]).to_pylist()
    assert asked == ["sample-3", *(f"sample-{i}" for i in range(28, 34))]
    run.cache().unlink()
    fresh = read_table(run.cache(), TABLES["teacher_logits"]).to_pylist()
    assert len(asked) == 7 + 34
    key = itemgetter("sample_id")
    for one, other in zip(sorted(made, key=key), sorted(fresh, key=key), strict=True):
        assert [one[n] for n in ("sample_id", "tokens_sha256")] == [other[n] for n in ("sample_id", "tokens_sha256")]
        assert one["tail_log_prob"] == pytest.approx(other["tail_log_prob"], abs=0.02)


def test_a_teacher_that_cannot_be_packed_reads_padded_batches_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = read_table(Distilled(tmp_path / "a").cache(), TABLES["teacher_logits"]).to_pylist()

    def refuse(_: Any) -> None:
        raise InputError("cannot be packed")

    monkeypatch.setattr(packing, "enable_packing", refuse)
    with pytest.raises(InputError, match="cannot be packed"):
        Distilled(tmp_path / "b").cache()
    path = Distilled(tmp_path / "b", {"packing": False}).cache()
    for one, other in zip(packed, read_table(path, TABLES["teacher_logits"]).to_pylist(),
                          strict=True):  # fmt: skip
        assert one["sample_id"] == other["sample_id"]
        assert one["tail_log_prob"] == pytest.approx(other["tail_log_prob"], abs=0.02)
        likeliest = [row["top_ids"][:: len(row["top_ids"]) // row["tokens"]]
                     for row in (one, other)]  # fmt: skip
        assert likeliest[0] == likeliest[1]


def test_a_killed_cache_goes_on_where_it_was(tmp_path: Path) -> None:
    run = Distilled(tmp_path)
    save_dataset(run.dataset, train=400)
    command = [warm.python(), "-m", "nexa_train.teacher_logits", "--config", str(run.config),
               "--pipeline-config", str(run.pipeline), "--dataset", str(run.dataset)]  # fmt: skip
    path = run.storage().path_of("teacher_logits")
    process = warm.Process(command, env=environment())
    while not (done := list(path.parent.glob(".*.parts/*/*.parquet"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    first = min(done)
    made = first.stat().st_mtime_ns
    assert 0 < len(done) < 13
    subprocess.run(command, env=environment(), check=True)
    assert pq.read_metadata(path).num_rows == 404
    assert made < path.stat().st_mtime_ns
    names = pq.read_table(path)["sample_id"].to_pylist()
    assert len(set(names)) == 404


def test_another_sample_of_the_same_name_is_refused(tmp_path: Path) -> None:
    run = Distilled(tmp_path)
    path = run.cache()
    data = load_dataset(run.dataset, tokenizer(), 256)
    CachedTeacher(path, data.train)
    other = data.train[3]
    other.labels[-1] = 7
    with pytest.raises(InputError, match=f"{other.sample_id} was written for other tokens"):
        CachedTeacher(path, data.train)
    longer = load_dataset(save_dataset(tmp_path / "more.parquet", train=60), tokenizer(), 256)
    with pytest.raises(InputError, match="sample sample-2"):
        CachedTeacher(path, longer.train)


@pytest.mark.parametrize("source", ["cache", "online"])
def test_a_teacher_with_another_vocabulary_is_refused(tmp_path: Path, source: str) -> None:
    run = Distilled(tmp_path, source=source)
    other = tokenizer()
    other.add_tokens(["<|more|>"])
    other.save_pretrained(run.teacher)
    with pytest.raises(InputError, match=r"260 tokens\) is not that of the student.*259 tokens"):
        run.here(tmp_path / "out")


def test_rows_of_the_cache_follow_the_samples_not_their_place(tmp_path: Path) -> None:
    run = Distilled(tmp_path)
    data = load_dataset(run.dataset, tokenizer(), 256)
    cached = CachedTeacher(run.cache(), data.train)
    some = [data.train[9], data.train[2], data.train[17]]
    together = cached.batch_tensors(some, CPU)
    alone = [cached.batch_tensors([sample], CPU) for sample in some]
    for name, values in together.items():
        assert torch.equal(values, torch.cat([one[name] for one in alone]))
    teacher = load_model(str(run.teacher)).eval()
    packing.enable_packing(teacher)
    with torch.no_grad():
        best = AnswerLogits(teacher)(packing.collate_packed(some, CPU)).argmax(-1)
    assert torch.equal(together["top_ids"][:, 0].long(), best)


def test_a_padded_vocabulary_is_no_other_one(tmp_path: Path) -> None:
    """The tiny models have 300 logits and 259 tokens."""
    model = load_model(str(save_model(tmp_path / "m")))
    run = Distilled(tmp_path, source="online")
    data = load_dataset(run.dataset, tokenizer(), 256)
    loss = DistillationLoss(model, run.settings.distillation, len(tokenizer()), model)
    packing.enable_packing(model)
    assert loss.vocabulary == 256 + len(MARKS)
    with torch.no_grad():
        words = AnswerLoss(model)(packing.collate_packed(data.train[:2], CPU))
        mixed = loss(packing.collate_packed(data.train[:2], CPU))
    assert float(mixed) == pytest.approx(0.5 * float(words), rel=1e-4)
