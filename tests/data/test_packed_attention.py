"""Packed attention is the model's own: what another class computes, and what the proof finds.

Every model is real and tiny, with weights so large that what is special in its attention matters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import eager_attention_forward

from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train.data import packing
from nexa_train.data.chat_tokenization import IGNORE, Sample
from nexa_train.data.collate import make_collate
from nexa_train.data.dataset import load_dataset
from nexa_train.training import student_model
from nexa_train.training.assistant_loss import AnswerLoss
from tests.support.tiny_model import save_dataset, tokenizer
from tests.training.test_distillation import Distilled
from tests.training.test_on_policy import OnPolicy
from tests.training.test_train_sft import Run, losses, metrics

CPU = torch.device("cpu")
COMMON = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256,
}  # fmt: skip
LAYERS = ["sliding_attention", "full_attention"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "mistral": ("MistralConfig", {"sliding_window": 16}),
    # This class hands its attention no window: the proof finds it where a sample is longer.
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
         "sliding_window": 16, "use_sliding_window": True, "layer_types": LAYERS},
    ),
    "gemma2": (
        "Gemma2Config",
        {"attn_logit_softcapping": 1.0, "sliding_window": 16, "query_pre_attn_scalar": 2,
         "layer_types": LAYERS},
    ),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 64, "layer_types": LAYERS}),
    "bidirectional": (
        "Gemma3TextConfig",
        {"sliding_window": 64, "layer_types": LAYERS, "use_bidirectional_attention": True},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {"sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
         "layer_types": LAYERS},
    ),
    "granite": ("GraniteConfig", {"attention_multiplier": 1.0}),
    "llama4": (
        "Llama4TextConfig",
        {"attention_chunk_size": 16, "intermediate_size_mlp": 64, "num_local_experts": 2,
         "layer_types": ["chunked_attention", "full_attention"]},
    ),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "attn_pdrop": 0.0,
         "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
    "mamba2": (
        "Mamba2Config",
        {"hidden_size": 32, "head_dim": 16, "num_heads": 4, "state_size": 8, "n_groups": 1,
         "num_hidden_layers": 2},
    ),
}  # fmt: skip
PACKED_LIKE_ALONE = ["llama", "qwen2", "mistral", "gemma2", "gemma3", "gpt_oss", "granite", "gpt2"]


def model_of(name: str, **changed: Any) -> Any:
    """A model of that class with attention weights that tell its tokens apart."""
    torch.manual_seed(0)
    kind, special = MODELS[name]
    tokens = {key: COMMON[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    common = tokens if kind in ("GPT2Config", "Mamba2Config") else COMMON
    config = getattr(transformers, kind)(**(common | special | changed))
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for name, weight in model.named_parameters():
        if "sinks" in name:
            torch.nn.init.constant_(weight, 6.0)
        elif any(part in name for part in ("q_proj.weight", "k_proj.weight", "c_attn.weight")):
            torch.nn.init.normal_(weight, std=0.5)
        elif any(part in name for part in ("v_proj.weight", "o_proj.weight", "wpe")):
            torch.nn.init.normal_(weight, std=0.2)
    return model


def sample(length: int, seed: int) -> Sample:
    ids = torch.randint(3, 300, (length,), generator=torch.manual_seed(seed)).tolist()
    return Sample(f"s{seed}", ids, [IGNORE, *ids[1:]])


SAMPLES = [sample(length, seed) for seed, length in enumerate((5, 100, 1, 30, 16, 17))]
PROMPT = sample(packing.SHORTEST_PREFIX + 9, 50).input_ids


def question(length: int, seed: int) -> Sample:
    """PROMPT, a prompt of its own, and two trained tokens."""
    ids = [*PROMPT, *sample(length, seed).input_ids]
    return Sample(f"q{seed}", ids, [IGNORE] * (len(ids) - 2) + ids[-2:])


QUESTIONS = [question(length, seed) for seed, length in enumerate((5, 60, 3, 30))]


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def loss_and_gradients(
    model: Any, *, packed: bool, samples: Sequence[Sample] = SAMPLES
) -> tuple[float, dict[str, torch.Tensor]]:
    batch_of = make_collate(model, tokenizer(), samples, packed=packed)
    batch = batch_of(samples, CPU)
    assert ("cu_seq_lens_k" in batch) == (packed and samples is QUESTIONS)
    model.train()
    loss = AnswerLoss(model)(batch) / sum(s.trained_tokens for s in samples)
    loss.backward()
    return float(loss.detach()), {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("name", PACKED_LIKE_ALONE)
def test_t10_t11_loss_and_gradients_are_those_of_the_models_own_padded_attention(name: str) -> None:
    padded, expected = loss_and_gradients(model_of(name), packed=False)
    packed, gradients = loss_and_gradients(model_of(name), packed=True)
    assert packed == pytest.approx(padded, rel=1e-6)
    assert gradients.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert torch.allclose(gradients[weight], gradient, atol=1e-5, rtol=1e-3), weight


@pytest.mark.parametrize("name", PACKED_LIKE_ALONE)
def test_behind_a_shared_prefix_loss_and_gradients_are_those_of_whole_samples(name: str) -> None:
    padded, expected = loss_and_gradients(model_of(name), packed=False, samples=QUESTIONS)
    packed, gradients = loss_and_gradients(model_of(name), packed=True, samples=QUESTIONS)
    assert packed == pytest.approx(padded, rel=1e-6)
    assert gradients.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert torch.allclose(gradients[weight], gradient, atol=1e-5, rtol=1e-3), weight


def test_t10_gradient_checkpointing_keeps_the_models_own_attention() -> None:
    padded, expected = loss_and_gradients(model_of("gemma2"), packed=False)
    model = model_of("gemma2")
    model.activation_checkpointing_enable({"use_reentrant": False})
    packed, gradients = loss_and_gradients(model, packed=True)
    assert packed == pytest.approx(padded, rel=1e-6)
    for weight, gradient in expected.items():
        assert torch.allclose(gradients[weight], gradient, atol=1e-5, rtol=1e-3), weight


@pytest.mark.slow
@torch.no_grad()  # the backward pass takes minutes to compile
def test_t10_compiled_layers_keep_the_models_own_attention(tmp_path: Path) -> None:
    changed = {"num_hidden_layers": 1, "layer_types": LAYERS[:1]}
    padded = model_of("gemma2", **changed).eval()
    expected = AnswerLoss(padded)(make_collate(padded, tokenizer(), SAMPLES, packed=False)(SAMPLES, CPU))
    model = model_of("gemma2", **changed).eval()
    settings = load_yaml(Run(tmp_path).config, StudentConfig).train
    student_model.apply_speed_options(model, settings.model_copy(update={"compile": True}))
    found = AnswerLoss(model)(make_collate(model, tokenizer(), SAMPLES, packed=True)(SAMPLES, CPU))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_suspended_gives_back_the_attention_that_was_there(name: str) -> None:
    model = model_of(name)
    own = model.config._attn_implementation
    with packing.suspend_packing(model):
        assert model.config._attn_implementation == own
    assert model.config._attn_implementation == own
    packing.enable_packing(model)
    packed = model.config._attn_implementation
    with packing.suspend_packing(model):
        assert model.config._attn_implementation == own
    assert model.config._attn_implementation == packed != own


def test_attention_that_cannot_be_cut_into_samples_is_refused() -> None:
    model = model_of("llama")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(InputError, match=r"flex_attention.*sdpa or eager.*train\.packing: false"):
        packing.enable_packing(model)


@pytest.mark.parametrize("name", ["bidirectional", "llama4", "qwen2_moe", "mamba2"])
def test_layers_that_look_at_tokens_in_another_way_are_refused_before_the_first_step(name: str) -> None:
    with pytest.raises(InputError, match=r"differs by.*train\.packing: false"):
        make_collate(model_of(name), tokenizer(), SAMPLES, packed=True)


@pytest.mark.parametrize("name", ["llama4", "qwen2_moe"])
def test_a_chunk_or_window_that_no_sample_exceeds_is_no_reason_to_refuse(name: str) -> None:
    short, totals = [sample(length, length) for length in (3, 16, 9)], []
    for packed in (True, False):
        model = model_of(name)
        batch = make_collate(model, tokenizer(), short, packed=packed)(short, CPU)
        totals.append(float(AnswerLoss(model)(batch).detach()))
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)


def test_a_validation_sample_longer_than_any_for_training_is_part_of_the_proof(tmp_path: Path) -> None:
    run = Run(tmp_path)
    save_dataset(run.dataset, train=4)  # the fifth sample, of the validation split, is the longest
    data = load_dataset(run.dataset, tokenizer(), 256)
    longest = max(len(sample.input_ids) for sample in data.train)
    assert max(len(sample.input_ids) for sample in data.val) > longest
    changed = {"num_hidden_layers": 4, "layer_types": LAYERS * 2, "sliding_window": longest}
    save(model_of("qwen2_moe", **changed), run.model)
    with pytest.raises(InputError, match=r"train\.packing: false"):
        run.here(tmp_path / "out")


@dataclass(frozen=True)
class Mutation:
    """One way in which packed attention could differ from the model's own."""

    sentence: str
    model: str
    apply: Callable[[Any, pytest.MonkeyPatch], None]


