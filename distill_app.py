"""Two distillations in a few calls: System 1 answers directly, System 2 shows its reasoning.

    import distill_app
    distill_app.prepare_system1_dataset("train[:1000]")
    folder = distill_app.distill_system1({"num_epochs": 1})
    model, tokenizer = distill_app.load_student(folder)
    print(distill_app.infer_student(model, tokenizer, "Why is the sky blue?"))

Thin functions over `nexa_train`: they write a job file and run `easydistill --config FILE`. A model
is a Hugging Face id (gated ones need HF_TOKEN or a local login), a local folder, or `bundled`, the
one that ships with the install. Data files are lists of objects with `instruction`, `input` and
`output`. Paths are relative to the current directory. Every text is rendered by the model's own
chat template; models without one get a plain `User: ... Assistant:` one.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputError, NexaError
from nexa_distill.settings.pipeline import load_config
from nexa_distill.storage.atomic import write_json
from nexa_distill.text.reasoning import join_reasoning
from nexa_train.data import hub_datasets
from nexa_train.data import instructions as data
from nexa_train.data.instructions import Mode, format_prompt
from nexa_train.models import replies
from nexa_train.models.bundled import resolve_model
from nexa_train.models.fallback_chat_template import add_fallback_template
from nexa_train.models.loading import context_length, load_for_inference, load_quantised

__all__ = [
    "compare_models", "distill_system1", "distill_system2", "format_prompt", "infer_student",
    "label_with_teacher", "load_student", "load_teacher", "prepare_system1_dataset",
    "prepare_system2_dataset", "read_json", "run_easy_distill", "save_json",
    "write_system1_config", "write_system2_config",
]  # fmt: skip
ROOT = Path(__file__).resolve().parent
TEACHER = "Qwen/Qwen2.5-7B-Instruct"
LEARNING_RATE = 2e-5  # for models with all their layers; a pruned one takes ten times as much
TEACHER_SAMPLING: dict[str, Any] = {"batch_size": 2, "max_new_tokens": 256, "temperature": 0.8, "top_p": 0.9}
SHOWN_CHARACTERS = 300  # characters of the teacher's answer in a comparison
Items = list[dict[str, str]]


# Data


def save_json(path: str | Path, data_: Any) -> None:
    """Write UTF-8 JSON, non-ASCII kept readable; its folder is created."""
    write_json(Path(path), data_)


def read_json(path: str | Path) -> Any:
    """Read UTF-8 JSON. Raises InputMissing or InputError."""
    return data.read_json(Path(path))


def prepare_system1_dataset(
    slice_str: str = "train[:1000]",
    teacher_model: Any = None,
    teacher_tokenizer: Any = None,
    relabel_with_teacher: bool = False,
    out_instructions: str = "data/train_instructions.json",
    out_labeled: str = "data/train_labeled.json",
    source: str = "alibaba-pai/DistilQwen_100k",
) -> None:
    """Write instructions and labelled items from a dataset with `instruction` and `output`.

    `slice_str`: a split with a slice, as `datasets` reads it. `source`: a hub id, a local folder or
    file. With `relabel_with_teacher` the outputs are those of the given teacher.
    Raises InputError for other columns, or a missing teacher.
    """
    items = hub_datasets.instruction_items(source, slice_str)
    if not items:
        print("No data for System 1 distillation")
        return
    instructions = [{**item, "output": ""} for item in items]
    if relabel_with_teacher:
        if teacher_model is None or teacher_tokenizer is None:
            raise InputError(
                "relabel_with_teacher needs teacher_model and teacher_tokenizer: load_teacher(NAME) gives both"
            )
        answers = _generate_replies(teacher_model, teacher_tokenizer, instructions, **TEACHER_SAMPLING)
        # A cut answer would teach the student to stop there: it stays empty for another request.
        items = [
            item | {"output": reply.text if reply.ended else ""}
            for item, reply in zip(instructions, answers, strict=True)
        ]
    save_json(out_instructions, instructions)
    save_json(out_labeled, items)


def prepare_system2_dataset(
    slice_str: str = "train[:2000]",
    rv_min: float = 0.6,
    cd_min: float = 0.6,
    out_cot: str = "data/omnithought_cot.json",
    source: str = "alibaba-pai/OmniThought",
) -> None:
    """Write items whose output is a chain of thought, from data in OmniThought's schema.

    The first chain of each question with at least `rv_min` reasoning verbosity and `cd_min`
    cognitive difficulty is kept; both are shares of 10, the highest level (arXiv:2505.10937).
    """
    items = hub_datasets.reasoning_items(source, slice_str, rv_min, cd_min)
    if items is None:
        print("Unexpected OmniThought schema, please inspect omni[0]")
    elif not items:
        print("No data for System 2 distillation")
    else:
        save_json(out_cot, items)


# Models


def load_teacher(model_name: str) -> tuple[Any, Any]:
    """(model, tokenizer), in 8 bits with a GPU and bitsandbytes. Raises InputError."""
    model, tokenizer = load_quantised(_resolve_model(model_name))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, add_fallback_template(tokenizer)


def load_student(model_path: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a local checkpoint. Raises InputError."""
    model, tokenizer = load_for_inference(_resolve_model(model_path))
    return model, add_fallback_template(tokenizer)


