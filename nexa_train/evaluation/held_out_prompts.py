"""The held-out prompts of the evaluation."""

import pyarrow as pa
import pyarrow.compute as pc

from nexa_distill.contracts import Row
from nexa_distill.settings.student import Generation


def select_held_out(rows: pa.Table, generate: Generation) -> list[Row]:
    # By the hash: an arbitrary order, the same in every run, so max_prompts picks the same ones.
    chosen = rows.filter(pc.equal(rows["split"], generate.split)).sort_by("sample_id")
    return list(chosen.slice(0, generate.max_prompts).to_pylist())
