"""Who is measured, and the environments of those that are not this project."""

import sys
from dataclasses import dataclass
from importlib.metadata import version

from benchmarks.environments import Environments, Unfit

ENVIRONMENTS = {
    "clients": [
        f"aiohttp=={version('aiohttp')}", f"openai[aiohttp]=={version('openai')}",
        "uvloop==0.22.1",
    ],
    "distilabel": ["distilabel[openai]==1.5.3", "requests==2.34.2"],  # imported, not required
    "curator": ["bespokelabs-curator==0.1.31"],
    "data-designer": ["data-designer==0.9.6"],
}  # fmt: skip


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
    "data-designer": Contender("Data Designer 0.9.6", "data-designer", "with_data_designer", share=0.2),
}


def server_python(environments: Environments) -> str:
    """With uvloop, which is in the environment of the plain clients, if that can be had."""
    try:
        return environments.python("clients")
    except Unfit:
        return sys.executable
