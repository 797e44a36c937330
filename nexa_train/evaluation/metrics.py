"""From answers, verdicts and losses of the models to the figures of the report. Pure.

Shares are 0..1, losses nats per trained token (weighted by tokens over all samples), tokens/s those
of batched generation. A measurement that was not made is None. How differences are judged is said
in `comparison`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_train.evaluation.significance import (
    FEWEST_DOCUMENTS,
    Pairs,
    compare_passes,
    paired_difference,
    wilson,
)

Json = dict[str, Any]
# The three models, and the table of each one's answers.
ANSWERS = {
    "teacher": "collected_dataset",
    "before": "baseline_outputs",
    "after": "student_outputs",
}
EXAMPLES = 12
EXECUTED = ("exec.executes", "exec.matches")


@dataclass(frozen=True)
class Exam:
    """One model's answers to the held-out prompts, by `sample_id`.

    `reasons`: why an answer was rejected, first reason first; empty for one that passed.
    `loss`: the measurement of `held_out_loss`, or None. `scores`: by check of the judges, 0..1, of
    the answers that they gave a verdict on; empty when no judge was run. `executed`: by sample the
    checks that execution makes of it, null where it was not run or could not be decided.
    """

    answers: Mapping[str, Json]
    reasons: Mapping[str, list[str]]
    loss: Json | None
    scores: Mapping[str, list[float]] = field(default_factory=dict)
    executed: Mapping[str, Mapping[str, bool | None]] = field(default_factory=dict)


def assess(prompts: Sequence[Json], exams: Mapping[str, Exam]) -> Json:
    """`{prompts, models, comparison, outcomes, examples}` of the report, from what was measured.

    `prompts` are the held-out rows. Raises InputError when `before` and `after` did not answer
    exactly these, because a paired comparison of different prompts would say nothing.
    """
    wanted = {row["sample_id"] for row in prompts}
    for name in ("before", "after"):
        found = set(exams[name].answers)
        if found != wanted:
            raise InputError(
                f"the student {name} training answered {len(found & wanted)} of the {len(wanted)} "
                f"held-out prompts and {len(found - wanted)} others; run "
                f"`{TABLES[ANSWERS[name]].command}` again"
            )
    return {
        "prompts": len(prompts),
        "models": {name: _model(prompts, exam) for name, exam in exams.items()},
        "comparison": _comparison(prompts, exams["before"], exams["after"]),
        "outcomes": _outcomes(prompts, exams["after"]),
        "examples": [_example(row, exams) for row in prompts[:EXAMPLES]],
    }


def _model(prompts: Sequence[Json], exam: Exam) -> Json:
    answered = [row for row in prompts if row["sample_id"] in exam.answers]
    answers = [exam.answers[row["sample_id"]] for row in answered]
    first = Counter(r[0] for row in answered if (r := exam.reasons[row["sample_id"]]))
    return {
        "model_id": ", ".join(sorted({str(answer["model_id"]) for answer in answers})) or None,
        "parameters": exam.loss["parameters"] if exam.loss else None,
        "layers": exam.loss["layers"] if exam.loss else None,
        "gate": _gate(answered, exam),
        "execution": _execution(answered, exam),
        "by_task": _by("template_name", answered, exam),
        "by_domain": _by("domain", answered, exam),
        "reject_reason_counts": dict(first.most_common()),
        "judge": {name: fmean(scores) for name, scores in exam.scores.items()} or None,
        "loss": _loss(exam.loss),
        "answer_tokens": _lengths(answers),
        "generation": _speed(answers),
    }


def _gate(rows: Sequence[Json], exam: Exam) -> Json:
    return _share(sum(not exam.reasons[row["sample_id"]] for row in rows), len(rows))


def _share(passed: int, total: int) -> Json:
    interval = wilson(passed, total)
    return {
        "passed": passed, "total": total, "rate": passed / total if total else None,
        "low": interval[0] if interval else None, "high": interval[1] if interval else None,
    }  # fmt: skip


def _execution(rows: Sequence[Json], exam: Exam) -> dict[str, Json | None]:
    """Of all answers that the check is about: one that the rules refused was not run, and is not
    right. None: it is about none of them.
    """
    found = {}
    for check in EXECUTED:
        made = [exam.executed.get(row["sample_id"], {}) for row in rows]
        values = [checks[check] for checks in made if check in checks]
        share = _share(values.count(True), len(values)) | {"not_decided": values.count(None)}
        found[check] = share if values else None
    return found


def _by(column: str, rows: Sequence[Json], exam: Exam) -> dict[str, Json]:
    names = sorted({row[column] or "not said" for row in rows})
    groups = {name: [r for r in rows if (r[column] or "not said") == name] for name in names}
    return {
        name: _gate(group, exam) | {"execution": _execution(group, exam)}
        for name, group in groups.items()
    }


def _loss(measured: Json | None) -> Json | None:
    if measured is None or not measured["samples"]:
        return None
    tokens = sum(sample["tokens"] for sample in measured["samples"])
    nats = sum(sample["nats"] for sample in measured["samples"])
    return {
        "nats_per_token": nats / tokens, "tokens": tokens, "samples": len(measured["samples"]),
        "skipped": measured["skipped"], "precision": measured["precision"],
    }  # fmt: skip


def _lengths(answers: Sequence[Json]) -> Json | None:
    counts = [a["completion_tokens"] for a in answers if a["completion_tokens"] is not None]
    if not counts:
        return None
    return {
        "mean": fmean(counts), "median": median(counts), "min": min(counts), "max": max(counts),
        "answers": len(counts),
    }  # fmt: skip


def _speed(answers: Sequence[Json]) -> Json | None:
    """Of answers generated here: their latencies add up to clock time. An API's overlap."""
    local = [a for a in answers if a["request_key"] is None]
    if not local or any(a["latency_ms"] is None or a["completion_tokens"] is None for a in local):
        return None
    seconds = sum(a["latency_ms"] for a in local) / 1000
    tokens = sum(a["completion_tokens"] for a in local)
    return {"tokens_per_second": tokens / seconds, "tokens": tokens, "seconds": seconds}


