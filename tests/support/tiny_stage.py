"""The stages of the launcher's tests: a few bytes per output, sealed with the real manifests."""

import os
import sys
import time
from pathlib import Path

import pyarrow as pa

from nexa_distill.collection.requests.endpoint import SERVER_WANTED
from nexa_distill.orchestration.planning import Request
from nexa_distill.orchestration.stages import STAGES, Stage, locate_path, stage_settings
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import write_text
from nexa_distill.storage.manifests import StageRun, valid_regenerations
from nexa_distill.storage.tables import table_writer

REPORT = '{"headline": ["better than before"]}'


CONFIG = Path("configs/distill_config.yaml")


def configured() -> Path:
    """The settings that this command line names."""
    flag = next((word for word in ("--pipeline-config", "--config") if word in sys.argv), None)
    return Path(sys.argv[sys.argv.index(flag) + 1]) if flag else CONFIG


def seal_session(session: str, config_file: Path = CONFIG) -> None:
    """Write and seal every output of the session's stages: 3 rows in, 2 kept.

    After repairs the gates are passed again, as by the real session.
    """
    config = Request(config_file).load_settings()
    if wanted := os.environ.get(SERVER_WANTED):
        Path(wanted).touch()
        while not Path(str(config.chosen_provider()[1].endpoint_file)).exists():
            assert not Path(wanted).with_suffix(".exit").exists(), "the teacher ended"
            time.sleep(0.1)
    for stage in STAGES:
        if stage.session != session:
            continue
        run = StageRun(
            stage.name, config.storage, inputs=_inputs(stage, config), settings=stage_settings(stage, config) or {}
        )
        for key in stage.outputs:
            path = locate_path(key, config)
            _write(path)
            run.seal_output(path, rows_in=3, rejected=1, count=2)
        print("sealed", stage.name)
    if session == "regeneration":
        seal_session("filtering", config_file)


def _inputs(stage: Stage, config: DistillConfig) -> list[Path]:
    there = {key: locate_path(key, config) for key in stage.optional}
    if not valid_regenerations(config.storage):
        there.pop("regen_dataset", None)
    needed = [locate_path(key, config) for key in stage.inputs]
    return needed + [path for path in there.values() if path.exists()]


def _write(path: Path) -> None:
    if path.suffix == ".parquet":
        rows = pa.table({"sample_id": ["a", "b"]})
        with table_writer(path, rows.schema) as out:
            out.write(rows)
    else:
        write_text(path if path.suffix else path / "part.jsonl", REPORT)
