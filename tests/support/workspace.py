"""A project folder of its own for a test: a configuration that extends the shipped one."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nexa_distill.settings.pipeline import DistillConfig, load_config
from tests import warm

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Workspace:
    """Everything that a run writes is below `folder`; commands run in the project's root."""

    folder: Path
    config: Path

    def load(self) -> DistillConfig:
        return load_config(self.config)

    def path(self, key: str) -> Path:
        return self.load().storage.path_of(key)

    def change(self, **sections: Any) -> None:
        """Lay settings over the workspace's configuration."""
        values = yaml.safe_load(self.config.read_text())
        for name, section in sections.items():
            if isinstance(section, dict):
                values.setdefault(name, {}).update(section)
            else:
                values[name] = section
        self.config.write_text(yaml.safe_dump(values))

    def command(self, *arguments: object) -> list[str]:
        """A module name or script path and its arguments, with this configuration."""
        first, *rest = map(str, arguments)
        start = [first] if first.endswith(".py") else ["-m", first]
        return [warm.python(), *start, "--config", str(self.config), *rest]

    def run(self, *arguments: object, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code (None = any)."""
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=240,
            check=False, **options,
        )  # fmt: skip
        assert code is None or done.returncode == code, f"{done.returncode}: {done.stderr}"
        return done


def workspace(folder: Path, base_url: str = "http://127.0.0.1:9/v1", **changes: Any) -> Workspace:
    """A fresh workspace whose teacher is the API at `base_url`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Workspace(folder, folder / "config.yaml")
    values = {
        "extends": str(ROOT / "configs/distill_config.yaml"),
        "provider": "vllm",
        "providers": {"vllm": {"base_url": base_url, "model": "ledger-teacher", "startup_wait_seconds": 0.0}},
        "storage": {"root": str(folder / "processed"), "logs": str(folder / "logs")},
        "collection": {"timeout_seconds": 20.0},
    }
    made.config.write_text(yaml.safe_dump(values))
    made.change(**changes)
    return made
