"""Tasks: what is asked. One folder per task in `nexa_distill/tasks/`, or a file or folder of one's own.

    NAME/prompt.txt          the prompt; {context} is the text, {prompt} a prompt that exists already
    NAME/system_prompt.txt   the system prompt
    NAME/task.yaml           about, preset (of the filters), and files for system prompts

A file is a prompt alone, with the other settings of `chat`. A task type without a folder or file has
the system prompts and the preset of `hypothesis`. Raises InputError (65) for an unknown task and for
a prompt without a placeholder.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.settings.filters import PresetName, load_filter_config
from nexa_distill.settings.pipeline import Columns, DistillConfig, Storage, load_system_prompt
from nexa_distill.settings.yaml_loading import Section, load_yaml

FOLDER = Path(__file__).parents[1] / "tasks"
SHARED_PROMPTS = Path(__file__).parents[1] / "prompts"  # system prompts that several tasks use
PLAIN = "chat"  # whose system prompt a task without one has
OTHERS = "hypothesis"  # whose settings hold for task types that are no task, such as math


class TaskFile(Section):
    """`task.yaml`. The files are in the task's folder, or in `nexa_distill/prompts`."""

    about: str = ""
    preset: PresetName = "chat"
    system_prompt: str | None = None  # null = system_prompt.txt
    regen_system_prompt: str | None = None  # of repairs; null = the system prompt


@dataclass(frozen=True)
class Task:
    """A task type, read. `regen_system_prompt` None = the system prompt, also in repairs."""

    name: str
    about: str
    prompt: str
    system_prompt: str
    regen_system_prompt: str | None
    preset: PresetName
    is_own: bool  # a user's file or folder

    @property
    def takes_prompts(self) -> bool:
        return "{prompt}" in self.prompt

    @property
    def text_template(self) -> str:
        """The prompt that is made from a text: `{context}` is its place, or else `{prompt}`."""
        return self.prompt if "{context}" in self.prompt else self.prompt.replace("{prompt}", "{context}")


def list_tasks() -> list[str]:
    """The names of the tasks that ship."""
    return sorted(path.parent.name for path in FOLDER.glob("*/prompt.txt"))


def load_task(entry: str, prompts: str | None = None) -> Task:
    """The task of a name, or of the path of a file or folder.

    `prompts`: a folder of the user's (`defaults.prompts`) whose NAME.txt replaces a task's prompt.
    """
    own = Path(prompts) / f"{entry}.txt" if prompts else None
    if entry in list_tasks():
        task = _read_folder(FOLDER / entry, is_own=False)
        return task if own is None or not own.is_file() else _with_prompt(task, own)
    if own and own.is_file():
        return _read_file(own)
    path = Path(entry).expanduser()
    if path.is_dir():
        return _read_folder(path, is_own=True)
    if path.is_file():
        return _read_file(path)
    names = [*list_tasks(), *(file.stem for file in Path(prompts).glob("*.txt"))] if prompts else list_tasks()
    raise InputError(
        f"no task {entry}{did_you_mean(entry, names)}; known: {', '.join(list_tasks())}. A task of your own is a text "
        f"file with {{context}} (--task FILE), or a folder with prompt.txt, system_prompt.txt and task.yaml"
    )


def _read_folder(folder: Path, *, is_own: bool) -> Task:
    file = folder / "task.yaml"
    settings = load_yaml(file, TaskFile) if file.is_file() else TaskFile()
    regen = settings.regen_system_prompt
    return Task(
        folder.resolve().name,
        settings.about,
        _read_prompt(folder / "prompt.txt"),
        _read_system_prompt(folder, settings.system_prompt),
        _read_system_prompt(folder, regen) if regen else None,
        settings.preset,
        is_own,
    )


def _read_file(path: Path) -> Task:
    return Task(path.stem, "", _read_prompt(path), _plain_system_prompt(), None, TaskFile().preset, is_own=True)


def _with_prompt(task: Task, path: Path) -> Task:
    return Task(**{**vars(task), "prompt": _read_prompt(path)})


def _read_prompt(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a task's folder contains its prompt there") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error})") from None
    if "{context}" not in text and "{prompt}" not in text:
        raise InputError(
            f"{path}: has no {{context}} placeholder, so the prompts would contain no text; write {{context}} where "
            "the text belongs (or {prompt}, for data with prompts)"
        )
    return text


def _read_system_prompt(folder: Path, name: str | None) -> str:
    """The text of a file in the folder or of one that tasks share; None = the usual file, or that of `chat`."""
    if name is None:
        usual = folder / "system_prompt.txt"
        return load_system_prompt(str(usual)) if usual.is_file() else _plain_system_prompt()
    path = next((p for p in (folder / name, SHARED_PROMPTS / name) if p.is_file()), folder / name)
    return load_system_prompt(str(path))


def _plain_system_prompt() -> str:
    return load_system_prompt(str(FOLDER / PLAIN / "system_prompt.txt"))


def load_tasks(columns: Columns) -> list[Task]:
    """The tasks that make prompts from texts (`defaults.tasks`)."""
    tasks = [load_task(entry, columns.prompts) for entry in columns.tasks]
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"defaults.tasks: {', '.join(twice)} is there twice; rename one of the files")
    return tasks


