"""Manifests: the inputs and settings from which a file was made, and its hash.

A file at a `storage:` path has its manifest at `manifests/<stage>/manifest.json`; any other file
that we write (`--dst elsewhere`) has it beside itself, as `<name>.manifest.json`. The manifest is
written last: a file without a matching one is refused by the next stage (exit 66) and rewritten by
its own.

    run = StageRun("dedup", storage, inputs=[src], settings={...})
    if run.is_current(dst):
        return
    with table_writer(dst, INPUTS) as out:
        out.write(rows)
    run.seal(dst, rows_in=10, rejected=2)
"""

import hashlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nexa_distill import __version__
from nexa_distill.contracts import TABLES, Table
from nexa_distill.errors import InputMissing
from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.atomic import Json, read_json_object, write_json
from nexa_distill.text.hashing import compact_json, sha256_text

# Files at `storage:` paths that are not tables: key -> (stage, command that writes them).
FILES: dict[str, tuple[str, str]] = {
    "sft_jsonl": ("packaging.jsonl", "python -m nexa_distill.to_sft"),
    "splits": ("packaging.splits", "python -m nexa_distill.to_sft"),
    "evaluation_report": ("evaluation", "python scripts/python/evaluation/run_evaluation.py"),
}


def sha256_path(path: Path) -> str:
    """Hex SHA-256 of a file; of a folder, over the names and hashes of its files, none hidden."""
    if path.is_dir():
        files = (p for p in path.rglob("*") if p.is_file())
        parts = sorted(p for p in files if not _is_hidden(p.relative_to(path)))
        listing = [[str(p.relative_to(path)), sha256_path(p)] for p in parts]
        return sha256_text(compact_json(listing))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def stage_of(path: Path, storage: Storage) -> tuple[str, str] | None:
    """(stage, command) of the file at a `storage:` path; None for a file from elsewhere."""
    if path.name == "final" and path.parent.parent.resolve() == storage.path_of("students").resolve():
        return f"train.{path.parent.name}", "python -m nexa_train.train_sft"
    key = storage.key_of(path)
    if key in TABLES:
        return TABLES[key].stage, TABLES[key].command
    return FILES.get(key) if key else None


def manifest_path(path: Path, storage: Storage) -> Path:
    """The path of the manifest of `path`, which need not exist."""
    owner = stage_of(path, storage)
    if owner is None:
        return path.with_name(f"{path.name}.manifest.json")
    return storage.path_of("manifests") / owner[0] / "manifest.json"


def load_manifest(path: Path, storage: Storage) -> Json | None:
    """The manifest of `path`, or None if it is absent or unreadable."""
    return read_json_object(manifest_path(path, storage))


def sealed_hash(path: Path, storage: Storage) -> str:
    """The file's SHA-256, checked against its manifest if it is at a `storage:` path.

    Raises InputMissing (66) naming the command that writes the file.
    """
    owner = stage_of(path, storage)
    command = f"; `{owner[1]}` writes it" if owner else ""
    if not path.exists():
        raise InputMissing(f"{path}: no such file{command}")
    digest = sha256_path(path)
    if owner:
        manifest = load_manifest(path, storage)
        where = manifest_path(path, storage)
        if manifest is None:
            raise InputMissing(f"{path}: has no manifest at {where}{command}")
        if manifest.get("sha256") != digest:
            raise InputMissing(f"{path}: is not the file that {where} seals{command} again")
    return digest


def refuse_stale(path: Path, storage: Storage) -> None:
    """Raises InputMissing (66) if a file from which `path` was made has been rewritten since.

    Compares the inputs in its manifest with their own manifests; inputs without one are ignored.
    """
    manifest, owner = load_manifest(path, storage), stage_of(path, storage)
    for item in manifest["inputs"] if manifest else []:
        now = load_manifest(Path(item["path"]), storage)
        if now is not None and now["sha256"] != item["sha256"]:
            again = f"; run `{owner[1]}` again" if owner else ""
            raise InputMissing(f"{path}: was made from an earlier {item['path']}{again}")


def refuse_unapplied(storage: Storage, command: str) -> None:
    """Raises InputMissing (66) if the kept answers do not reflect human decisions or repairs.

    They must come from the current annotations, through `person_checks`, and from the current
    repairs. `command` applies both.
    """
    refuse_lost_decisions(storage, command)
    kept = storage.path_of("filtered_dataset")
    labels, checks = storage.path_of("annotations"), storage.path_of("person_checks")
    if labels.exists() and not _was_made_from(checks, labels, storage):
        raise InputMissing(f"{kept}: {labels} has human decisions that are not applied yet; run {command}")
    for path in [*valid_regenerations(storage), *([checks] if labels.exists() or checks.exists() else [])]:
        if not _was_made_from(kept, path, storage):
            raise InputMissing(f"{kept}: was made without {path}; run {command}")


def refuse_lost_decisions(storage: Storage, command: str) -> None:
    """Raises InputMissing (66) when decisions were applied that no file holds any more.

    Deleting them may be meant or not; `command` decides without them, and says so.
    """
    labels, checks, kept = map(storage.path_of, ("annotations", "person_checks", "filtered_dataset"))
    for path, made in ((labels, checks), (checks, kept)):
        if not labels.exists() and not path.exists() and names_input(made, path, storage):
            raise InputMissing(
                f"{path}: no such file, and {made} was made from it; put it back, or run {command} "
                "to go on without the human decisions in it"
            )


