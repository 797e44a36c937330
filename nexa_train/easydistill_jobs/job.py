"""Job files of EasyDistill 1.x (JSON), typed. Unknown keys are refused by name.

A missing value comes from `configs/baseline_distill.yaml`.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.settings.yaml_loading import Count, NonNegative, Section, Share, validate_section
from nexa_train.data.instructions import read_json

JobType = Literal[
    "kd_black_box_api", "kd_black_box_local", "kd_black_box_train_only", "kd_white_box", "kd_white_box_train_only"
]
# Settings of other inference engines: accepted, without effect.
UNUSED = ("enable_chunked_prefill", "gpu_memory_utilization", "enforce_eager", "stream", "max_model_len")
# The required keys of each type of job.
NEEDS = {
    "kd_black_box_api": ("dataset.instruction_path", "inference.base_url"),
    "kd_black_box_local": ("dataset.instruction_path", "models.teacher"),
    "kd_black_box_train_only": (),
    "kd_white_box": ("dataset.instruction_path", "dataset.logits_path", "models.teacher"),
    "kd_white_box_train_only": ("dataset.logits_path",),
}


class JobDataset(Section):
    """`template`: a Jinja file over `instruction` and `input` that renders the user message."""

    labeled_path: str
    instruction_path: str | None = None
    logits_path: str | None = None
    template: str | None = None
    seed: int | None = None


class Inference(Section):
    """How the teacher answers: by an API (`base_url`), or as a local model.

    `chat_template_kwargs`: variables of its chat template, such as {"enable_thinking": false}.
    """

    base_url: str | None = None
    api_key: str | None = Field(default=None, repr=False)
    system_prompt: str | None = None
    stream: bool | None = None
    enable_chunked_prefill: bool | None = None
    enforce_eager: bool | None = None
    gpu_memory_utilization: Share | None = None
    trust_remote_code: bool | None = None
    seed: int = 0
    temperature: float = Field(default=0.8, ge=0, le=2)
    max_model_len: Count | None = None
    max_new_tokens: Count = 512
    top_logits_num: Count | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class JobModels(Section):
    """Hugging Face ids, local folders, or `bundled`."""

    student: str
    teacher: str | None = None


class JobDistillation(Section):
    """Of white-box jobs: `loss = (1 - kd_ratio) CE + kd_ratio KL`."""

    kd_ratio: float | None = Field(default=None, ge=0, le=1)
    max_seq_length: Count | None = None
    distillation_type: Literal["forward_kld", "reverse_kld"] = "forward_kld"


class JobTraining(Section):
    """Settings of the training; `chat_template_kwargs` are for the student's template.

    `max_refused_share`: 0..1 of the items may have no output, or be refused by the preflight.
    """

    output_dir: str
    num_train_epochs: Count | None = None
    per_device_train_batch_size: Count | None = None
    gradient_accumulation_steps: Count | None = None
    max_length: Count | None = None
    save_steps: Count | None = None
    logging_steps: Count | None = None
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: NonNegative | None = None
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    lr_scheduler_type: Literal["cosine"] = "cosine"
    max_refused_share: Share | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Job(Section):
    """One job file."""

    job_type: JobType
    dataset: JobDataset
    inference: Inference = Inference()
    models: JobModels
    distillation: JobDistillation = JobDistillation()
    training: JobTraining

    @property
    def is_white_box(self) -> bool:
        """Whether the student learns from the teacher's probabilities."""
        return self.job_type.startswith("kd_white_box")

    @property
    def has_labelling(self) -> bool:
        """Whether the teacher writes outputs before the training."""
        return not self.job_type.endswith("train_only")

    @property
    def unused_settings(self) -> list[str]:
        """Settings of the file that have no effect here."""
        return [f"inference.{name}" for name in UNUSED if getattr(self.inference, name) is not None]


def load_job(path: Path) -> Job:
    """The job of a file. Raises InputMissing (66), or InputError (65) naming the key."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: found {type(values).__name__}, expected an object")
    _refuse_other_type(path, values.get("job_type"))
    job = validate_section(str(path), values, Job)
    for need in NEEDS[job.job_type]:
        section, name = need.split(".")
        if getattr(getattr(job, section), name) is None:
            raise InputError(f"{path}: missing key {need}; a job of type {job.job_type} needs it")
    return job


def _refuse_other_type(path: Path, job_type: Any) -> None:
    types = get_args(JobType)
    if job_type not in types:
        near = did_you_mean(str(job_type), types)
        raise InputError(f"{path}: job_type is {job_type!r}{near}; the types that run here: {', '.join(types)}")