def _comparison(prompts: Sequence[Json], before: Exam, after: Exam) -> Json:
    found: Json = {"gate": _compare_gate(prompts, before, after)}
    for key, column in (("by_task", "template_name"), ("by_domain", "domain")):
        names = sorted({row[column] or "not said" for row in prompts})
        found[key] = {
            name: _compare_gate(
                [row for row in prompts if (row[column] or "not said") == name], before, after
            )
            for name in names
        }
    loss = _compare_losses(before, after)
    return found | {"loss": loss, "fewest_documents": FEWEST_DOCUMENTS}


def _compare_gate(prompts: Sequence[Json], before: Exam, after: Exam) -> Json | None:
    passes = [[not exam.reasons[row["sample_id"]] for row in prompts] for exam in (before, after)]
    return compare_passes([row["cluster_id"] for row in prompts], *passes)


def _outcomes(prompts: Sequence[Json], after: Exam) -> dict[str, Json]:
    """Of the trained student, prompt by prompt: what a later run is compared with."""
    losses = {s["sample_id"]: s for s in after.loss["samples"]} if after.loss else {}
    keys = {row["sample_id"]: row["cluster_id"] for row in prompts}
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


def _compare_losses(before: Exam, after: Exam) -> Json | None:
    if before.loss is None or after.loss is None:
        return None
    first, second = (
        {s["sample_id"]: s for s in e.loss["samples"]} for e in (before, after) if e.loss
    )
    both = sorted(first.keys() & second.keys())
    if any(first[key]["tokens"] != second[key]["tokens"] for key in both):
        return None  # two tokenizers: nats per token are of different tokens
    return paired_difference(
        Pairs(
            groups=[first[key]["document"] for key in both],
            before=[first[key]["nats"] for key in both],
            after=[second[key]["nats"] for key in both],
            weights=[first[key]["tokens"] for key in both],
        )
    )


def _example(row: Json, exams: Mapping[str, Exam]) -> Json:
    """One prompt and the answers to it; a hash decides which, so nobody picked them."""
    said = {}
    for name, exam in exams.items():
        answer = exam.answers.get(row["sample_id"])
        said[name] = answer and {
            "text": answer["teacher_output"], "finish_reason": answer["finish_reason"],
            "tokens": answer["completion_tokens"], "reasons": exam.reasons[row["sample_id"]],
        }  # fmt: skip
    keys = ("sample_id", "template_name", "domain", "user_prompt")
    return {**{key: row[key] for key in keys}, "answers": said}