def infer_student(model: Any, tokenizer: Any, prompt: str, mode: Mode = "system1", max_new_tokens: int = 256) -> str:
    """The assistant's reply to `prompt`, greedy. System 1: the answer without reasoning. System 2: the full text."""
    (reply,) = _generate_replies(model, tokenizer, [{"instruction": prompt}], mode, max_new_tokens=max_new_tokens)
    return reply.text if mode == "system1" else reply.full_text


def label_with_teacher(
    teacher_model: Any,
    teacher_tokenizer: Any,
    items: Sequence[Mapping[str, str]],
    batch_size: int = 2,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 0.9,
    mode: Mode = "system1",
) -> Items:
    """The items with `output` filled by the teacher, in order; the same seed every time.

    An answer is cut at `max_new_tokens`. System 1: the output is the answer alone, empty if the
    reasoning took all tokens. System 2: the reasoning in <think> tags before the answer; without
    one of them the full text.
    """
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    answers = _generate_replies(teacher_model, teacher_tokenizer, items, mode, batch_size=batch_size, **sampling)
    return [{**item, "output": _item_output(reply, mode)} for item, reply in zip(items, answers, strict=True)]


def _item_output(reply: replies.Reply, mode: Mode) -> str:
    if mode == "system1":
        return reply.text
    both = reply.reasoning and reply.text
    return join_reasoning(reply.reasoning or "", reply.text) if both else reply.full_text


def _generate_replies(
    model: Any, tokenizer: Any, items: Sequence[Mapping[str, str]], mode: Mode = "system1", **sampling: Any
) -> list[replies.Reply]:
    prompts = [format_prompt(item["instruction"], item.get("input") or "", mode) for item in items]
    return replies.generate_replies(model, tokenizer, prompts, **sampling)


def compare_models(
    prompts: Sequence[str],
    teacher_path: str = TEACHER,
    system1_path: str = "./distilled-qwen2.5-0.5b",
    system2_path: str = "./distilled-qwen2.5-1.5b-cot",
    teacher_model: Any = None,
    teacher_tokenizer: Any = None,
    sys1_model: Any = None,
    sys1_tokenizer: Any = None,
    sys2_model: Any = None,
    sys2_tokenizer: Any = None,
    max_tokens_teacher: int = 256,
    max_tokens_sys1: int = 256,
    max_tokens_sys2: int = 256,
) -> None:
    """Print the replies of teacher and students to each prompt; given models are not loaded again.

    A model that cannot be loaded is skipped with "Model not found at PATH".
    """
    models: list[tuple[str, str, Any, Any, Mode, int]] = [
        ("Teacher", teacher_path, teacher_model, teacher_tokenizer, "system1", max_tokens_teacher),
        ("System 1 student", system1_path, sys1_model, sys1_tokenizer, "system1", max_tokens_sys1),
        ("System 2 student", system2_path, sys2_model, sys2_tokenizer, "system2", max_tokens_sys2),
    ]
    replies_of: dict[str, list[str]] = {}
    for name, path, model, tokenizer, mode, limit in models:
        if model is None or tokenizer is None:
            try:
                model, tokenizer = load_teacher(path) if name == "Teacher" else load_student(path)
            except NexaError:
                print(f"Model not found at {path}")
                continue
        replies_of[name] = [infer_student(model, tokenizer, text, mode, limit) for text in prompts]
        del model, tokenizer  # one model in memory at a time
    for number, text in enumerate(prompts):
        print(f"\nPrompt: {text}")
        for name, answers in replies_of.items():
            answer = answers[number]
            short = name == "Teacher" and len(answer) > SHOWN_CHARACTERS
            print(f"{name}: {answer[:SHOWN_CHARACTERS] + ' ...' if short else answer}")


# Jobs


