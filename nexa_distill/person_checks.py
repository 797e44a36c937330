"""Human decisions as checks, for SampleGate.

Reads   storage.annotations (may be missing), collected_dataset and regen_dataset
Writes  person_checks (contracts.CHECKS, `person.decision`)
Keeps   one row per answer with a decision: ok is true if all annotators accept it, false if none
        does (`rejected_by_person`), null if they disagree (`annotators_disagree`). An accept
        overrides no gate. Decisions that are older than the answer, or on a missing answer, are
        ignored and counted (`annotation/decisions.py`)
Raises  InputError (65) naming the line that is not a decision, InputMissing (66)

    python -m nexa_distill.person_checks
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from nexa_distill.annotation.decisions import ValidDecisions, load_valid_decisions
from nexa_distill.console import cli
from nexa_distill.contracts import CHECKS
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.manifests import StageRun, names_input, valid_regenerations
from nexa_distill.storage.tables import table_writer


def settings(_config: DistillConfig) -> dict[str, Any]:
    """No settings: only the inputs determine the checks."""
    return {}


def decision_checks(decisions: ValidDecisions) -> Iterator[dict[str, Any]]:
    for key, events in decisions.by.items():
        accepted = decisions.is_accepted(key)
        names = ", ".join(event.annotator or "somebody" for event in events)
        comments = decisions.comment_text(key)
        reasons = {True: None, False: "rejected_by_person", None: "annotators_disagree"}
        yield {
            "sample_id": key[0],
            "attempt": key[1],
            "check": "person.decision",
            "ok": accepted,
            "reason": reasons[accepted],
            "detail": f"{names}: {comments}" if comments else names,
        }


def run(config: DistillConfig) -> int | None:
    """Write the checks; returns the number of answers with decisions, or None if up to date."""
    storage = config.storage
    dst, labels = storage.path_of("person_checks"), storage.path_of("annotations")
    inputs = [storage.path_of("collected_dataset"), *valid_regenerations(storage)]
    inputs += [labels] if labels.exists() else []
    stage = StageRun("person", storage, inputs=inputs, settings=settings(config))
    if stage.is_current(dst):
        print(f"person: {dst} is up to date")
        return None
    if not labels.exists() and names_input(dst, labels, storage):
        print(f"person: {labels} is missing: its decisions no longer apply")
    decisions = load_valid_decisions(config)
    rows = list(decision_checks(decisions))
    with table_writer(dst, CHECKS) as out:
        out.write(pa.Table.from_pylist(rows, schema=CHECKS))
    stage.seal_output(dst, rows_in=len(rows), rejected=sum(not row["ok"] for row in rows))
    if decisions.by or decisions.left_out:
        count = decisions.left_out
        ignored = f", {count} decisions on other answers ignored" if count else ""
        print(f"person: human decisions on {len(rows)} answers{ignored} -> {dst}")
    return len(rows)


def main() -> None:
    run(load_config(cli.build_parser(__doc__).parse_args().config))


if __name__ == "__main__":
    cli.run(main)
