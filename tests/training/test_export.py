import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nexa_train.data.chat_format import chat_format
from nexa_train.data.collate import collate_padded
from nexa_train.data.dataset import load_dataset
from nexa_train.models.loading import load_model, load_tokenizer
from nexa_train.reports import model_card
from nexa_train.training import as_trained, export, student_model
from nexa_train.training import lora as adapters
from nexa_train.training.as_trained import AsTrained
from nexa_train.training.assistant_loss import AnswerLoss
from nexa_train.training.export import ExportRefused
from tests.support.tiny_model import CHATML, save_model
from tests.training.test_train_sft import Run, metrics

ATTACK = "<img src=x onerror=alert(1)>|`[a](javascript:x)`\n# heading\n---"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    run = Run(tmp_path_factory.mktemp("export"))
    assert run.here(run.folder / "output")
    return run, run.folder / "output" / "final"


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def untie(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))


def disturb_one_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def turn_the_heads(folder: Path) -> None:
    """Every weight is there, and the configuration builds another model around them."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 2.0}
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1.0}))


def change_the_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML.replace("You help.", "You do not."))


def end_elsewhere(folder: Path) -> None:
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [0, 2]}))


# What is done to the saved folder, how the proof says it, and a sentence for the documents.
DAMAGE: list[tuple[Callable[[Path], None], str, str]] = [
    (lose_a_weight, "cannot be loaded", "A weight is missing from the file."),
    (untie, "cannot be loaded", "The configuration unties embedding and head."),
    (disturb_one_weight, "the weight model.norm.weight differs", "One weight differs."),
    (turn_the_heads, "its greedy answer to", "The configuration builds another model."),
    (change_the_template, "chat template reads the prompt", "The chat template differs."),
    (end_elsewhere, "generation_config.json ends an answer with",
     "generation_config.json names another end of an answer, as the base model's did."),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "found", "_sentence"), DAMAGE)
def test_a_damaged_save_is_refused_and_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], found: str,
    _sentence: str,
) -> None:  # fmt: skip
    run, prove = Run(tmp_path, epochs=1), export.prove_export

    def damaged(folder: Path, *rest: Any) -> None:
        damage(folder)
        prove(folder, *rest)

    monkeypatch.setattr(export, "prove_export", damaged)
    with pytest.raises(ExportRefused, match=found) as refused:
        run.here(tmp_path / "output")
    assert "run the same command again" in str(refused.value)
    assert not (tmp_path / "output/final").exists()
    assert list((tmp_path / "output").glob("step-*"))
    assert not list(tmp_path.rglob("manifest.json"))
    monkeypatch.undo()
    assert run.here(tmp_path / "output")


# Faults between the training and the save, which change the model in memory too: only a comparison
# with the model as it was trained can see them.


def merge_into_a_shared_weight(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adapters, "_refuse_shared_weights", lambda *_: None)


def leave_the_adapter_out(patch: pytest.MonkeyPatch) -> None:
    merge = adapters.merge_adapters

    def without(model: Any) -> None:
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.zero_()
        merge(model)

    patch.setattr(adapters, "merge_adapters", without)


def merge_twice(patch: pytest.MonkeyPatch) -> None:
    merge = adapters.merge_adapters

    def double(model: Any) -> None:
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.mul_(2)
        merge(model)

    patch.setattr(adapters, "merge_adapters", double)


def cast_too_narrow(patch: pytest.MonkeyPatch) -> None:
    cast = export.to_precision

    def narrow(model: Any) -> None:
        for weight in model.parameters():
            weight.data = weight.data.to(torch.float8_e5m2)
        cast(model)

    patch.setattr(export, "to_precision", narrow)


def change_a_layer(patch: pytest.MonkeyPatch) -> None:
    settle = student_model.undo_compile

    def other(model: Any) -> None:
        settle(model)
        model.model.layers[0].mlp.down_proj.weight.data.mul_(-1)

    patch.setattr(student_model, "undo_compile", other)


LORA = {"rank": 8, "alpha": 64, "dropout": 0.0}
HEAD = LORA | {"target_modules": ["q_proj", "v_proj", "lm_head"]}
ALL = LORA | {"target_modules": "all-linear"}
BEFORE_THE_SAVE: list[tuple[Callable[[pytest.MonkeyPatch], None], Any, str]] = [
    (merge_into_a_shared_weight, HEAD, "An adapter is merged into weights that two modules share."),
    (leave_the_adapter_out, ALL, "The adapter is left out."),
    (merge_twice, ALL, "The adapter is merged twice."),
    (cast_too_narrow, None, "The weights are cast to 8 bits on the way."),
    (change_a_layer, None, "A layer changes between the last step and the save."),
]


@pytest.mark.parametrize(("fault", "lora", "_sentence"), BEFORE_THE_SAVE)
def test_t03_the_export_is_compared_with_the_model_as_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None],
    lora: Any, _sentence: str,
) -> None:  # fmt: skip
    run = Run(tmp_path, epochs=4, learning_rate=0.02, lora=lora)
    fault(monkeypatch)
    with pytest.raises(ExportRefused, match="nats from the model as it was trained"):
        run.here(tmp_path / "output")
    assert not (tmp_path / "output/final").exists()


@pytest.mark.parametrize("lora", [None, ALL])
def test_t03_what_was_measured_in_training_is_what_the_folder_does(tmp_path: Path, lora: Any) -> None:
    run = Run(tmp_path, epochs=4, learning_rate=0.02, lora=lora)
    assert run.here(tmp_path / "output")
    recorded = metrics(tmp_path / "output")[-1]["val_loss"]
    final = str(tmp_path / "output/final")
    data = load_dataset(run.dataset, load_tokenizer(final), 256)
    after = as_trained.row_losses(AnswerLoss(load_model(final)), data.val, partial(collate_padded, pad_id=2))
    tokens = {sample.sample_id: sample.trained_tokens for sample in data.val}
    mean = sum(after[name] * count for name, count in tokens.items()) / sum(tokens.values())
    assert mean == pytest.approx(recorded, abs=export.ALLOWED["mean"])


def test_what_is_saved_answers_as_the_model_in_memory(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    export.to_precision(model)
    copy = tmp_path / "copy"
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    form = chat_format(tokenizer)
    prompts = {"a": [{"role": "user", "content": "Count 1."}]}
    found = export.prove_export(copy, model, form, prompts, AsTrained({}, {}), [])
    assert set(found) == {None}, "what was not compared is no zero"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_proof_asks_conversations_that_were_not_trained_on(trained: tuple[Run, Path]) -> None:
    facts = json.loads((trained[1] / "training.json").read_text())
    differences = facts["proof"].pop("differences")
    assert facts["proof"] == {"rows": 4, "prompts": 4, "tokens": 32, "precision": "bfloat16"}
    assert 0 < differences["row"] < 0.01, "rounding is seen, and is small"
    assert facts["dataset"]["split"] == {"train": 24, "val": 4}
    assert facts["losses"]["val_loss"]["last"] == facts["val_loss"]
    assert facts["losses"]["loss"]["last"] < facts["losses"]["loss"]["first"]


def front_matter(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_card_says_what_is_known_and_that_nothing_was_scored(trained: tuple[Run, Path]) -> None:
    run, final = trained
    text = (final / "README.md").read_text()
    head = front_matter(text)
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-generation"
    assert not {"license", "base_model"} & head.keys()  # a local folder that says neither
    assert "Not evaluated yet" in text
    facts = json.loads((final / "training.json").read_text())
    assert all(item["sha256"] in text for item in facts["inputs"])
    assert facts["samples_sha256"] in text
    assert f"Trained on {facts['train_samples']} of them, 0 were refused." in text
    assert str(run.folder) not in text


def test_a_licence_is_taken_from_the_base_models_card_and_never_guessed(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for said, expected in [("license: mit", "mit"), ("license: [a, b]", None), ("a: [", None)]:
        readme.write_text(f"---\n{said}\n---\ntext\n")
        assert model_card._read_license(readme) == expected
    assert model_card._base_model_facts("bundled")["license"] == "apache-2.0"
    assert model_card._base_model_facts("org/model") == {"base_model": "org/model", "license": None}


def test_names_from_data_cannot_become_markdown(trained: tuple[Run, Path]) -> None:
    facts = json.loads((trained[1] / "training.json").read_text())
    for key in ("domain", "template_name", "model_id"):
        facts["dataset"][key] = {ATTACK: 3}
    text = model_card.render_card(facts | {"run_name": ATTACK}, None)
    assert front_matter(text)["library_name"] == "transformers"
    assert "\n# heading" not in text
    rows = [line for line in text.splitlines() if "onerror" in line and line.startswith("|")]
    assert len(rows) == 3
    assert all(row.count("|") - row.count("\\|") == 3 for row in rows)
    assert all("`` <img" in row for row in rows)
