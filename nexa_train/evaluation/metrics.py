"""The metrics of the evaluation report, from answers, gate results and losses. Pure functions.

Shares are 0..1, losses nats per trained token (weighted by tokens over all samples), tokens/s those
of batched generation. A missing measurement is None. `significance` compares them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_distill.reporting.significance import FEWEST_DOCUMENTS, compare_losses, compare_passes, wilson_interval
from nexa_distill.storage.atomic import Json

# The three models, and the table of their answers.
ANSWER_TABLES = {"teacher": "collected_dataset", "before": "baseline_outputs", "after": "student_outputs"}
EXAMPLE_COUNT = 12
# Of SQL all four; of other kinds the second and the third. Each needs the one before it.
EXEC_CHECKS = ("exec.parses", "exec.executes", "exec.matches", "exec.matches_perturbed")


@dataclass(frozen=True)
class HeldOutResults:
    """One model's answers to the held-out prompts, by `sample_id`."""

    answers: Mapping[str, Json]
    reasons: Mapping[str, list[str]]  # of the rejection, in order; empty if the answer passed
    loss: Json | None  # the measurement of `held_out_loss`
    # Per judge check, 0..1, of the answers with a verdict; empty without judges.
    scores: Mapping[str, list[float]] = field(default_factory=dict)
    # Per sample its execution checks; None: not run, or not decided.
    executed: Mapping[str, Mapping[str, bool | None]] = field(default_factory=dict)


def compute_metrics(prompts: Sequence[Json], results: Mapping[str, HeldOutResults]) -> Json:
    """`{prompts, models, comparison, outcomes, examples}`. Raises InputError for answers to other prompts."""
    # A paired comparison needs the same prompts, exactly.
    expected = {row["sample_id"] for row in prompts}
    for name in ("before", "after"):
        ids = set(results[name].answers)
        if ids != expected:
            raise InputError(
                f"the student {name} training answered {len(ids & expected)} of the "
                f"{len(expected)} held-out prompts and {len(ids - expected)} others; run "
                f"`{TABLES[ANSWER_TABLES[name]].command}` again"
            )
    return {
        "prompts": len(prompts),
        "models": {name: _model_metrics(prompts, exam) for name, exam in results.items()},
        "comparison": _compare_students(prompts, results["before"], results["after"]),
        "outcomes": _prompt_outcomes(prompts, results["after"]),
        # The order by hash picks the examples, not a human.
        "examples": [_build_example(row, results) for row in prompts[:EXAMPLE_COUNT]],
    }


def _model_metrics(prompts: Sequence[Json], result: HeldOutResults) -> Json:
    # The teacher may have answered some of the prompts only.
    answered = [row for row in prompts if row["sample_id"] in result.answers]
    answers = [result.answers[row["sample_id"]] for row in answered]
    # Each rejected answer counts once, under its first reason.
    first = Counter(r[0] for row in answered if (r := result.reasons[row["sample_id"]]))
    return {
        "model_id": ", ".join(sorted({str(answer["model_id"]) for answer in answers})) or None,
        "parameters": result.loss["parameters"] if result.loss else None,
        "layers": result.loss["layers"] if result.loss else None,
        "gate": _gate_share(answered, result),
        "execution": _execution_shares(answered, result),
        "by_task": _group_by_column("template_name", answered, result),
        "by_domain": _group_by_column("domain", answered, result),
        "reject_reason_counts": dict(first.most_common()),
        "judge": {name: fmean(scores) for name, scores in result.scores.items()} or None,
        "loss": _mean_loss(result.loss),
        "answer_tokens": _answer_lengths(answers),
        "generation": _generation_speed(answers),
    }


def _gate_share(rows: Sequence[Json], result: HeldOutResults) -> Json:
    return _share_with_interval(sum(not result.reasons[row["sample_id"]] for row in rows), len(rows))


def _share_with_interval(passed: int, total: int) -> Json:
    low, high = wilson_interval(passed, total) or (None, None)
    rate = passed / total if total else None
    return {"passed": passed, "total": total, "rate": rate, "low": low, "high": high}


def _execution_shares(rows: Sequence[Json], result: HeldOutResults) -> dict[str, Json | None]:
    shares: dict[str, Json | None] = {}
    for check in EXEC_CHECKS:
        results = [result.executed.get(row["sample_id"], {}) for row in rows]
        # None counts as not right: the rules refused the answer, so it was not run.
        values = [checks[check] for checks in results if check in checks]
        share = _share_with_interval(values.count(True), len(values)) | {"not_decided": values.count(None)}
        shares[check] = share if values else None
    return shares