def task_of_prompts(columns: Columns) -> Task | None:
    """The task of prompts that exist (`defaults.task_type`); None for a type without a folder or file."""
    entry = columns.task_type
    if "," in entry:  # a list, which prompts that exist refuse (raw_data/input_reading.py)
        return None
    path = Path(entry).expanduser()
    is_path = "/" in entry or path.suffix == ".txt" or path.is_file() or (path / "prompt.txt").is_file()
    return load_task(entry, columns.prompts) if is_path or entry in list_tasks() else None


def with_task_of_prompts(columns: Columns) -> Columns:
    """`columns` with the name of that task, and its prompt as the template unless one is configured."""
    task = task_of_prompts(columns)
    if task is None:
        return columns
    template = task.prompt if task.takes_prompts and columns.prompt_template == "{prompt}" else columns.prompt_template
    return columns.model_copy(update={"task_type": task.name, "prompt_template": template})


def own_tasks(columns: Columns) -> dict[str, Task]:
    """By name, the tasks of one's own that the configuration names."""
    tasks = [*load_tasks(columns), task_of_prompts(columns)]
    return {task.name: task for task in tasks if task is not None and task.is_own}


def own_tasks_path(storage: Storage) -> Path:
    """The record of one's own tasks, by which the commands after canonicalize know what was asked."""
    return storage.path_of("canonical").with_name("own_tasks.json")


def own_tasks_record(columns: Columns) -> dict[str, Any]:
    """The content of that file: name -> fields of the task."""
    return {name: asdict(task) for name, task in own_tasks(columns).items()}


def _known_tasks(config: DistillConfig) -> dict[str, Task]:
    """The tasks that ship, those of the last canonicalize, and those of the configuration."""
    try:
        record = json.loads(own_tasks_path(config.storage).read_text(encoding="utf-8"))
        recorded = {name: Task(**fields) for name, fields in record.items()}
    except (OSError, ValueError, TypeError):  # none, or of another version
        recorded = {}
    return {task.name: task for task in _shipped_tasks()} | recorded | own_tasks(config.defaults)


class SystemPrompts:
    """The system prompt of each task type; one for all where the configuration names a file."""

    def __init__(self, config: DistillConfig, path: str | None, prompt_of: Callable[[Task], str | None]) -> None:
        self._shared = None if path is None else load_system_prompt(path)
        tasks = _known_tasks(config) if path is None else {}
        self._by_task = {name: prompt_of(task) for name, task in tasks.items()}

    def find_prompt(self, task_type: str) -> str | None:
        """The prompt of a row without one of its own; None if its task has none."""
        return self._shared or self._by_task.get(task_type, self._by_task.get(OTHERS))

    @property
    def relevant_settings(self) -> str | dict[str, str | None]:
        return self._shared or self._by_task


@cache
def _shipped_tasks() -> tuple[Task, ...]:
    return tuple(load_task(name) for name in list_tasks())


def load_system_prompts(config: DistillConfig) -> SystemPrompts:
    """Of first requests, samples and the student: `collection.system_prompt_path`, or the task's."""
    return SystemPrompts(config, config.collection.system_prompt_path, lambda task: task.system_prompt)


def load_repair_prompts(config: DistillConfig) -> SystemPrompts:
    """Of repairs: `collection.regen_system_prompt_path`, or the task's; None = as in the first request."""
    return SystemPrompts(config, config.collection.regen_system_prompt_path, lambda task: task.regen_system_prompt)


class TaskFilters:
    """The filters of each task type: the thresholds of a file, changed by the preset of the task."""

    def __init__(self, config: DistillConfig) -> None:
        chosen = load_filter_config(config.filters).preset
        self._presets = {name: chosen or task.preset for name, task in _known_tasks(config).items()}
        presets = (chosen,) if chosen else get_args(PresetName)
        self.by_preset = {preset: load_filter_config(config.filters, preset) for preset in presets}

    def preset_of(self, task_type: str) -> PresetName:
        return self._presets.get(task_type, self._presets[OTHERS])

    @property
    def relevant_settings(self) -> dict[str, PresetName]:
        return self._presets
