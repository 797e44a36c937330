"""Seals: exactly the promised fields, and any change after the seal is noticed."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from nexa_distill.contracts import INPUTS
from nexa_distill.errors import InputMissing
from nexa_distill.settings.pipeline import Storage
from nexa_distill.storage.atomic import write_text
from nexa_distill.storage.manifests import StageRun, load_manifest, manifest_path, sealed_hash, sha256_path
from nexa_distill.storage.tables import table_writer
from nexa_distill.text.hashing import sha256_text
from tests.support.workspace import workspace
from tests.teacher.faults import prompts

FIELDS = [
    "run_id", "stage", "count", "rows_in", "kept", "rejected", "field_hash", "min_sample_id",
    "max_sample_id", "columns", "sha256", "inputs", "config_sha256", "code_version", "seconds",
    "cost_usd", "created_at",
]  # fmt: skip


def sealed(folder: Path, source: str = "raw", limit: int = 1) -> tuple[Storage, Path, StageRun]:
    storage = workspace(folder).load().storage
    raw = folder / "raw.txt"
    raw.write_text(source)
    path = storage.path_of("raw_dataset")
    run = StageRun("dedup", storage, inputs=[raw], settings={"limit": limit})
    with table_writer(path, INPUTS) as out:
        out.write(pa.Table.from_pylist(prompts(3), schema=INPUTS))
    run.seal_output(path, rows_in=5, rejected=2)
    return storage, path, run


def test_a_manifest_has_exactly_the_promised_fields(tmp_path: Path) -> None:
    storage, path, _ = sealed(tmp_path)
    where = storage.path_of("manifests") / "dedup" / "manifest.json"
    manifest = json.loads(where.read_text())
    assert list(manifest) == FIELDS
    assert (manifest["rows_in"], manifest["kept"], manifest["rejected"]) == (5, 3, 2)
    assert (manifest["count"], manifest["min_sample_id"]) == (3, "s0000")
    assert manifest["field_hash"] == sha256_text("|".join(sorted(INPUTS.names)))
    assert manifest["sha256"] == sha256_path(path)
    assert manifest["cost_usd"] is None
    raw = tmp_path / "raw.txt"
    assert manifest["inputs"] == [{"path": str(raw), "sha256": sha256_path(raw)}]


def test_a_file_elsewhere_has_its_manifest_beside_it(tmp_path: Path) -> None:
    storage = workspace(tmp_path).load().storage
    beside = manifest_path(tmp_path / "mine.parquet", storage)
    assert beside == tmp_path / "mine.parquet.manifest.json"


def test_finished_work_is_current_until_input_settings_or_output_change(tmp_path: Path) -> None:
    storage, path, run = sealed(tmp_path)
    raw = tmp_path / "raw.txt"
    assert run.is_current(path)
    other = StageRun("dedup", storage, inputs=[raw], settings={"limit": 2})
    assert not other.is_current(path)
    raw.write_text("changed")
    changed = StageRun("dedup", storage, inputs=[raw], settings={"limit": 1})
    assert not changed.is_current(path)
    with path.open("ab") as file:
        file.write(b"x")
    assert not run.is_current(path)
    path.unlink()
    assert not run.is_current(path)


def test_f34_a_reader_refuses_what_is_unsealed_edited_or_gone(tmp_path: Path) -> None:
    storage, path, _ = sealed(tmp_path)
    assert sealed_hash(path, storage) == sha256_path(path)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputMissing, match=r"is not the file .* nexa_distill\.dedup` writes it"):
        sealed_hash(path, storage)
    manifest_path(path, storage).unlink()
    with pytest.raises(InputMissing, match="has no manifest"):
        sealed_hash(path, storage)
    path.unlink()
    with pytest.raises(InputMissing, match="no such file"):
        sealed_hash(path, storage)


def test_f03_a_crash_before_the_manifest_means_the_stage_writes_again(tmp_path: Path) -> None:
    storage, path, run = sealed(tmp_path)
    with table_writer(path, INPUTS) as out:
        out.write(pa.Table.from_pylist(prompts(2), schema=INPUTS))
    assert not run.is_current(path)
    with pytest.raises(InputMissing):
        sealed_hash(path, storage)


def test_a_torn_manifest_counts_as_none(tmp_path: Path) -> None:
    storage, path, run = sealed(tmp_path)
    write_text(manifest_path(path, storage), '{"sha256": ')
    assert load_manifest(path, storage) is None
    assert not run.is_current(path)


def test_a_folder_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("1")
    first = sha256_path(folder)
    (folder / "sub" / "a").rename(folder / "sub" / "b")
    second = sha256_path(folder)
    (folder / "sub" / "b").write_text("2")
    assert len({first, second, sha256_path(folder)}) == 3