def _group_by_column(column: str, rows: Sequence[Json], result: HeldOutResults) -> dict[str, Json]:
    return {
        name: _gate_share(group, result) | {"execution": _execution_shares(group, result)}
        for name, group in _group_rows(column, rows).items()
    }


def _group_rows(column: str, rows: Sequence[Json]) -> dict[str, list[Json]]:
    names = sorted({row[column] or "not said" for row in rows})
    return {name: [row for row in rows if (row[column] or "not said") == name] for name in names}


def _mean_loss(measured: Json | None) -> Json | None:
    if measured is None or not measured["samples"]:
        return None
    # Weighted by tokens: a mean of the samples' means would favour short answers.
    tokens = sum(sample["tokens"] for sample in measured["samples"])
    nats = sum(sample["nats"] for sample in measured["samples"])
    figures = {"nats_per_token": nats / tokens, "tokens": tokens}
    figures |= {"samples": len(measured["samples"])}
    return figures | {key: measured[key] for key in ("skipped", "precision")}


def _answer_lengths(answers: Sequence[Json]) -> Json | None:
    counts = [a["completion_tokens"] for a in answers if a["completion_tokens"] is not None]
    if not counts:
        return None
    figures = {"mean": fmean(counts), "median": median(counts)}
    return figures | {"min": min(counts), "max": max(counts), "answers": len(counts)}


def _generation_speed(answers: Sequence[Json]) -> Json | None:
    # Local latencies add up to elapsed time; those of an API overlap.
    local = [a for a in answers if a["request_key"] is None]
    if not local or any(a["latency_ms"] is None or a["completion_tokens"] is None for a in local):
        return None
    seconds = sum(a["latency_ms"] for a in local) / 1000
    tokens = sum(a["completion_tokens"] for a in local)
    return {"tokens_per_second": tokens / seconds, "tokens": tokens, "seconds": seconds}


def _compare_students(prompts: Sequence[Json], before: HeldOutResults, after: HeldOutResults) -> Json:
    comparison: Json = {"gate": _compare_gate(prompts, before, after)}
    for key, column in (("by_task", "template_name"), ("by_domain", "domain")):
        groups = _group_rows(column, prompts).items()
        comparison[key] = {name: _compare_gate(rows, before, after) for name, rows in groups}
    loss = compare_losses(_losses_by_sample(before), _losses_by_sample(after))
    return comparison | {"loss": loss, "fewest_documents": FEWEST_DOCUMENTS}


def _compare_gate(prompts: Sequence[Json], before: HeldOutResults, after: HeldOutResults) -> Json | None:
    passes = [[not result.reasons[row["sample_id"]] for row in prompts] for result in (before, after)]
    return compare_passes([row["cluster_id"] for row in prompts], *passes)


def _prompt_outcomes(prompts: Sequence[Json], after: HeldOutResults) -> dict[str, Json]:
    # `regression` compares a later student with these.
    losses = _losses_by_sample(after)
    keys = {row["sample_id"]: row["cluster_id"] for row in prompts}
    # Samples beyond `max_prompts` have a loss and no answer.
    keys |= {key: sample["document"] for key, sample in losses.items()}
    return {
        key: {
            "document": document,
            "passes": not after.reasons[key] if key in after.reasons else None,
            "nats": losses[key]["nats"] if key in losses else None,
            "tokens": losses[key]["tokens"] if key in losses else None,
        }
        for key, document in sorted(keys.items())
    }


def _losses_by_sample(result: HeldOutResults) -> dict[str, Json]:
    samples = result.loss["samples"] if result.loss else []
    return {sample["sample_id"]: sample for sample in samples}


def _build_example(row: Json, results: Mapping[str, HeldOutResults]) -> Json:
    answers = {}
    for name, result in results.items():
        answer = result.answers.get(row["sample_id"])
        answers[name] = answer and {
            "text": answer["teacher_output"],
            "finish_reason": answer["finish_reason"],
            "tokens": answer["completion_tokens"],
            "reasons": result.reasons[row["sample_id"]],
        }
    keys = ("sample_id", "template_name", "domain", "user_prompt")
    return {**{key: row[key] for key in keys}, "answers": answers}
