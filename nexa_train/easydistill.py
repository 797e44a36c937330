"""Run a job file of EasyDistill 1.x: `easydistill --config FILE.json`.

Reads:  the job file (`easydistill_jobs.job.Job`), its instructions and labelled data, for
        `kd_white_box_train_only` its logits file
Writes: `dataset.labeled_path` and `dataset.logits_path` where the job makes them; in
        `training.output_dir` the trained student (safetensors, tokenizer, chat template), and in
        its folder `run/` the training set, preflight report, metrics, checkpoints, manifests, and
        the request journal of an API
Keeps:  every item: trained on whole, counted as without an output, or refused (see the
        preflight); above `training.max_refused_share` of either nothing is trained
Raises: as `train_sft` (65, 66, 3) and, for an API, the client (69, 77); never 0 for a failure

The same job started again continues where it stopped, repeats no request, and does nothing once it
is finished. The loss is on the answer and its end of turn only. One process trains.

Run: easydistill --config configs/kd_black_box_qwen_0_5b.json
"""

import filecmp
import os
import shutil
from collections import deque
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill import collect_teacher
from nexa_distill.console import cli
from nexa_distill.contracts import SFT
from nexa_distill.errors import InputError, ProviderUnusable
from nexa_distill.settings.pipeline import DistillConfig, Storage, load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml, merge_settings, validate_section
from nexa_distill.storage.atomic import replace_atomically, write_json, write_text
from nexa_distill.storage.manifests import StageRun
from nexa_distill.storage.tables import table_writer
from nexa_train import teacher_logits, train_sft
from nexa_train.data.chat_template import fix_template
from nexa_train.data.dataset import load_dataset
from nexa_train.data.instructions import Item, Prompt, item_key, load_prompt, read_items, sft_rows, shipped_prompt
from nexa_train.data.vocabulary import vocabulary_size
from nexa_train.easydistill_jobs import logits_file, teacher_labels
from nexa_train.easydistill_jobs.job import Job, load_job
from nexa_train.models import fallback_chat_template
from nexa_train.models.bundled import resolve_model
from nexa_train.models.loading import context_length, load_for_inference, load_student_tokenizer, load_tokenizer

CONFIGS = Path(__file__).parent / "configs"
SYSTEM_PROMPT = "You are a helpful assistant."  # in API requests of a job without one
KEY, CONFIG = "EASYDISTILL_API_KEY", "config.json"
LOSSES = {"forward_kld": "forward_kl", "reverse_kld": "reverse_kl"}


def run(job: Job) -> Path:
    """Run the job; returns the folder of the trained student. Raises as the module does."""
    output = Path(job.training.output_dir)
    config = pipeline_config(job)
    storage = config.storage
    for name in job.unused_settings:
        print(f"{name} has no effect here", flush=True)
    if job.inference.trust_remote_code:
        print("inference.trust_remote_code has no effect: no code from a checkpoint is run")
    prompt = choose_prompt(job)
    student = student_config(job, storage)
    items = load_labelled_items(job, config, prompt, student.chat_template_date)
    refuse_unanswered(job, items, student.train.max_refused_share)
    dataset = write_dataset(job, items, prompt, storage)
    logits = None
    if job.is_white_box:
        logits = _prepare_logits(job, student, storage, dataset)
    folder = storage.path_of("students") / student.run_name
    train_sft.run(student, storage, dataset, folder, logits=logits)
    publish_student(folder / "final", output)
    print(f"easydistill: {job.job_type}: the student is in {output}", flush=True)
    return output


def pipeline_config(job: Job) -> DistillConfig:
    """The project's settings, with all storage below `output_dir/run`."""
    config = load_config(CONFIGS / "distill_config.yaml")
    root = Path(job.training.output_dir) / "run"
    models = CONFIGS.resolve().parent / config.storage.path_of("models")  # one copy for all jobs
    # All files of a job are below its output folder, except the bundled model.
    storage = {"root": str(root), "models": str(models)}
    return validate_section("job file", merge_settings(config.model_dump(), {"storage": storage}), DistillConfig)


def api_config(job: Job, config: DistillConfig) -> DistillConfig:
    """`config` with the API of the job in place of the pipeline's teacher settings.

    Raises ProviderUnusable (69) if neither the job nor the server names a model.
    """
    ask, prompt = job.inference, Path(config.storage.root) / "system_prompt.txt"
    # The client reads keys from the environment only.
    if ask.api_key:
        os.environ[KEY] = ask.api_key
    write_text(prompt, (ask.system_prompt or SYSTEM_PROMPT) + "\n")
    extra = {"chat_template_kwargs": ask.chat_template_kwargs} if ask.chat_template_kwargs else {}
    provider = config.providers["vllm"].model_dump() | {
        "base_url": ask.base_url,
        "api_key_env": KEY if ask.api_key else None,
        "extra_body": extra,
        "model": job.models.teacher or _first_model(str(ask.base_url), ask.api_key),
    }
    values = merge_settings(
        config.model_dump(),
        {
            "provider": "job",
            "providers": {"job": provider},
            "answers": {"path": None},
            "collection": {
                "max_tokens": ask.max_new_tokens,
                "temperature": ask.temperature,
                "samples": 1,
                "system_prompt_path": str(prompt),
                "teacher_model": None,
                "max_samples": None,
                "batch_api": False,
            },
        },
    )
    # `merge` keeps missing keys, so these two are emptied here.
    values["collection"]["response_schemas"] = values["cleaners"] = {}
    return validate_section("job file", values, DistillConfig)


