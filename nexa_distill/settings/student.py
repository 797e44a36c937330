"""`configs/baseline_distill.yaml`, typed: one student run."""

import argparse
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from nexa_distill.settings.pipeline import DistillConfig, Storage, load_config
from nexa_distill.settings.tasks import load_system_prompts
from nexa_distill.settings.yaml_loading import Count, NonNegative, Section, Share, load_yaml, refuse_value

RENDERING = {"chat_template_kwargs", "chat_template_date"}
# Names that transformers itself passes to a template.
RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}


class Lora(Section):
    """`train.lora:` an adapter that is trained in place of the model."""

    rank: Count
    alpha: Count
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str]  # linear layers; `all-linear` = all but the output embedding


class Training(Section):
    """`train:` of a student run. A step is one optimizer step."""

    epochs: Count
    batch_size: Count
    packing: bool
    gradient_accumulation: Count
    learning_rate: float = Field(gt=0)
    warmup_ratio: float = Field(ge=0, le=1)
    weight_decay: NonNegative
    max_grad_norm: float = Field(gt=0)
    max_length: Count | None  # null = as long as the longest row, if the model's context allows it
    max_refused_share: Share  # of the rows; above it the preflight stops the training
    lora: Lora | None  # null = the whole model is trained
    precision: Literal["auto", "bf16", "fp32"]  # of the computation; auto = bf16 where the hardware has it
    gradient_checkpointing: bool
    compile: bool
    fused_loss: bool
    seed: int
    save_every_steps: Count
    eval_every_steps: Count


class Distillation(Section):
    """`distillation:` training on the teacher's probabilities, not only on its answers."""

    loss: Literal["none", "forward_kl", "reverse_kl", "jensen_shannon"]  # none = supervised only
    source: Literal["cache", "online"]
    teacher: str
    kd_ratio: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    top_k: Count  # of the source `cache` only
    on_policy: Share  # share of the batches with the student's own answers
    sampling_temperature: float = Field(gt=0)  # of these answers

    @field_validator("on_policy")
    @classmethod
    def _needs_a_teacher_at_hand(cls, share: float, others: ValidationInfo) -> float:
        online = others.data.get("loss") != "none" and others.data.get("source") == "online"
        if share and not online:
            refuse_value(
                "the student's own answers have no cached teacher probabilities; set "
                "distillation.source: online and distillation.loss to a divergence, or "
                "on_policy: 0.0"
            )
        return share

    @property
    def uses_cache(self) -> bool:
        return self.loss != "none" and self.source == "cache"


class Generation(Section):
    """`generate:` held-out answers of a student."""

    split: Literal["val", "test"]
    max_new_tokens: Count
    temperature: float = Field(ge=0, le=2)
    batch_size: Count
    max_prompts: Count | None  # null = all of the split


class StudentConfig(Section):
    """`configs/baseline_distill.yaml`: one student run.

    Paths are in the pipeline's file, `--pipeline-config configs/distill_config.yaml` (`storage:`).
    The finished checkpoint is at `<storage.students>/<run_name>/final`, with a manifest.
    """

    shipped: ClassVar[str | None] = "baseline_distill.yaml"
    run_name: str
    student: str
    keep_layers: list[int] | None  # indices of the decoder layers that the student keeps; null = all
    chat_template_kwargs: dict[str, Any]  # variables of the chat template
    chat_template_date: date  # its current date
    train: Training
    distillation: Distillation
    generate: Generation

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_variables(cls, variables: dict[str, Any]) -> dict[str, Any]:
        for name in variables:
            if not name.isidentifier() or name in RESERVED:
                refuse_value(
                    f"{name} is no variable of a chat template that can be set; write names such as "
                    "enable_thinking (for the date: chat_template_date)"
                )
        return variables

    def training_settings(self) -> dict[str, Any]:
        """The settings that determine the checkpoint; those of speed and memory do not."""
        parts = {"student", "keep_layers", "train", *RENDERING}
        if self.distillation.loss != "none":
            parts.add("distillation")
        speed = {"max_refused_share", "gradient_checkpointing", "compile", "fused_loss"}
        if self.train.precision == "auto":  # then the hardware decides, which is no setting
            speed.add("precision")
        return self.model_dump(mode="json", include=parts, exclude={"train": speed})

    def logits_settings(self) -> dict[str, Any]:
        """The settings that, with the training set, determine the cached teacher probabilities."""
        own = self.distillation.model_dump(include={"teacher", "temperature", "top_k"})
        limit = {"student": self.student, "max_length": self.train.max_length}
        return own | limit | self.rendering_settings()

    def rendering_settings(self) -> dict[str, Any]:
        """The settings that, with the tokenizer, determine the text of a conversation."""
        return self.model_dump(mode="json", include=RENDERING)

    def longest_row(self, context: int | None) -> int | None:
        """Most tokens of a row in training and evaluation; `context`: the model's maximum."""
        return self.train.max_length or context

    def generation_settings(self, config: DistillConfig, cleaner: dict[str, Any]) -> dict[str, Any]:
        """The settings that, with prompts and checkpoint, determine the held-out answers.

        `cleaner`: the settings that extract the answer from the student's reply.
        """
        system = load_system_prompts(config).relevant_settings
        parts = {"student", "keep_layers", "generate", *RENDERING}
        own = self.model_dump(mode="json", include=parts)
        return {**own, "system_prompt": system, **cleaner}

    def find_tokenizer(self, storage: Storage) -> Path | None:
        """The `tokenizer.json` of `student`, if it is on this disk already."""
        # The bundled model is built in `storage.models`.
        is_bundled = self.student == "bundled"
        files = list(storage.path_of("models").glob("*/tokenizer.json")) if is_bundled else []
        for file in [*files, Path(self.student) / "tokenizer.json"]:
            if file.is_file() and not file.parent.name.startswith("."):
                return file
        return None

    def checkpoint_path(self, storage: Storage) -> Path:
        return storage.path_of("students") / self.run_name / "final"

    def metrics_path(self, storage: Storage) -> Path:
        """The figures of each step of the training."""
        return storage.path_of("students") / self.run_name / "metrics.jsonl"


def load_both(arguments: argparse.Namespace) -> tuple[DistillConfig, StudentConfig]:
    """The two files that the options of `cli.build_student_parser` name. Raises as `load_yaml`."""
    return load_config(arguments.pipeline_config), load_yaml(arguments.config, StudentConfig)
