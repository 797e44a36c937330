"""The stages of the launcher's tests: a few bytes per output, sealed with the real manifests."""

from pathlib import Path

import pyarrow as pa

from nexa_distill.handoff import table_writer, write_text
from nexa_distill.manifests import StageRun
from nexa_distill.planning import Request
from nexa_distill.stages import STAGES, locate, settings

REPORT = '{"headline": ["better than before"]}'


def seal_session(session: str, config_file: Path = Path("configs/distill_config.yaml")) -> None:
    """Write and seal every output of the session's stages: 3 rows in, 2 kept."""
    config = Request(config_file).load()
    for stage in STAGES:
        if stage.session != session:
            continue
        run = StageRun(
            stage.name,
            config.storage,
            inputs=[locate(key, config) for key in stage.inputs],
            settings=settings(stage, config) or {},
        )
        for key in stage.outputs:
            path = locate(key, config)
            _write(path)
            run.seal(path, rows_in=3, rejected=1, count=2)
        print("sealed", stage.name)


def _write(path: Path) -> None:
    if path.suffix == ".parquet":
        rows = pa.table({"sample_id": ["a", "b"]})
        with table_writer(path, rows.schema) as out:
            out.write(rows)
    else:
        write_text(path if path.suffix else path / "part.jsonl", REPORT)