def _first_model(base_url: str, key: str | None) -> str:
    """The first model that the server lists. Raises ProviderUnusable (69)."""
    from openai import OpenAI, OpenAIError

    try:
        with OpenAI(base_url=base_url, api_key=key or "none", max_retries=2) as client:
            return next(iter(client.models.list())).id
    except (OpenAIError, StopIteration) as error:
        raise ProviderUnusable(f"inference.base_url: {base_url} names no model ({error}); set models.teacher") from None


def choose_prompt(job: Job) -> Prompt:
    """The template of user messages. Raises InputMissing or InputError for `dataset.template`."""
    path = job.dataset.template
    prompt = load_prompt(Path(path)) if path else None
    if path and prompt is None:
        print(f"{path} renders whole conversations and is not used: the model's own chat template is", flush=True)
    return prompt or shipped_prompt("system1")


def load_labelled_items(job: Job, config: DistillConfig, prompt: Prompt, today: date) -> list[Item]:
    """The items of the job; missing outputs come from the teacher, and the file is written.

    `today`: the date in a local teacher's chat template.
    """
    path = Path(job.dataset.labeled_path)
    if not job.has_labelling:
        items = read_items(path)
    else:
        instructions, exists = Path(job.dataset.instruction_path or ""), path.exists()
        # One file can be both the instructions and the labelled data.
        if exists and instructions.resolve() == path.resolve():
            items = read_items(path)
        else:
            items = merge_outputs(read_items(instructions), read_items(path) if exists else [])
        items = teacher_labels.fill_outputs(items, prompt, config.storage, _build_teacher(job, config, today))
        if not exists or items != read_items(path):
            write_json(path, items)
    return items


def refuse_unanswered(job: Job, items: Sequence[Item], max_refused_share: float) -> None:
    """Raises InputError (65) if too many items have no output, or none has one."""
    path = job.dataset.labeled_path
    empty = sum(not item["output"].strip() for item in items)
    if empty == len(items):
        raise InputError(f"{path}: no item has an output; there is nothing to train on")
    if empty > max_refused_share * len(items):
        retry = "raise inference.max_new_tokens, or run this job again to request them"
        raise InputError(
            f"{path}: {empty} of {len(items)} items have no output, at most {max_refused_share:.1%}"
            f" may; {retry if job.has_labelling else 'write them'}, or raise training.max_refused_share"
        )


def merge_outputs(instructions: Sequence[Item], labelled_items: Sequence[Item]) -> list[Item]:
    """The instructions in order, each with a labelled output if there is one; then the unused ones.

    A repeated question takes another output each time, as long as there are any.
    """
    unused: dict[str, deque[Item]] = {}
    for item in labelled_items:
        if item["output"].strip():
            unused.setdefault(item_key(item), deque()).append(item)
    items = []
    for item in instructions:
        outputs = unused.get(item_key(item))
        # An output in the instruction file is not the teacher's and does not count.
        items.append(outputs.popleft() if outputs else item | {"output": ""})
    return items + [item for outputs in unused.values() for item in outputs]


def _build_teacher(job: Job, config: DistillConfig, today: date) -> teacher_labels.AskTeacher:
    if job.job_type == "kd_black_box_api":
        # Failed requests are asked again. The configuration is made only if something is missing.
        return lambda: collect_teacher.run(api_config(job, config), retry_failed=True)
    name, ask = str(job.models.teacher), job.inference
    base = resolve_model(name, config.storage)
    weights = [Path(base)] if Path(base).is_dir() else []
    size = job.training.per_device_train_batch_size or 4
    settings = {
        "name": name,
        "max_new_tokens": ask.max_new_tokens,
        "seed": ask.seed,
        "temperature": ask.temperature,
        "batch_size": size,
        "chat_template_kwargs": ask.chat_template_kwargs,
        "chat_template_date": today.isoformat(),
    }

    def load_teacher() -> tuple[Any, Any]:
        model, tokenizer = load_for_inference(base)
        return model, fix_template(tokenizer, ask.chat_template_kwargs, today)

    return partial(teacher_labels.answer_by_model, load_teacher, settings, config.storage, weights)


