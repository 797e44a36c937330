"""Environments of what is measured beside this project: other packages, other versions."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class Unfit(Exception):
    """A contender that could not be installed, did not run, or answered wrongly."""


class Environments:
    """Virtual environments below a folder, made at their first use and kept."""

    def __init__(self, folder: Path, packages: Mapping[str, Sequence[str]]) -> None:
        """`packages`: name of an environment -> what pip installs into it."""
        self.folder, self.packages = folder, packages
        self._broken: dict[str, str] = {}

    def python(self, name: str | None) -> str:
        """The interpreter of an environment; None is this one. Raises Unfit."""
        if name is None:
            return sys.executable
        if name in self._broken:
            raise Unfit(self._broken[name])
        place, packages = self.folder / name, list(self.packages[name])
        python, made = str(place / "bin/python"), place / "packages.txt"
        if made.exists() and made.read_text().split() == packages:
            return python
        print(f"installing {' '.join(packages)} into {place}", file=sys.stderr, flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self._broken[name] = f"could not be installed: {error}"
            raise Unfit(self._broken[name]) from None
        made.write_text("\n".join(packages))
        return python
