"""LoRA on weights that two modules share is refused; elsewhere merging changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from nexa_distill.errors import InputError
from nexa_distill.settings.student import Lora
from nexa_train.data.collate import collate_padded
from nexa_train.training import checkpoints
from nexa_train.training import lora as adapters
from nexa_train.training.assistant_loss import AnswerLoss
from tests.data.test_packed_attention import CPU, SAMPLES, model_of
from tests.training.test_train_sft import Run

ALL_LINEAR = Lora(rank=4, alpha=16, dropout=0.1, target_modules="all-linear")


def lora(*names: str) -> Lora:
    return ALL_LINEAR.model_copy(update={"target_modules": list(names)})


def trained(model: Any) -> Any:
    """After some steps, in evaluation mode."""
    optimizer = torch.optim.AdamW([weight for _, weight in checkpoints.trainable_parameters(model)], lr=0.02)
    before = mean_loss(model)
    model.train()
    for _ in range(4):
        AnswerLoss(model)(collate_padded(SAMPLES, CPU, pad_id=2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert mean_loss(model) < before
    return model


@torch.no_grad()
def mean_loss(model: Any) -> float:
    total = float(AnswerLoss(model.eval())(collate_padded(SAMPLES, CPU, pad_id=2)))
    return total / sum(sample.trained_tokens for sample in SAMPLES)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(torch.arange(3, 60)[None], use_cache=False).logits
    return found


@pytest.mark.parametrize(
    ("named", "sharer"),
    [
        (["q_proj", "lm_head"], "lm_head shares its weights with model.embed_tokens"),
        (["embed_tokens"], "model.embed_tokens shares its weights with lm_head"),
        (["lm_head", "embed_tokens"], "model.embed_tokens shares its weights with lm_head"),
    ],
)
def test_t03_an_adapter_on_a_tied_head_or_embedding_is_refused(named: list[str], sharer: str) -> None:
    model = model_of("llama", tie_word_embeddings=True)
    with pytest.raises(InputError, match=rf"target_modules: {sharer}.*leave .* out"):
        adapters.attach_adapter(model, lora(*named))


def test_t03_a_run_with_an_adapter_on_a_tied_head_ends_before_its_first_step(tmp_path: Path) -> None:
    settings = {"rank": 4, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj", "lm_head"]}
    run = Run(tmp_path, lora=settings)
    with pytest.raises(InputError, match="lm_head shares its weights"):
        run.here(tmp_path / "out")
    assert not (tmp_path / "out/final").exists()
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_t03_a_layer_that_two_modules_share_is_refused() -> None:
    model = model_of("llama")
    first, second = (layer.self_attn for layer in model.model.layers)
    second.q_proj = first.q_proj  # one module under two names
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj shares .*layers\.1"):
        adapters.attach_adapter(model, lora("q_proj"))
    model = model_of("llama")
    first, second = (layer.self_attn for layer in model.model.layers)
    second.q_proj.weight = first.q_proj.weight  # two modules, one weight
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj shares .*layers\.1"):
        adapters.attach_adapter(model, lora("q_proj"))


def test_t03_a_block_that_is_used_twice_keeps_its_adapter_and_merges_once() -> None:
    model = model_of("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    adapters.attach_adapter(model, lora("up_proj", "down_proj"))
    before = logits(trained(model))
    adapters.merge_adapters(model)
    assert torch.allclose(logits(model), before, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_t03_merging_all_linear_layers_changes_nothing(name: str, tied: bool) -> None:
    model = adapters.attach_adapter(model_of(name, tie_word_embeddings=tied), ALL_LINEAR)
    assert not any("lm_head" in name or "embed" in name for name, _ in checkpoints.trainable_parameters(model))
    before, loss = logits(trained(model)), mean_loss(model)
    adapters.merge_adapters(model)
    assert torch.allclose(logits(model), before, atol=1e-4)
    assert mean_loss(model) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_t03_an_untied_head_and_embedding_are_trained_and_merged(name: str) -> None:
    model = model_of(name, tie_word_embeddings=False)
    adapters.attach_adapter(model, lora("q_proj", "lm_head", "embed_tokens"))
    names = [name for name, _ in checkpoints.trainable_parameters(model)]
    assert any("lm_head" in name for name in names)
    assert any("embed_tokens" in name for name in names)
    before, loss = logits(trained(model)), mean_loss(model)
    adapters.merge_adapters(model)
    assert torch.allclose(logits(model), before, atol=1e-4)
    assert mean_loss(model) == pytest.approx(loss, rel=1e-6)


def test_a_fused_loss_refuses_a_head_of_which_it_would_read_the_weight_alone() -> None:
    model = model_of("llama", tie_word_embeddings=False)
    assert AnswerLoss(model, functional.cross_entropy).fused
    adapters.attach_adapter(model, lora("lm_head"))
    with pytest.raises(InputError, match=r"train\.fused_loss: false"):
        AnswerLoss(model, functional.cross_entropy)
    model = model_of("llama", tie_word_embeddings=False)
    model.lm_head = nn.Linear(32, 300, bias=True)
    with pytest.raises(InputError, match=r"train\.fused_loss: false"):
        AnswerLoss(model, functional.cross_entropy)