def without(**named: Any) -> Callable[[Any, pytest.MonkeyPatch], None]:
    """Packed attention that replaces an argument of the model."""

    def apply(_model: Any, _monkeypatch: pytest.MonkeyPatch) -> None:
        packing.register_attention(lambda *given, **own: packing.attend_per_sample(*given, **(own | named)))

    return apply


def with_input(**named: Callable[[torch.Tensor], Any]) -> Callable[[Any, pytest.MonkeyPatch], None]:
    """A packed batch of which the model reads another input."""

    def apply(model: Any, _monkeypatch: pytest.MonkeyPatch) -> None:
        def change(_: Any, given: Any, own: dict[str, Any]) -> Any:
            if "cu_seq_lens_q" in own:
                own |= {name: made(own["input_ids"]) for name, made in named.items()}
            return given, own

        model.base_model.register_forward_pre_hook(change, with_kwargs=True)

    return apply


def with_plain_attention(_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_original_attention", lambda _: (eager_attention_forward, "eager"))


def causal_mask(ids: torch.Tensor) -> torch.Tensor:
    """As of a padded row: (1, 1, tokens, tokens), each token sees all before it."""
    size = ids.shape[1]
    return torch.full((1, 1, size, size), torch.finfo(torch.float32).min).triu(1)


MUTATIONS = {
    "soft_cap": Mutation(
        "The soft cap on attention scores is dropped (Gemma 2).", "gemma2", without(softcap=None)
    ),
    "sinks": Mutation(
        "The attention sinks are dropped (gpt-oss).", "gpt_oss", with_plain_attention
    ),
    "window_eager": Mutation(
        "A sample longer than the sliding window is attended to whole, in eager attention "
        "(Gemma 2).", "gemma2", without(sliding_window=None),
    ),
    "window_sdpa": Mutation(
        "A sample longer than the sliding window is attended to whole, in sdpa (Mistral).",
        "mistral", without(sliding_window=None),
    ),
    "neighbour": Mutation(
        "A sample sees the samples before it in the row.", "llama", without(cu_seq_lens_q=None)
    ),
    "positions": Mutation(
        "The positions of a sample begin where the one before it ends (absolute positions, GPT-2).",
        "gpt2", with_input(position_ids=lambda ids: torch.arange(ids.shape[1])[None]),
    ),
    "scaling": Mutation(
        "Scores are scaled by the head size, whatever the model asks for (Granite).", "granite",
        without(scaling=None),
    ),
    "mask": Mutation(
        "The mask of a padded row is handed in.", "llama", with_input(attention_mask=causal_mask)
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    yield
    packing.register_attention(packing.attend_per_sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MUTATIONS)
def test_t10_the_proof_finds(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = MUTATIONS[name]
    model = model_of(mutation.model).to(dtype)
    packing.enable_packing(model)
    packing.prove_isolation(model, SAMPLES)  # nothing is refused before the mutation
    mutation.apply(model, monkeypatch)
    with pytest.raises(InputError, match=r"train\.packing: false"):
        packing.prove_isolation(model, SAMPLES)


def gemma2_run(made: Run) -> Run:
    """The run with a Gemma 2 student, whose own attention is eager and capped."""
    save(model_of("gemma2", num_hidden_layers=4, layer_types=LAYERS * 2), made.model)
    return made


def test_t10_what_is_measured_in_training_is_what_the_exported_model_computes(tmp_path: Path) -> None:
    run = gemma2_run(Run(tmp_path, epochs=1))
    assert run.here(tmp_path / "out")
    packed = metrics(tmp_path / "out")[-1]["val_loss"]
    run = gemma2_run(Run(tmp_path / "padded", epochs=1, packing=False))
    assert run.here(tmp_path / "padded/out")
    assert packed == pytest.approx(metrics(tmp_path / "padded/out")[-1]["val_loss"], rel=1e-3)


def test_t10b_a_gemma_2_student_answers_on_policy_and_is_packed(tmp_path: Path) -> None:
    run = gemma2_run(OnPolicy(tmp_path, {"epochs": 1}))
    assert run.here(tmp_path / "out")
    model = student_model.build_student(load_yaml(run.config, StudentConfig), str(run.model))
    assert model.config._attn_implementation == "eager"


def test_t10_an_online_teacher_with_soft_caps_teaches_the_same_packed_and_padded(tmp_path: Path) -> None:
    curves = []
    for packed in (True, False):
        train = {"epochs": 1, "packing": packed}
        run = Distilled(tmp_path / str(packed), train, source="online", kd_ratio=1.0)
        save(model_of("gemma2"), run.teacher)
        assert run.here(run.folder / "out")
        curves.append(losses(run.folder / "out"))
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
