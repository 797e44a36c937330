"""Runs with names: `--name NAME` has files, checkpoints, logs and tmux sessions of its own.

All that a named run writes is below `data/runs/NAME/`. With the configured root it shares what costs
money or minutes and is the same for every run: the journal of answers, and the models.
"""

import os
import re
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputError, UsageError
from nexa_distill.orchestration.frozen_config import CONFIG_FILE
from nexa_distill.settings.pipeline import DistillConfig, Storage
from nexa_distill.settings.yaml_loading import validate_section

RUNS = Path("data/runs")
# tmux replaces `.` and `:` in the names of its sessions.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def run_root(name: str) -> Path:
    """`data/runs/NAME`. Raises UsageError for a name that cannot be a folder and a tmux session."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: expected up to 40 letters, digits, - and _, a letter or digit first")
    return RUNS / name


def frozen_path(name: str) -> Path | None:
    """The settings with which this run was launched last, or None if it never was."""
    path = run_root(name) / "config" / CONFIG_FILE
    return path if path.is_file() else None


def with_name(config: DistillConfig, name: str | None) -> DistillConfig:
    """`config` with the files of the run `name`; None = as configured.

    Raises InputError for a `storage:` path outside its root, which two runs would share.
    """
    if name is None:
        return config
    root = run_root(name)
    servers: dict[str, Any] = {
        key: provider.model_dump() | {"endpoint_file": str(root / f"{key}_server.json")}
        for key, provider in config.providers.items()
        if provider.endpoint_file
    }
    values = config.model_dump()
    values["storage"] |= _own_paths(config.storage, root)
    values["providers"] |= servers
    return validate_section(f"--name {name}", values, DistillConfig)


def _own_paths(storage: Storage, root: Path) -> dict[str, str]:
    shared, paths = storage.shared_root or storage.root, {}
    for key in storage.file_keys():
        as_set = str(getattr(storage, key))
        relative = os.path.relpath(storage.path_of(key), shared if key in storage.SHARED else storage.root)
        is_outside = relative.startswith("..")
        if is_outside and key not in storage.SHARED:
            raise InputError(
                f"storage.{key} is {as_set}, outside storage.root, and every run would write it; "
                "make it relative, or launch without --name"
            )
        paths[key] = as_set if is_outside else relative
    return paths | {"root": str(root), "logs": str(root / "logs"), "shared_root": shared}
