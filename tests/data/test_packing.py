"""Packed samples: the same as alone, whatever stands beside them (F42)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nexa_distill.errors import InputError
from nexa_train.data import packing
from nexa_train.data.chat_tokenization import IGNORE, Sample
from nexa_train.data.collate import collate_padded
from nexa_train.data.dataset import load_dataset
from nexa_train.models.loading import load_model
from nexa_train.training.assistant_loss import AnswerLoss
from tests.support.precision import SAME_WEIGHTS
from tests.support.tiny_model import save_dataset, save_model, tokenizer
from tests.training.test_train_sft import Run, follow, losses

CPU = torch.device("cpu")
LENGTHS = (5, 17, 1, 9)


def sample(length: int, seed: int) -> Sample:
    ids = torch.randint(3, 300, (length,), generator=torch.manual_seed(seed)).tolist()
    return Sample(f"s{seed}", ids, ids)


SAMPLES = [sample(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    made = load_model(str(save_model(tmp_path / "model"))).eval()
    packing.enable_packing(made)
    return made


def logits(model: Any, samples: list[Sample], **more: Any) -> list[torch.Tensor]:
    batch = packing.collate_packed(samples, CPU) | more
    del batch["labels"]
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits[0]
    return list(whole.split([len(s.input_ids) for s in samples]))


@pytest.mark.parametrize("mask", [False, True])
def test_f42_another_sample_changes_nothing_of_its_neighbours(model: Any, mask: bool) -> None:
    more = {"attention_mask": torch.ones(1, sum(LENGTHS), dtype=torch.long)} if mask else {}
    before = logits(model, SAMPLES, **more)
    after = logits(model, [SAMPLES[0], sample(17, 99), *SAMPLES[2:]], **more)
    assert not torch.allclose(before[1], after[1], atol=1e-2)
    for place in (0, 2, 3):
        assert torch.allclose(before[place], after[place], atol=1e-4)


def test_f42_packed_logits_are_those_of_each_sample_alone(model: Any, tmp_path: Path) -> None:
    plain = load_model(str(tmp_path / "model")).eval()
    for one, packed in zip(SAMPLES, logits(model, SAMPLES), strict=True):
        with torch.no_grad():
            alone = plain(torch.tensor([one.input_ids])).logits[0]
        assert torch.allclose(packed, alone, atol=1e-4)


def test_the_last_token_of_a_sample_does_not_learn_the_first_of_the_next() -> None:
    batch = packing.collate_packed(SAMPLES, CPU)
    starts = batch["cu_seq_lens_q"][:-1]
    assert (batch["labels"][0, starts] == IGNORE).all()
    assert (batch["position_ids"][0, starts] == 0).all()
    assert int((batch["labels"] != IGNORE).sum()) == sum(s.trained_tokens for s in SAMPLES)


def test_loss_and_gradients_are_those_of_padded_batches(tmp_path: Path) -> None:
    data = load_dataset(save_dataset(tmp_path / "sft.parquet"), tokenizer(), 256)
    path = str(save_model(tmp_path / "model"))
    found = []
    for packed in (False, True):
        model = load_model(path)
        if packed:
            packing.enable_packing(model)
            batch = packing.collate_packed(data.train[:6], CPU)
        else:
            batch = collate_padded(data.train[:6], CPU, pad_id=2)
        loss = AnswerLoss(model)(batch)
        loss.backward()
        found.append((float(loss.detach()), [p.grad for p in model.parameters()]))
    (padded, before), (packed_loss, after) = found
    assert packed_loss == pytest.approx(padded, rel=1e-6)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def test_one_batch_of_eight_is_eight_batches_of_one(tmp_path: Path, precision: str) -> None:
    runs = [
        Run(tmp_path / "whole", batch_size=8, gradient_accumulation=1, epochs=1),
        Run(tmp_path / "parts", batch_size=1, gradient_accumulation=8, epochs=1),
    ]
    for run in runs:
        save_dataset(run.dataset, train=8)  # one step of the same eight samples
        run.here(run.folder / "output")
    follow(runs[1].folder / "output", runs[0].folder / "output", precision)
    one, other = (load_file(r.folder / "output/final/model.safetensors") for r in runs)
    apart = [(weights - other[name]).abs().flatten() for name, weights in one.items()]
    assert float(torch.cat(apart).float().mean()) < SAME_WEIGHTS


def test_a_run_follows_the_same_losses_packed_and_padded(tmp_path: Path) -> None:
    curves = []
    for packed in (True, False):
        run = Run(tmp_path / str(packed), packing=packed)
        run.here(run.folder / "output")
        curves.append(losses(run.folder / "output"))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_samples_would_mix_is_refused(model: Any, dtype: torch.dtype) -> None:
    model.to(dtype)
    packing.prove_isolation(model, SAMPLES)
    model.set_attn_implementation("eager")  # knows nothing of the samples' borders
    model.base_model.register_forward_pre_hook(
        lambda _, given, named: (given, named | {"position_ids": None, "cu_seq_lens_q": None}), with_kwargs=True
    )
    with pytest.raises(InputError, match=r"train\.packing: false"):
        packing.prove_isolation(model, SAMPLES)


def test_borders_that_do_not_fit_the_row_are_a_bug(model: Any) -> None:
    with pytest.raises(ValueError, match="32 tokens, and samples that end at 3"):
        logits(model, SAMPLES, cu_seq_lens_q=torch.tensor([0, 3]))


PREFIX = list(range(3, 3 + packing.SHORTEST_PREFIX + 4))


def question(length: int, seed: int, trained: int = 3) -> Sample:
    """PREFIX, then tokens of its own, of which the last ones are trained."""
    own = sample(length, seed).input_ids
    ids = [*PREFIX, *own]
    return Sample(f"q{seed}", ids, [IGNORE] * (len(ids) - trained) + ids[-trained:])


QUESTIONS = [question(length, seed) for seed, length in enumerate((6, 11, 4, 9))]


def test_a_common_prefix_is_in_the_row_once_and_changes_no_loss_and_no_gradient(tmp_path: Path) -> None:
    path = str(save_model(tmp_path / "model"))
    results = []
    for shares_prefix in (False, True):
        model = load_model(path)
        packing.enable_packing(model)
        batch = packing.collate_packed(QUESTIONS, CPU, shares_prefix=shares_prefix)
        loss = AnswerLoss(model)(batch)
        loss.backward()
        results.append((batch["input_ids"].shape[1], float(loss.detach()), [p.grad for p in model.parameters()]))
    (whole, one_loss, before), (short, other_loss, after) = results
    assert short == whole - (len(QUESTIONS) - 1) * len(PREFIX)
    assert other_loss == pytest.approx(one_loss, rel=1e-6)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", packing.ORIGINAL_ATTENTIONS)
def test_samples_behind_a_common_prefix_do_not_see_each_other(model: Any, attention: str) -> None:
    model.set_attn_implementation(packing.PER_SAMPLE + attention)

    def rests(samples: list[Sample]) -> list[torch.Tensor]:
        batch = packing.collate_packed(samples, CPU)
        assert batch.pop("labels")[0, : len(PREFIX)].eq(IGNORE).all()
        with torch.no_grad():
            whole = model(**batch, use_cache=False).logits[0]
        return list(whole.split(batch["cu_seq_lens_q"].diff().tolist()))

    before, after = rests(QUESTIONS), rests([QUESTIONS[0], question(11, 99), *QUESTIONS[2:]])
    assert not torch.allclose(before[2], after[2], atol=1e-2)
    for place in (0, 1, 3, 4):
        assert torch.allclose(before[place], after[place], atol=1e-4)


def test_a_prefix_ends_before_the_token_that_predicts_the_first_trained_one() -> None:
    same = Sample("a", PREFIX, [IGNORE] * (len(PREFIX) - 2) + PREFIX[-2:])
    assert packing.shared_prefix([same, same]) == len(PREFIX) - 3
    untrained = Sample("b", PREFIX, [IGNORE] * len(PREFIX))
    assert packing.shared_prefix([untrained, untrained]) == len(PREFIX) - 1
    assert packing.shared_prefix(QUESTIONS) == len(PREFIX)
    assert packing.shared_prefix(QUESTIONS[:1]) == 0  # nothing to share it with
    assert packing.shared_prefix(SAMPLES) == 0


def test_a_model_that_cannot_share_a_prefix_is_packed_without(model: Any) -> None:
    assert packing.prove_isolation(model, QUESTIONS)
    model.base_model.register_forward_pre_hook(
        lambda _, given, named: (given, {k: v for k, v in named.items() if k != "cu_seq_lens_k"}), with_kwargs=True
    )
    assert not packing.prove_isolation(model, QUESTIONS)
