"""Decisions of people as checks, so that SampleGate sees them beside rules, execution and judges.

Reads   storage.annotations (none: nobody has decided yet), collected_dataset and regen_dataset
Writes  person_checks (contracts.CHECKS, `person.decision`)
Keeps   one row per answer that somebody decided on: ok is true where all accept it, false where
        nobody does (`rejected_by_person`), null where they do not agree (`annotators_disagree`).
        An accept overrides no gate. Decisions older than the answer, or on answers that are not
        there, are left out and counted (`annotation/decisions.py`)
Raises  InputError (65) naming the line that is no decision, InputMissing (66)

    python -m nexa_distill.person_checks
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from nexa_distill.annotation.decisions import Standing, standing
from nexa_distill.console import cli
from nexa_distill.contracts import CHECKS
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.manifests import StageRun, names_input, repairs
from nexa_distill.storage.tables import table_writer


def settings(_config: DistillConfig) -> dict[str, Any]:
    """Nothing but the inputs decides."""
    return {}


def checks_of(found: Standing) -> Iterator[dict[str, Any]]:
    """Rows of contracts.CHECKS."""
    for key, views in found.by.items():
        accepted = found.accepted(key)
        names = ", ".join(one.annotator or "somebody" for one in views)
        said = found.words(key)
        reasons = {True: None, False: "rejected_by_person", None: "annotators_disagree"}
        yield {
            "sample_id": key[0],
            "attempt": key[1],
            "check": "person.decision",
            "ok": accepted,
            "reason": reasons[accepted],
            "detail": f"{names}: {said}" if said else names,
        }


def run(config: DistillConfig) -> int | None:
    """Write the checks; the number of answers decided on, or None when up to date."""
    storage = config.storage
    dst, labels = storage.path("person_checks"), storage.path("annotations")
    inputs = [storage.path("collected_dataset"), *repairs(storage)]
    inputs += [labels] if labels.exists() else []
    stage = StageRun("person", storage, inputs=inputs, settings=settings(config))
    if stage.is_current(dst):
        print(f"person: {dst} is up to date")
        return None
    if not labels.exists() and names_input(dst, labels, storage):
        print(f"person: {labels} is gone: what people decided in it counts no more")
    found = standing(config)
    rows = list(checks_of(found))
    with table_writer(dst, CHECKS) as out:
        out.write(pa.Table.from_pylist(rows, schema=CHECKS))
    stage.seal(dst, rows_in=len(rows), rejected=sum(not row["ok"] for row in rows))
    if found.by or found.left_out:
        left = f", {found.left_out} decisions are about other answers" if found.left_out else ""
        print(f"person: people decided on {len(rows)} answers{left} -> {dst}")
    return len(rows)


def main() -> int:
    """Run the stage."""
    run(load_config(cli.parser(__doc__).parse_args().config))
    return 0


if __name__ == "__main__":
    cli.run(main)