def names_input(path: Path, source: Path, storage: Storage) -> bool:
    """Whether the manifest of `path` names the file at `source`, as it is or as it was."""
    manifest = load_manifest(path, storage)
    inputs = manifest["inputs"] if manifest else []
    return source.resolve() in [Path(item["path"]).resolve() for item in inputs]


def is_sealed(path: Path, table: Table, storage: Storage) -> bool:
    """Whether the file is such a table, unchanged since its stage wrote it."""
    manifest = load_manifest(path, storage)
    return (
        manifest is not None
        and manifest["stage"] == table.stage
        and manifest["columns"] == table.schema.names
        and path.exists()
        and manifest["sha256"] == sha256_path(path)
    )


def answers_file(storage: Storage) -> Path | None:
    """The file from which the collected answers were read; None if a model was asked."""
    manifest = load_manifest(storage.path_of("collected_dataset"), storage)
    # The prompts come first; a second input contains the answers.
    others = manifest["inputs"][1:] if manifest else []
    return Path(others[0]["path"]) if others else None


def _was_made_from(path: Path, source: Path, storage: Storage) -> bool:
    manifest = load_manifest(path, storage)
    if manifest is None or not source.exists():
        return False
    return sha256_path(source) in [item["sha256"] for item in manifest["inputs"]]


def valid_regenerations(storage: Storage) -> list[Path]:
    """The regenerated answers, if they are complete and repair the current answers; else none.

    Answers that repair an earlier input or teacher stay on disk and are ignored.
    """
    # So is a file without a manifest (a kill between the two): the gates run before the session
    # that rewrites it, and must not wait for it.
    path, answers = storage.path_of("regen_dataset"), storage.path_of("collected_dataset")
    manifest, now = load_manifest(path, storage), load_manifest(answers, storage)
    if manifest is None or not path.exists() or manifest["sha256"] != sha256_path(path):
        return []
    if now and now["sha256"] not in [item["sha256"] for item in manifest["inputs"]]:
        return []
    return [path]


def run_id() -> str:
    """The launcher's run id, or one of this process if it was started by hand."""
    by_hand = f"manual-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    return os.environ.get("NEXA_RUN_ID") or by_hand


@cache
def code_version() -> str:
    """Package version and, in a git checkout, the commit (`+` marks local changes)."""
    here = Path(__file__).parent
    describe = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        process = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}-{process.stdout.strip()}"


def utc_now() -> str:
    """ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _range_of_ids(metadata: pq.FileMetaData, column: int) -> tuple[str | None, str | None]:
    """Lowest and highest value of a column of keys, from the statistics of its row groups."""
    columns = (metadata.row_group(i).column(column) for i in range(metadata.num_row_groups))
    ranges = [c.statistics for c in columns if c.statistics is not None and c.statistics.has_min_max]
    return min((r.min for r in ranges), default=None), max((r.max for r in ranges), default=None)


class StageRun:
    """One execution of a stage: its inputs (checked and hashed), its settings, its start time.

    `settings`: only values that determine the output; a path, a concurrency or a timeout would make
    finished work look stale. Raises InputMissing for an input without a matching manifest.
    """

    def __init__(self, stage: str, storage: Storage, *, inputs: Sequence[Path], settings: Mapping[str, Any]) -> None:
        self.stage, self.storage, self.id = stage, storage, run_id()
        self._started = time.monotonic()
        self.inputs = [{"path": str(p), "sha256": sealed_hash(p, storage)} for p in inputs]
        self.config_sha256 = sha256_text(compact_json(settings))

    @property
    def resume_key(self) -> str:
        """Identifies half-finished work to continue: the same inputs with the same settings."""
        hashes = [item["sha256"] for item in self.inputs]
        return sha256_text(compact_json([*hashes, self.config_sha256]))

    def is_current(self, *outputs: Path) -> bool:
        """Whether each output is intact and was made from these inputs with these settings."""
        return all(self._is_current(path) for path in outputs)

    def _is_current(self, path: Path) -> bool:
        manifest = load_manifest(path, self.storage)
        if manifest is None or not path.exists():
            return False
        hashes = [item["sha256"] for item in manifest["inputs"]]
        return (
            hashes == [item["sha256"] for item in self.inputs]
            and manifest["config_sha256"] == self.config_sha256
            and manifest["sha256"] == sha256_path(path)
        )

    def seal_output(
        self, path: Path, *, rows_in: int, rejected: int, count: int | None = None, cost_usd: float | None = None
    ) -> Json:
        """Write the manifest of the finished `path`. `count`: rows, if it is not Parquet."""
        columns, lowest, highest = [], None, None
        if path.suffix == ".parquet":
            parquet = pq.ParquetFile(path)
            columns, count = parquet.schema_arrow.names, parquet.metadata.num_rows
            if "sample_id" in columns:
                lowest, highest = _range_of_ids(parquet.metadata, columns.index("sample_id"))
        owner = stage_of(path, self.storage)
        manifest: Json = {
            "run_id": self.id,
            "stage": owner[0] if owner else self.stage,
            "count": count,
            "rows_in": rows_in,
            "kept": rows_in - rejected,
            "rejected": rejected,
            "field_hash": sha256_text("|".join(sorted(columns))),
            "min_sample_id": lowest,
            "max_sample_id": highest,
            "columns": columns,
            "sha256": sha256_path(path),
            "inputs": self.inputs,
            "config_sha256": self.config_sha256,
            "code_version": code_version(),
            "seconds": round(time.monotonic() - self._started, 3),
            "cost_usd": cost_usd,
            "created_at": utc_now(),
        }
        write_json(manifest_path(path, self.storage), manifest)
        return manifest