def write_system1_config(
    labeled_path: str = "data/train_labeled.json",
    out_dir: str = "./distilled-qwen2.5-0.5b",
    teacher_model: str = TEACHER,
    student_model: str = "Qwen/Qwen2.5-0.5B-Instruct",
    num_epochs: int = 1,
    config_path: str = "configs/kd_black_box_qwen_0_5b.json",
    instruction_path: str | None = None,
) -> str:
    """Write a job in which the teacher fills empty outputs; returns its path.

    Without `instruction_path` the instructions are those of the labelled file.
    """
    instructions = instruction_path or labeled_path
    dataset = {"instruction_path": instructions, "labeled_path": labeled_path}
    models = {"teacher": teacher_model, "student": student_model}
    return _write_job("kd_black_box_local", dataset, models, out_dir, num_epochs, config_path)


def write_system2_config(
    labeled_path: str = "data/omnithought_cot.json",
    out_dir: str = "./distilled-qwen2.5-1.5b-cot",
    student_model: str = "Qwen/Qwen2.5-1.5B-Instruct",
    num_epochs: int = 1,
    config_path: str = "configs/kd_cot_qwen_1_5b.json",
    template_path: str | None = None,
) -> str:
    """Write a job that trains on chains of thought; returns its path.

    `template_path`: a Jinja file over `instruction` and `input`; the default is the one of
    `format_prompt(mode="system2")`, so that training and `infer_student` agree.
    """
    template = template_path or str(data.PROMPTS / "system2.jinja")
    dataset, models = ({"labeled_path": labeled_path, "template": template}, {"student": student_model})
    return _write_job("kd_black_box_train_only", dataset, models, out_dir, num_epochs, config_path)


def _write_job(
    job_type: str,
    dataset: Mapping[str, str],
    models: Mapping[str, str],
    out_dir: str,
    num_epochs: int,
    config_path: str,
) -> str:
    training: dict[str, Any] = {"output_dir": out_dir, "num_train_epochs": num_epochs}
    training["learning_rate"] = LEARNING_RATE
    job = {"job_type": job_type, "dataset": dataset, "models": models, "training": training}
    save_json(config_path, job)
    return config_path


def run_easy_distill(config_path: str) -> int:
    """The exit status of `easydistill --config PATH`; 0 is success."""
    # The job finds `nexa_train` from any current directory.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "nexa_train.easydistill", "--config", config_path]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def distill_system1(config: Mapping[str, Any]) -> str | None:
    """Train a System 1 student. Keys and defaults: those of `write_system1_config`.

    Returns `out_dir`, or None without the student, without data, or after a failed training.
    """
    return _distill_student("System 1", write_system1_config, config)


def distill_system2(config: Mapping[str, Any]) -> str | None:
    """Train on chains of thought, `cot_path`; other keys as in `write_system2_config`. Returns as `distill_system1`."""
    return _distill_student("System 2", write_system2_config, config, labeled_path="cot_path")


def _distill_student(system: str, write: Any, config: Mapping[str, Any], **called: str) -> str | None:
    arguments = _job_arguments(config, write, **called)
    if not _student_and_data(arguments["student_model"], arguments["labeled_path"], system):
        return None
    status = run_easy_distill(write(**arguments))
    if status:
        print(f"easydistill ended with exit status {status}; its message is above")
        return None
    return str(arguments["out_dir"])


def _job_arguments(config: Mapping[str, Any], write: Any, **called: str) -> dict[str, Any]:
    """`called`: other key names of parameters. Raises InputError for an unknown key."""
    import inspect

    # The signature has the keys and defaults, so they are written once.
    parameters = inspect.signature(write).parameters.values()
    keys = {called.get(each.name, each.name): each for each in parameters}
    if unknown := sorted(config.keys() - keys.keys()):
        raise InputError(f"unknown key {unknown[0]}; known here: {', '.join(keys)}")
    return {each.name: config.get(key, each.default) for key, each in keys.items()}


def _student_and_data(student: str, path: str, system: str) -> bool:
    try:
        context_length(_resolve_model(student))
    except NexaError:
        print(
            f"Invalid student model: {student}\nUse for example Qwen/Qwen2.5-0.5B-Instruct, a local folder, or bundled"
        )
        return False
    if Path(path).is_file() and data.read_items(Path(path)):
        return True
    print(f"No data for {system} distillation")
    return False


def _resolve_model(model: str) -> str:
    # One folder of models, whatever the current directory is.
    storage = load_config(ROOT / "configs/distill_config.yaml").storage
    models = storage.model_copy(update={"root": str(ROOT / storage.root)})
    return resolve_model(model, models)
