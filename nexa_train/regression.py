"""Regression gate: is this student worse than the last accepted one? Runs at every evaluation.

Reads:  `<storage.evaluation>/report.json` (sealed), `accepted.jsonl`, `regression_gate:` of the
        filters file
Writes: `accept` appends to `<storage.evaluation>/accepted.jsonl`: the outcome of each prompt, and
        the hashes of the prompts, the gates, the checkpoint and the report; lines never change
Raises: QualityGateMissed (3) for a student that is worse beyond the margin, or that cannot be
        compared; InputMissing (66) without a report

Worse: the whole 95 % interval of the paired difference is beyond the margin, and for passes
McNemar's test agrees. Both students are compared on the same prompts behind the same gates
(`reporting/run_comparison.py`), or not at all. Without an accepted run, or with too few documents for an interval,
the gate is open, and the report contains a note.

Run: python -m nexa_train.regression [accept|check] [--note TEXT] [--config FILE]
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_distill.annotation import event_log
from nexa_distill.console import cli
from nexa_distill.errors import InputError, QualityGateMissed
from nexa_distill.reporting.run_comparison import answered_prompts, compare_outcomes
from nexa_distill.settings.filters import FilterConfig, RegressionGate
from nexa_distill.settings.pipeline import DistillConfig, Storage, load_config
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.atomic import Json
from nexa_distill.storage.manifests import run_id, sealed_hash, utc_now
from nexa_distill.text.hashing import compact_json, sha256_text

ACCEPT = "python -m nexa_train.regression accept"


def accepted_path(storage: Storage) -> Path:
    return storage.path_of("evaluation") / "accepted.jsonl"


def load_gate(config: DistillConfig) -> RegressionGate:
    return load_yaml(Path(config.filters), FilterConfig).regression_gate


def load_accepted(storage: Storage) -> Json | None:
    """The last accepted run, or None. Raises InputError for an invalid line."""
    # All lines are read: an invalid one above the last is refused too.
    last = None
    for number, line in event_log.read_lines(accepted_path(storage)):
        if not event_log.is_complete_event(line):
            raise InputError(f"{accepted_path(storage)}: line {number} is no JSON object; remove it")
        last = json.loads(line)
    return last


def accept_report(storage: Storage, note: str | None) -> Json:
    path = storage.path_of("evaluation_report")
    digest = sealed_hash(path, storage)
    report = json.loads(path.read_text(encoding="utf-8"))
    entry = {
        "accepted_at": utc_now(),
        "accepted_in": run_id(),
        "note": note,
        "report_sha256": digest,
        "run_id": report["run_id"],
        "run_name": report["run_name"],
        "checkpoint_sha256": report["facts"]["checkpoint_sha256"],
        **{name: report[name] for name in ("prompts_sha256", "gates_sha256", "outcomes")},
    }
    event_log.append(accepted_path(storage), entry)
    return entry


def hash_value(value: object) -> str:
    return sha256_text(compact_json(value))


def compare_runs(before: Mapping[str, Any] | None, now: Mapping[str, Any], gate: RegressionGate) -> Json:
    """Compare the current run with the accepted one, if there is one.

    `gate` and `loss`: null if they could not be compared. `misses`: why the gate is missed. An outcome
    has `document`, `passes` (null: not answered), and `nats` and `tokens` of the teacher's answer
    (null: not measured).
    """
    result: Json = {"accepted": None, "shared": None, "gate": None, "loss": None, "misses": []}
    if before is None:
        return result
    named = ("run_id", "run_name", "accepted_at", "checkpoint_sha256")
    compared = compare_outcomes(before, now)
    result |= {"accepted": {name: before[name] for name in named}, "shared": compared["shared"]}
    # Without the same prompts and gates the students cannot be compared: a missed gate.
    if before["prompts_sha256"] != now["prompts_sha256"]:
        why = f"{compared['shared']} of its {len(answered_prompts(before['outcomes']))} prompts are in this run too"
        return result | {"misses": [f"not the same prompts: {why}"]}
    if not compared["same_gates"]:
        return result | {"misses": ["not the same gates: thresholds, tasks or judges changed"]}
    result |= {name: compared[name] for name in ("gate", "loss")}
    return result | {"misses": _find_misses(result, gate)}


def _find_misses(result: Json, gate: RegressionGate) -> list[str]:
    passes, loss = result["gate"], result["loss"]
    drop, rise = gate.max_pass_rate_drop, gate.max_loss_rise
    misses = []
    # The verdict needs McNemar's test; the margin is compared with the interval's near end.
    worse = passes and passes["verdict"] == "lower"
    if drop is not None and worse and passes["high"] < -drop:
        misses.append(
            f"gate pass rate {passes['difference']:+.4f}, at best {passes['high']:+.4f} (max_pass_rate_drop {drop})"
        )
    if rise is not None and loss and loss["low"] is not None and loss["low"] > rise:
        misses.append(
            f"loss {loss['difference']:+.4f} nats per token, at best {loss['low']:+.4f} (max_loss_rise {rise})"
        )
    return misses


def enforce_gate(config: DistillConfig) -> str:
    """The comparison in words. Raises QualityGateMissed (3) if the gate is missed."""
    from nexa_train.reports.evaluation_text import regression_paragraph

    path = config.storage.path_of("evaluation_report")
    sealed_hash(path, config.storage)
    result = json.loads(path.read_text(encoding="utf-8"))["regression"]
    if result["misses"]:
        raise QualityGateMissed(
            f"against the accepted run {result['accepted']['run_id']}: "
            + "; ".join(result["misses"])
            + f". Read {path.with_suffix('.md')}; train again, or change regression_gate: in "
            f"{config.filters}, or accept this run with `{ACCEPT}` and evaluate again"
        )
    return regression_paragraph(result)


def main() -> None:
    parser = cli.build_parser(__doc__)
    parser.add_argument("command", nargs="?", choices=("accept", "check"), default="check")
    parser.add_argument("--note", help="the reason, kept in the file")
    args = parser.parse_args()
    config = load_config(args.config)
    if args.command == "check":
        print(enforce_gate(config))
        return
    entry = accept_report(config.storage, args.note)
    count = len(entry["outcomes"])
    print(f"accepted: run {entry['run_id']}, {count} prompts -> {accepted_path(config.storage)}")


if __name__ == "__main__":
    cli.run(main)
