"""Which stages are out of date, and whether the hashes of all sealed files match.

A link of the chain is a stage's output: the file, its manifest, and the manifest's inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputMissing
from nexa_distill.orchestration.stages import STAGES, Stage, locate_path, stage_settings
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import Json
from nexa_distill.storage.manifests import load_manifest, manifest_path, sha256_path, valid_regenerations
from nexa_distill.text.hashing import compact_json, sha256_text


@dataclass
class Freshness:
    """Compares the sealed files with the configuration; hashes each file once."""

    config: DistillConfig
    _hashes: dict[Path, str] = field(default_factory=dict)

    def with_config(self, config: DistillConfig) -> "Freshness":
        """The same for other settings; files that were hashed are not read again."""
        return Freshness(config, self._hashes)

    def file_sha256(self, path: Path) -> str:
        resolved = path.resolve()
        if resolved not in self._hashes:
            self._hashes[resolved] = sha256_path(path)
        return self._hashes[resolved]

    def stale_reason(self, stage: Stage) -> str | None:
        """Why the stage has to run, or None if every output is intact and up to date."""
        return next((why for key in stage.outputs for why in self._stale_reasons(stage, key)), None)

    def _stale_reasons(self, stage: Stage, output: str) -> Iterator[str]:
        path = locate_path(output, self.config)
        manifest = load_manifest(path, self.config.storage)
        if not path.exists():
            yield f"{path} is gone" if manifest else "no output yet"
            return
        if manifest is None:
            yield f"{path} has no manifest"
            return
        if manifest["sha256"] != self.file_sha256(path):
            yield f"{path} does not match its manifest"
        yield from self._differences(stage, manifest)

    def find_difference(self, stage: Stage) -> str | None:
        """What of the stage's finished output would be made from something else; None without one."""
        for key in stage.outputs:
            manifest = load_manifest(locate_path(key, self.config), self.config.storage)
            # An input that is gone is made again, from what it was made from.
            there = [item for item in manifest["inputs"] if Path(item["path"]).exists()] if manifest else []
            if manifest and (why := next(self._differences(stage, manifest | {"inputs": there}), None)):
                return why
        return None

    def _differences(self, stage: Stage, manifest: Json) -> Iterator[str]:
        yield from self._changed_inputs(stage, manifest["inputs"])
        values = stage_settings(stage, self.config)
        if values is not None and manifest["config_sha256"] != sha256_text(compact_json(values)):
            yield f"{stage.name}: settings changed"

    def _changed_inputs(self, stage: Stage, recorded: list[dict[str, str]]) -> Iterator[str]:
        # Repairs of other answers are in no output.
        storage = self.config.storage
        optional = [key for key in stage.optional if key != "regen_dataset" or valid_regenerations(storage)]
        # Compared by content: a file that was only moved has not changed.
        declared = {locate_path(key, self.config) for key in (*stage.inputs, *optional)}
        now = {self.file_sha256(path): path for path in declared if path.exists()}
        then = {item["sha256"] for item in recorded}
        yield from (f"input changed: {path}" for sha256, path in now.items() if sha256 not in then)
        # An input that the stage no longer declares has to be unchanged as well.
        for item in recorded:
            path = Path(item["path"])
            if item["sha256"] not in now and not (path.exists() and self.file_sha256(path) == item["sha256"]):
                yield f"input changed or gone: {path}"


def verify_chain(config: DistillConfig) -> Iterator[str]:
    """One line per intact link, from the raw file to the evaluation of the checkpoint.

    A link is intact if the file matches its manifest, and each input named there is unchanged.
    Raises InputMissing (66) at the first broken link.
    """
    fresh = Freshness(config)
    for stage in STAGES:
        for key in stage.outputs:
            path = locate_path(key, config)
            manifest = load_manifest(path, config.storage)
            # A chain without an evaluation is intact: it ends at the checkpoint.
            if stage.session == "evaluation" and manifest is None and not path.exists():
                continue
            if manifest is None or not path.exists():
                seal = manifest_path(path, config.storage)
                raise InputMissing(
                    f"broken link at {stage.name}: "
                    + (f"{path} is missing" if not path.exists() else f"{seal} is missing")
                    + "; `bash launch_pipeline.sh` creates it"
                )
            yield _check_link(stage, path, manifest, fresh)


def _check_link(stage: Stage, path: Path, manifest: dict[str, Any], fresh: Freshness) -> str:
    named = [(Path(item["path"]), item["sha256"]) for item in manifest["inputs"]]
    for file, sealed in [*named, (path, manifest["sha256"])]:
        actual = fresh.file_sha256(file) if file.exists() else "missing"
        if actual != sealed:
            seal = manifest_path(path, fresh.config.storage)
            raise InputMissing(
                f"broken link at {stage.name}: {file} is {actual[:12]}, {seal} has {sealed[:12]}; "
                "`bash launch_pipeline.sh` creates what is missing"
            )
    reads = ", ".join(f"{file} {sealed[:12]}" for file, sealed in named)
    return f"ok  {stage.name:<20} {path} {manifest['sha256'][:12]} <- {reads}"
