"""Who is measured, and the environments of those that are not this project."""

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ENVIRONMENTS = {
    "clients": [
        f"aiohttp=={version('aiohttp')}", f"openai[aiohttp]=={version('openai')}",
        "uvloop==0.22.1",
    ],
    "distilabel": ["distilabel[openai]==1.5.3", "requests==2.34.2"],  # imported, not required
    "curator": ["bespokelabs-curator==0.1.31"],
    "data-designer": ["data-designer==0.9.6"],
}  # fmt: skip


class Unfit(Exception):
    """A contender that could not be installed, did not run, or answered wrongly."""


@dataclass(frozen=True)
class Contender:
    """`share` of the requests that the others get: less for those that take minutes."""

    name: str
    environment: str | None = None  # None = this project
    script: str = ""
    variant: str = ""
    share: float = 1.0


CONTENDERS = {
    "ours": Contender("ours"),
    "aiohttp": Contender("bare aiohttp", "clients", "with_aiohttp"),
    "aiohttp-uvloop": Contender("bare aiohttp, uvloop", "clients", "with_aiohttp", "uvloop"),
    "openai": Contender("openai client", "clients", "with_openai"),
    "openai-aiohttp": Contender("openai client, aiohttp", "clients", "with_openai", "aiohttp"),
    "distilabel": Contender("distilabel 1.5.3", "distilabel", "with_distilabel", share=0.2),
    "curator": Contender("curator 0.1.31", "curator", "with_curator", share=0.2),
    "data-designer": Contender(
        "Data Designer 0.9.6", "data-designer", "with_data_designer", share=0.2
    ),
}


class Environments:
    """Virtual environments below a folder, made at their first use and kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._broken: dict[str, str] = {}

    def python(self, name: str | None) -> str:
        """The interpreter of an environment; None is this one. Raises Unfit."""
        if name is None:
            return sys.executable
        if name in self._broken:
            raise Unfit(self._broken[name])
        place, packages = self.folder / name, ENVIRONMENTS[name]
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

    def server_python(self) -> str:
        """With uvloop, which is in the environment of the plain clients, if that can be had."""
        try:
            return self.python("clients")
        except Unfit:
            return sys.executable
