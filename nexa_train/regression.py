"""Is this student worse than the last one that was accepted? Asked at every evaluation.

Reads:  `<storage.evaluation>/report.json` (sealed), `accepted.jsonl`, `regression_gate:` of the
        filters file
Writes: `accept` appends to `<storage.evaluation>/accepted.jsonl`: the outcome of each prompt, and
        the hashes of the prompts, the gates, the checkpoint and the report; nothing is ever changed
Raises: QualityGateMissed (3) for a student that is worse beyond the margin, or that cannot be
        compared; InputMissing (66) without a report

Worse: the whole 95 % interval of the paired difference lies beyond the margin, and for passes
McNemar's test agrees. Accepted and present student are compared on the same prompts behind the same
gates (`significance`), or not at all. Without an accepted run, or with too few documents for an
interval, there is nothing to decide by: the gate is open, and the report says so.

Run: python -m nexa_train.regression [accept|check] [--note TEXT] [--config FILE]
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_distill.annotation import event_log
from nexa_distill.console import cli
from nexa_distill.errors import InputError, QualityGateMissed
from nexa_distill.settings.filters import FilterConfig, RegressionGate
from nexa_distill.settings.pipeline import DistillConfig, Storage, load_config
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.manifests import run_id, sealed_hash, utc_now
from nexa_distill.text.hashing import compact_json, sha256_text
from nexa_train.evaluation.significance import Pairs, compare_passes, paired_difference

Json = dict[str, Any]
ACCEPT = "python -m nexa_train.regression accept"


def path_of(storage: Storage) -> Path:
    """The file of accepted runs."""
    return storage.path("evaluation") / "accepted.jsonl"


def load_gate(config: DistillConfig) -> RegressionGate:
    """`regression_gate:` of the filters file."""
    return load_yaml(Path(config.filters), FilterConfig).regression_gate


def accepted(storage: Storage) -> Json | None:
    """The last accepted run, or None. Raises InputError for a line that is none."""
    last = None
    for number, line in event_log.lines(path_of(storage)):
        if not event_log.whole(line):
            raise InputError(f"{path_of(storage)}: line {number} is no JSON object; remove it")
        last = json.loads(line)
    return last


def accept(storage: Storage, note: str | None) -> Json:
    """Record the present report as the one that later students are compared with."""
    path = storage.path("evaluation_report")
    digest = sealed_hash(path, storage)
    report = json.loads(path.read_text(encoding="utf-8"))
    found = {
        "accepted_at": utc_now(), "accepted_in": run_id(), "note": note, "report_sha256": digest,
        "run_id": report["run_id"], "run_name": report["run_name"],
        "checkpoint_sha256": report["facts"]["checkpoint_sha256"],
        **{name: report[name] for name in ("prompts_sha256", "gates_sha256", "outcomes")},
    }  # fmt: skip
    event_log.append(path_of(storage), found)
    return found


def fingerprint(value: object) -> str:
    """The hash under which prompts, or gates, are the same."""
    return sha256_text(compact_json(value))


def compare(before: Mapping[str, Any] | None, now: Mapping[str, Any], gate: RegressionGate) -> Json:
    """The accepted run (None: there is none) beside the present one; `gate` and `loss` are null
    where they could not be compared, `misses` says in words why the gate is missed.

    Both have `prompts_sha256`, `gates_sha256` and `outcomes`: by `sample_id` its source document,
    whether the answer passed (null: not asked), and nats and tokens of the teacher's answer (null:
    not measured).
    """
    result: Json = {"accepted": None, "shared": None, "gate": None, "loss": None, "misses": []}
    if before is None:
        return result
    named = ("run_id", "run_name", "accepted_at", "checkpoint_sha256")
    then, today = before["outcomes"], now["outcomes"]
    both = sorted(_asked(then) & _asked(today))
    result |= {"accepted": {name: before[name] for name in named}, "shared": len(both)}
    if before["prompts_sha256"] != now["prompts_sha256"]:
        why = f"of its {len(_asked(then))} prompts {len(both)} are asked in this run too"
        return result | {"misses": [f"not the same prompts: {why}"]}
    if before["gates_sha256"] != now["gates_sha256"]:
        return result | {"misses": ["not the same gates: thresholds, tasks or judges changed"]}
    passes = [[run[key]["passes"] for key in both] for run in (then, today)]
    result["gate"] = compare_passes([today[key]["document"] for key in both], *passes)
    result["loss"] = _losses(then, today)
    return result | {"misses": _misses(result, gate)}


def _asked(outcomes: Json) -> set[str]:
    """The prompts; a loss can be of a sample that the student was not asked (`max_prompts`)."""
    return {key for key, outcome in outcomes.items() if outcome["passes"] is not None}


def _losses(then: Json, today: Json) -> Json | None:
    """Null where another set of answers was measured, or by another tokenizer."""
    tokens = [{k: run[k]["tokens"] for k in run if run[k]["tokens"] is not None}
              for run in (then, today)]  # fmt: skip
    if tokens[0] != tokens[1]:
        return None
    keys = sorted(tokens[0])
    return paired_difference(
        Pairs(
            groups=[today[key]["document"] for key in keys],
            before=[then[key]["nats"] for key in keys],
            after=[today[key]["nats"] for key in keys],
            weights=[tokens[0][key] for key in keys],
        )
    )


def _misses(result: Json, gate: RegressionGate) -> list[str]:
    passes, loss = result["gate"], result["loss"]
    drop, rise = gate.max_pass_rate_drop, gate.max_loss_rise
    found = []
    worse = passes and passes["verdict"] == "lower"
    if drop is not None and worse and passes["high"] < -drop:
        found.append(
            f"gate pass rate {passes['difference']:+.4f}, at best {passes['high']:+.4f} "
            f"(max_pass_rate_drop {drop})"
        )
    if rise is not None and loss and loss["low"] is not None and loss["low"] > rise:
        found.append(
            f"loss {loss['difference']:+.4f} nats per token, at best {loss['low']:+.4f} "
            f"(max_loss_rise {rise})"
        )
    return found


def enforce(config: DistillConfig) -> str:
    """What the present report says, in words. Raises QualityGateMissed (3) for a missed gate."""
    from nexa_train.reports.evaluation_text import regression

    path = config.storage.path("evaluation_report")
    sealed_hash(path, config.storage)
    found = json.loads(path.read_text(encoding="utf-8"))["regression"]
    if found["misses"]:
        raise QualityGateMissed(
            f"against the accepted run {found['accepted']['run_id']}: "
            + "; ".join(found["misses"])
            + f". Read {path.with_suffix('.md')}; train again, or change regression_gate: in "
            f"{config.filters}, or accept this run with `{ACCEPT}` and evaluate again"
        )
    return regression(found)


def main() -> int:
    """Command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("command", nargs="?", choices=("accept", "check"), default="check")
    parser.add_argument("--note", help="why, for whoever reads the file later")
    args = parser.parse_args()
    config = load_config(args.config)
    if args.command == "check":
        print(enforce(config))
        return 0
    found = accept(config.storage, args.note)
    print(f"accepted: run {found['run_id']}, {len(found['outcomes'])} prompts -> "
          f"{path_of(config.storage)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    cli.run(main)