def student_config(job: Job, storage: Storage) -> StudentConfig:
    """`configs/baseline_distill.yaml`, overridden by the job."""
    base = load_yaml(CONFIGS / "baseline_distill.yaml", StudentConfig)
    training = job.training
    limits = [training.max_length, job.distillation.max_seq_length if job.is_white_box else None]
    # The stricter limit applies.
    limit = min(filter(None, limits), default=None)
    train = {
        "epochs": training.num_train_epochs, "batch_size": training.per_device_train_batch_size,
        "gradient_accumulation": training.gradient_accumulation_steps, "seed": job.dataset.seed,
        "learning_rate": training.learning_rate, "weight_decay": training.weight_decay,
        "warmup_ratio": training.warmup_ratio, "max_length": limit,
        "save_every_steps": training.save_steps, "eval_every_steps": training.logging_steps,
        "max_refused_share": training.max_refused_share,
    }  # fmt: skip
    values: dict[str, Any] = {
        "run_name": "student",
        "keep_layers": None,
        "student": _student_with_template(job, storage),
        "distillation": {"loss": "none", "on_policy": 0.0},
        "train": {key: value for key, value in train.items() if value is not None},
    }
    if training.chat_template_kwargs is not None:
        values["chat_template_kwargs"] = training.chat_template_kwargs
    if job.is_white_box:
        kd = job.distillation
        chosen = {
            "loss": LOSSES[kd.distillation_type],
            "source": "cache",
            "temperature": 1.0,
            "teacher": job.models.teacher,
            "kd_ratio": kd.kd_ratio,
            "top_k": job.inference.top_logits_num,
        }
        values["distillation"] |= {key: value for key, value in chosen.items() if value is not None}
    return validate_section("job file", merge_settings(base.model_dump(), values), StudentConfig)


def _student_with_template(job: Job, storage: Storage) -> str:
    """The student's base model; without a chat template, a copy with the fallback template."""
    base = resolve_model(job.models.student, storage)
    folder = fallback_chat_template.save_with_fallback_template(base, load_tokenizer(base), Path(storage.root))
    if folder == base:
        return job.models.student
    print(f"{job.models.student} has no chat template: it gets the plain one", flush=True)
    return folder


def write_dataset(job: Job, items: Sequence[Item], prompt: Prompt, storage: Storage) -> Path:
    """The training set (contracts.SFT), sealed."""
    path, labels = storage.path_of("sft_parquet"), Path(job.dataset.labeled_path)
    rows = list(sft_rows(items, prompt, job.models.teacher or labels.name))
    # The rows are settings of the stage: any changed item makes it stale.
    stage = StageRun("packaging", storage, inputs=[labels], settings={"rows": rows})
    if not stage.is_current(path):
        with table_writer(path, SFT) as out:
            out.write(pa.Table.from_pylist(rows, SFT))
        stage.seal_output(path, rows_in=len(items), rejected=len(items) - len(rows))
    return path


def _prepare_logits(job: Job, student: StudentConfig, storage: Storage, dataset: Path) -> Path:
    """The teacher cache: computed and written to the logits file, or read from it."""
    path = Path(job.dataset.logits_path or "")
    names = pq.read_table(dataset, columns=["sample_id"])["sample_id"].to_pylist()
    if job.has_labelling:
        table = teacher_logits.run(student, storage, dataset)
        written = StageRun("logits_file", storage, inputs=[dataset, table], settings={})
        if not written.is_current(path):
            logits_file.write(table, names, path)
            written.seal_output(path, rows_in=len(names), rejected=0, count=len(names))
        return table
    table = storage.path_of("teacher_logits")
    # The same seal as that of a table from `teacher_logits`, so training accepts both.
    stage = StageRun("teacher_logits", storage, inputs=[dataset, path], settings=student.logits_settings())
    if not stage.is_current(table):
        base = resolve_model(student.student, storage)
        tokenizer = load_student_tokenizer(base, student)
        data = load_dataset(dataset, tokenizer, student.longest_row(context_length(base)))
        logits_file.read(path, names, data.train, vocabulary_size(tokenizer), table)
        stage.seal_output(table, rows_in=len(names), rejected=len(names) - len(data.train))
    return table


def publish_student(final: Path, output: Path) -> None:
    """Copy the finished student into `output`."""
    # config.json is removed first and copied last: it exists only beside a complete student.
    files = sorted(final.iterdir(), key=lambda file: file.name == CONFIG)
    copies = [(file, output / file.name) for file in files]
    # Size and time decide: a copy keeps both.
    if all(copy.exists() and filecmp.cmp(file, copy) for file, copy in copies):
        return
    (output / CONFIG).unlink(missing_ok=True)
    for old in output.glob("*.safetensors*"):  # of a student with other shards
        if not (final / old.name).exists():
            old.unlink()
    for file, copy in copies:
        with replace_atomically(copy) as temporary:
            shutil.copy2(file, temporary)


def main() -> None:
    """Command line."""
    parser = cli.build_parser(__doc__, config=Path("job.json"))
    run(load_job(parser.parse_args().config))


def entry() -> None:
    """The command `easydistill`."""
    cli.run(main)


if __name__ == "__main__":
    entry()
