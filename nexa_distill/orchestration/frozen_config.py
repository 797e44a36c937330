"""The settings of a launch, resolved and frozen into the run's folder; every session reads them.

`freeze_config` writes `config/` with the three YAML files, no key of which comes from elsewhere, and
copies of the prompts, rubrics and schemas that they name. Paths of data are not copied.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from nexa_distill.settings.filters import PresetName, load_filter_config, preset_path
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.tasks import list_tasks
from nexa_distill.settings.yaml_loading import Section, load_yaml
from nexa_distill.storage.atomic import Json

CONFIG_FILE = "distill_config.yaml"
# Keys whose values are files of text (or a folder, or files by name), in place of which copies are read.
TEXTS = (
    ("collection", "system_prompt_path"),
    ("collection", "regen_system_prompt_path"),
    ("collection", "response_schemas"),
    ("judging", "rubrics"),
    ("defaults", "prompts"),
)
_ELSEWHERE = {("filters",), ("student",), ("defaults", "tasks"), ("defaults", "task_type"), *TEXTS}


def freeze_config(config: DistillConfig, folder: Path) -> Path:
    """Write the settings into `folder`, which does not exist yet; returns the pipeline's file."""
    folder.mkdir(parents=True)
    values = config.model_dump()
    for section, key in TEXTS:
        named = values[section][key]
        copies = folder / key.removesuffix("_path")
        if isinstance(named, Mapping):
            values[section][key] = {name: _copy_text(path, copies / name) for name, path in named.items()}
        elif named is not None:
            values[section][key] = _copy_text(named, copies)
    columns = values["defaults"]
    columns["tasks"] = [_copy_task(entry, folder / "tasks") for entry in columns["tasks"]]
    columns["task_type"] = _copy_task(columns["task_type"], folder / "tasks")
    values["filters"] = _write_filters(config.filters, folder / "filters.yaml")
    values["student"] = _write_yaml(folder / "student.yaml", load_yaml(Path(config.student), StudentConfig))
    return Path(_write_values(folder / CONFIG_FILE, values))


def _copy_text(path: str, copy: Path) -> str:
    source = Path(path)
    if not source.exists():
        return path  # left to the stage that needs it, if one does
    copy.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, copy)
        return str(copy)
    return str(shutil.copyfile(source, copy.with_suffix(source.suffix)))


def _copy_task(entry: str, copies: Path) -> str:
    # The name of a task of one's own is that of its file or folder. Those that ship are part of the code.
    is_own = entry not in list_tasks() and Path(entry).expanduser().exists()
    return _copy_text(str(Path(entry).expanduser()), copies / Path(entry).name) if is_own else entry


def _write_filters(source: str, path: Path) -> str:
    """Write the filters, and those of each preset beside them, which would not change a file with every key."""
    for preset in get_args(PresetName):
        _write_yaml(preset_path(path, preset), load_filter_config(source, preset))
    return _write_yaml(path, load_filter_config(source))


def _write_yaml(path: Path, section: Section) -> str:
    return _write_values(path, section.model_dump())


def _write_values(path: Path, values: Json) -> str:
    # No key is missing, and none is to be taken from the file that ships.
    text = yaml.safe_dump({"extends": None, **values}, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def changed_settings(before: DistillConfig, now: DistillConfig) -> dict[str, tuple[Any, Any]]:
    """By dotted key, the values before and now; texts and the other two files are not compared."""
    then, today = (dict(_flatten(config.model_dump())) for config in (before, now))
    keys = (key for key in (*today, *(then.keys() - today.keys())) if key not in _ELSEWHERE)
    return {
        ".".join(key): (then.get(key), today.get(key))
        for key in keys
        if then.get(key) != today.get(key) and key[:2] not in _ELSEWHERE
    }


def _flatten(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    pairs = []
    for name, value in values.items():
        key = (*above, str(name))
        pairs += _flatten(value, key) if isinstance(value, Mapping) and value else [(key, value)]
    return pairs
