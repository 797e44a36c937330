"""Copy a dataset of the Hugging Face Hub, or of a local folder of that form, to a Parquet file.

A source is `hf:NAME[@REVISION][:CONFIG][:SPLIT]`; NAME may be a folder, SPLIT a slice (`train[:100]`).
Without a split it is `train`, or the only one. Raises InputError (65) naming what to choose from.
"""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from nexa_distill.errors import InputError, InputMissing, did_you_mean
from nexa_distill.storage.atomic import replace_atomically
from nexa_distill.text.hashing import sha256_text

PREFIX = "hf:"
# Not within the brackets of a slice.
SEPARATOR = re.compile(r":(?![^\[]*\])")


class HubSource(NamedTuple):
    """A dataset, and the parts of its source behind the name: a config, a split, both or none."""

    name: str
    revision: str | None
    parts: list[str]

    @property
    def is_folder(self) -> bool:
        return Path(self.name).is_dir()


class HubSplit(NamedTuple):
    """One split of one config, and the splits that the config has."""

    config: str
    split: str
    splits: list[str]


def is_hub_source(path: str) -> bool:
    return path.startswith(PREFIX)


def parse_source(text: str) -> HubSource:
    name, *parts = SEPARATOR.split(text.removeprefix(PREFIX))
    revision = None
    if "@" in name and not Path(name).is_dir():
        name, _, revision = name.partition("@")
    if not name or len(parts) > 2 or not all(parts):
        raise InputError(
            f"{text}: expected {PREFIX}NAME[@REVISION][:CONFIG][:SPLIT], such as {PREFIX}openai/gsm8k:main:train"
        )
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise InputMissing(f"{text}: no such folder {name} (looked in {Path.cwd()})")
    return HubSource(name, revision, parts)


def copy_dataset(text: str, folder: Path) -> Path:
    """The Parquet file in `folder` with the rows of the source, written if it is not there.

    A dataset of the Hub is loaded once; a local folder again when a file of it is newer.
    """
    source = parse_source(text)
    name = re.sub(r"[^\w.-]+", "-", text.removeprefix(PREFIX)).strip("-.")
    dst = folder / f"{name}-{sha256_text(text)[:8]}.parquet"  # a/b-c and a-b/c are different datasets
    if dst.exists() and not _is_newer(source, dst):
        return dst
    choice = choose_split(text, source)
    rows = load_split(text, source.name, choice.config, split=choice.split, revision=source.revision)
    if not len(rows):
        raise InputError(f"{text}: split {choice.split} has no rows")
    dst.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(dst) as temporary:
        rows.to_parquet(str(temporary))
    # Not to stdout, which some commands reserve for their result.
    others = f" of {', '.join(choice.splits)}" if len(choice.splits) > 1 else ""
    print(f"input: {text}: split {choice.split}{others}, {len(rows)} rows -> {dst}", file=sys.stderr)
    return dst


def _is_newer(source: HubSource, copy: Path) -> bool:
    files = (file for file in Path(source.name).rglob("*") if file.is_file()) if source.is_folder else ()
    return any(file.stat().st_mtime_ns > copy.stat().st_mtime_ns for file in files)


def choose_split(text: str, source: HubSource) -> HubSplit:
    """The config and the split that the source names, or the only possible ones."""
    from datasets import get_dataset_config_names, get_dataset_split_names

    name, options = source.name, {"revision": source.revision}
    configs = _ask_hub(text, lambda: get_dataset_config_names(name, **options))
    config, split = _read_parts(source.parts, configs)
    if config is None and len(configs) > 1 and "default" not in configs:
        raise InputError(f"{text}: has several configs; choose one: {_list_sources(name, configs)}")
    config = config or (configs[0] if len(configs) == 1 else "default")
    if config not in configs:
        raise InputError(f"{text}: no config {config}{did_you_mean(config, configs)}; it has {', '.join(configs)}")
    splits = _ask_hub(text, lambda: get_dataset_split_names(name, config, **options))
    if split is None and len(splits) > 1 and "train" not in splits:
        raise InputError(f"{text}: has several splits; choose one: {_list_sources(name, splits)}")
    split = split or (splits[0] if len(splits) == 1 else "train")
    for base in (part.partition("[")[0] for part in split.split("+")):
        if base not in splits:
            raise InputError(f"{text}: no split {base}{did_you_mean(base, splits)}; it has {', '.join(splits)}")
    return HubSplit(config, split, splits)


def _read_parts(parts: list[str], configs: list[str]) -> tuple[str | None, str | None]:
    if len(parts) == 2:
        return parts[0], parts[1]
    # A single part is a config if there is one of that name.
    part = parts[0] if parts else None
    return (part, None) if part in configs else (None, part)


def _list_sources(name: str, parts: list[str]) -> str:
    return ", ".join(f"--input {PREFIX}{name}:{part}" for part in parts)


def _ask_hub(text: str, question: Any) -> list[str]:
    """Names that the library finds in the dataset. Raises InputError."""
    from datasets.exceptions import DatasetsError

    try:
        return list(question())
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise _explain_failure(text, error) from None


def load_split(text: str, source: str, config: str | None = None, *, split: str, **options: Any) -> Any:
    """The rows of one split; `[]` for an empty slice. `text` names it in the InputError."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(source, config, split=split, **options)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if "corresponds to no data" in str(error):  # an empty slice of an existing split
            return []
        raise _explain_failure(f"{text}, split {split}", error) from None


def _explain_failure(text: str, error: Exception) -> InputError:
    return InputError(
        f"{text}: cannot be loaded ({error}). Check the name at https://huggingface.co/datasets and the network "
        "(a gated dataset needs HF_TOKEN in the environment); a downloaded copy is read with --input FOLDER"
    )
