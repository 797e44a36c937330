"""Contracts between stages: table schemas, the closed list of reasons, and the key of a row.

`storage/tables.py` reads and writes the tables. `docs/data-contracts.md` is generated from this file
(`python -m nexa_distill.contracts > docs/data-contracts.md`) and compared in the tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import yaml

from nexa_distill.text.hashing import compact_json, sha256_text

Row = dict[str, Any]  # of a table: column -> value


def _make_field(name: str, kind: pa.DataType, doc: str, *, required: bool = False) -> pa.Field:
    # The meaning is part of the schema: the written contracts are generated from it.
    return pa.field(name, kind, nullable=not required, metadata={"doc": doc})


_STR, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
_TIME = pa.timestamp("us", tz="UTC")

SPLITS = ("train", "val", "test")  # of two that must not meet, the later one stays

# fmt: off
SAMPLE_ID = _make_field("sample_id", _STR, "sha256(task_id | canonical_input), hex", required=True)
ATTEMPT = _make_field(
    "attempt", _INT,
    "first answers from 0, then one per repair round; edits of annotators from 1000000",
    required=True,
)
TASK_FIELDS = [
    _make_field("task_id", _STR, "name of the task in the raw data, with chunk and task type", required=True),
    _make_field("domain", _STR, "subject area, from the raw data"),
    _make_field("template_name", _STR, "task type: hypothesis, methodology, text2sql, math, ...", required=True),
    _make_field("system_prompt", _STR, "system prompt of this row; null = the collection's"),
    _make_field("user_prompt", _STR, "the complete user message", required=True),
    _make_field("context", _STR, "source text that the prompt is about"),
    _make_field("reference", _STR, "known right answer, if there is one"),
    _make_field("schema", _STR, "text2sql: CREATE TABLE statements"),
    _make_field("gold_sql", _STR, "text2sql: a right query"),
    _make_field("database", _STR, "text2sql: name of the database, NAME or NAME.sqlite"),
    _make_field("tests", _STR, "python: statements that a right program passes, after it is loaded"),
    _make_field("source_file", _STR, "raw file, relative to the input", required=True),
    _make_field("source_row", _INT, "0-based row (or file number) in the raw input; never an identity", required=True),
]
CONTENT_COLUMNS = (
    "domain", "template_name", "system_prompt", "user_prompt", "context",
    "reference", "schema", "gold_sql", "database", "tests",
)

CANONICAL = pa.schema(
    [
        SAMPLE_ID, *TASK_FIELDS,
        _make_field("document_id", _STR, "sha256 of the folded source document", required=True),
        _make_field("raw_split", _STR, "split that the raw data names (split.column); null = by the cluster's hash"),
    ]
)
INPUTS = pa.schema(
    [
        SAMPLE_ID, *TASK_FIELDS,
        _make_field("cluster_id", _STR, "duplicate cluster; decides the split", required=True),
        _make_field("split", _STR, "train, val or test; never changes later", required=True),
    ]
)
_REASON = _make_field("rejection_reason", _STR, "first reason", required=True)
REJECTED_INPUTS = pa.schema(
    [
        *CANONICAL, _REASON,
        _make_field("matched", _STR, "sample_id of the row that was kept or is held out, or FILE:ROW:COLUMN of an eval file"),
        _make_field("detail", _STR, "human-readable evidence: the shared words, or the splits that would be joined"),
    ]
)
CLUSTERS = pa.schema(
    [
        _make_field("document_id", _STR, "sha256 of the folded source document", required=True),
        _make_field("cluster_id", _STR, "its duplicate cluster; never changes", required=True),
    ]
)
OUTPUTS = pa.schema(
    [
        *INPUTS, ATTEMPT,
        _make_field("teacher_output", _STR, "the answer, cleaned; null when there is none"),
        _make_field("raw_output", _STR, "the answer as received; null when cleaning changed nothing"),
        _make_field("reasoning_output", _STR, "reasoning kept apart from the answer"),
        _make_field("model_id", _STR, "model that answered, as the API named it", required=True),
        _make_field("finish_reason", _STR, "stop, length, content_filter, tool_calls, or an "
               "unknown word; null when missing"),
        _make_field("answer_flag", _STR, "what is unusual about the answer (below); null = nothing"),
        _make_field("system_fingerprint", _STR, "the API's name of its configuration; null when missing"),
        _make_field("prompt_tokens", _INT, "as billed; null when missing"),
        _make_field("completion_tokens", _INT, "as billed; null when missing"),
        _make_field("total_tokens", _INT, "as billed; null when missing"),
        _make_field("latency_ms", _FLOAT, "request sent to body complete, milliseconds"),
        _make_field("cost_usd", _FLOAT, "US dollars by the configured prices; null when unpriced"),
        _make_field("request_key", _STR, "journal key of the request"),
        _make_field("created_at", _TIME, "when the answer arrived, UTC"),
        _make_field("repaired_reason", _STR, "why the answer before this one was rejected; null = a first answer"),
    ]
)
UNANSWERED = pa.schema(
    [
        *INPUTS,
        ATTEMPT,
        _REASON,
        _make_field("detail", _STR, "the API's last response: status and start of the body"),
        _make_field("request_key", _STR, "journal key of the request; null without a request"),
    ]
)
REJECTIONS = pa.schema(
    [*OUTPUTS, _REASON]
    + [
        _make_field(
            "rejection_reasons",
            pa.list_(_STR),
            "all reasons, in order of the checks",
            required=True,
        )
    ]
)
CHECKS = pa.schema(
    [
        SAMPLE_ID, ATTEMPT,
        _make_field("check", _STR, "rules.*, exec.*, judge.*, safety.*, person.decision", required=True),
        _make_field("ok", pa.bool_(), "null = could not be checked, which never passes except with reason `not_applied`"),
        _make_field("value", _FLOAT, "the measured value, in the check's own unit"),
        _make_field("reason", _STR, "reason if it does not pass"),
        _make_field("detail", _STR, "human-readable evidence"),
    ]
)
CANARIES = pa.schema(
    [
        _make_field("canary", _STR, "name of the bad answer (judging/canaries.py)", required=True),
        _make_field("sample_id", _STR, "the prompt whose answer it replaces", required=True),
        *(field for field in CHECKS if field.name not in ("sample_id", "attempt")),
    ]
)
MESSAGE = pa.struct(
    [pa.field("role", _STR, nullable=False), pa.field("content", _STR, nullable=False)]
)
SFT = pa.schema(
    [
        SAMPLE_ID,
        _make_field("messages", pa.list_(MESSAGE), "[{role, content}], ends with the assistant", required=True),
        _make_field("split", _STR, "train, val or test", required=True),
        _make_field("template_name", _STR, "task type", required=True),
        _make_field("domain", _STR, "subject area"),
        _make_field("model_id", _STR, "model that wrote the answer", required=True),
        ATTEMPT,
        _make_field("repaired_reason", _STR, "why the answer before this one was rejected; null = a first answer"),
    ]
)


@dataclass(frozen=True)
class Table:
    """A table between stages: `key` in `storage:`, the `stage` that writes it, the `grain` of a row."""

    key: str
    stage: str
    schema: pa.Schema
    grain: str
    command: str
    unique: tuple[str, ...] = ("sample_id",)


_ANSWER = ("sample_id", "attempt")
_CHECK = (*_ANSWER, "check")
TEACHER_LOGITS = pa.schema(
    [
        SAMPLE_ID,
        _make_field("tokens_sha256", _STR, "of the sample's token ids and labels", required=True),
        _make_field("tokens", pa.int32(), "n, the trained tokens of the sample", required=True),
        _make_field("top_ids", pa.list_(pa.int32()), "n x k token ids, the most likely first", required=True),
        _make_field("top_log_probs", pa.list_(pa.float16()), "n x k natural logarithms of their probabilities",
               required=True),
        _make_field("tail_log_prob", pa.list_(pa.float16()), "n logarithms of the mass of all other tokens",
               required=True),
    ]
)


TABLES: dict[str, Table] = {
    table.key: table
    for table in (
        Table("canonical", "canonicalize", CANONICAL, "one prompt, duplicates included",
              "python -m nexa_distill.canonicalize", ()),
        Table("raw_dataset", "dedup", INPUTS, "one prompt", "python -m nexa_distill.dedup"),
        Table("rejected_inputs", "dedup.rejected", REJECTED_INPUTS, "one rejected prompt",
              "python -m nexa_distill.dedup", ()),
        Table("collected_dataset", "teacher", OUTPUTS, "one answer (attempt 0)",
              "python -m nexa_distill.collect_teacher", _ANSWER),
        Table("unanswered", "teacher.unanswered", UNANSWERED, "one prompt without an answer",
              "python -m nexa_distill.collect_teacher", _ANSWER),
        Table("regen_dataset", "regenerate", OUTPUTS, "one repair, by a model or an annotator",
              "python -m nexa_distill.regenerate_bad", _ANSWER),
        Table("rule_filtered", "rules", OUTPUTS, "one answer that passes the rules",
              "python -m nexa_distill.filter_pairs", _ANSWER),
        Table("rules_checks", "rules.checks", CHECKS, "one rule measured on one answer",
              "python -m nexa_distill.filter_pairs", _CHECK),
        Table("exec_checks", "exec", CHECKS, "one check of one executed answer",
              "python -m nexa_distill.exec_gate", _CHECK),
        Table("judge_checks", "judge", CHECKS, "one judgement of one answer",
              "python -m nexa_distill.judge", _CHECK),
        Table("judge_canaries", "judge.canaries", CANARIES, "one judgement of one bad answer",
              "python -m nexa_distill.judge", ("canary", "sample_id", "check")),
        Table("person_checks", "person", CHECKS, "the human decisions on one answer",
              "python -m nexa_distill.person_checks", _CHECK),
        Table("filtered_dataset", "sample_gate", OUTPUTS, "the best passing answer of a sample",
              "python -m nexa_distill.sample_gate"),
        Table("rejections", "sample_gate.rejections", REJECTIONS, "one rejected answer",
              "python -m nexa_distill.sample_gate", _ANSWER),
        Table("sft_parquet", "packaging", SFT, "one training sample", "python -m nexa_distill.to_sft"),
        Table("teacher_logits", "teacher_logits", TEACHER_LOGITS,
              "the teacher's most likely tokens along one training sample",
              "python -m nexa_train.teacher_logits"),
        Table("student_outputs", "student_gen", OUTPUTS, "one held-out answer of the trained student",
              "python -m nexa_train.generate_student", _ANSWER),
        Table("baseline_outputs", "student_gen.baseline", OUTPUTS,
              "one held-out answer of the student before training",
              "python -m nexa_train.generate_student", _ANSWER),
    )
}
# fmt: on

# The measurements of answers, in the order of the gates; human decisions are beside them in `person_checks`.
CHECK_TABLES = ("rules_checks", "exec_checks", "judge_checks")

# Internal state of dedup, without a manifest (see `deduplication/splits.py`).
CLUSTERS_TABLE = Table(
    "clusters", "dedup", CLUSTERS, "one document with its cluster", "python -m nexa_distill.dedup", ("document_id",)
)


class Rubric(NamedTuple):
    """A score of 0..1 that every judge gives; all code that names a rubric reads RUBRICS."""

    name: str  # its file is `judging.rubrics.NAME`
    reason: str  # against an answer whose score is too low
    threshold: str  # the key of `sample_gate:`
    instruction: str  # for the repair of such an answer
    title: str  # of the mean score in the evaluation report
    rates_safety: bool = False  # its reply has a safety label too

    @property
    def check_name(self) -> str:
        return f"judge.{self.name}"


RUBRICS = (
    Rubric(
        name="factuality",
        reason="low_factuality",
        threshold="judge_f_threshold",
        instruction="State only what the given text supports.",
        title="judged factual",
    ),
    Rubric(
        name="reasoning",
        reason="low_reasoning",
        threshold="judge_r_threshold",
        instruction="Give the reasons step by step, each following from the one before.",
        title="judged well reasoned",
        rates_safety=True,
    ),
)
SCORE_REASONS = {rubric.check_name: rubric.reason for rubric in RUBRICS}


class Reason(NamedTuple):
    """Why a row was rejected; the fields are described in `reasons.yaml`."""

    meaning: str
    instruction: str | None
    is_doubt: bool = False
    tells_evidence: bool = False
    hides_answer: bool = False


_REASONS_FILE = Path(__file__).with_name("reasons.yaml")
REASONS: dict[str, Reason] = {
    **{name: Reason(**fields) for name, fields in yaml.safe_load(_REASONS_FILE.read_text(encoding="utf-8")).items()},
    **{r.reason: Reason(f"{r.check_name} is below {r.threshold}", r.instruction) for r in RUBRICS},
}

NOT_APPLIED = "not_applied"  # the check does not count against the answer
OFF_IN_PRESET = "off in preset "  # begins the detail of such a check of a rule that the answer's task does not have

# Reasons of checks that could not be made: another answer would not fix that.
DOUBT_REASONS = {name for name, reason in REASONS.items() if reason.is_doubt}

# OUTPUTS.answer_flag. Closed. A flagged answer is stored and paid like any other.
ANSWER_FLAGS: dict[str, str] = {
    "malformed": "HTTP 200 without a chat completion (HTML, empty, no choices)",
    "content_filter": "the provider's filter cut or withheld it",
    "refused": "the model refused in the API's own `refusal` field",
    "reasoning_cut": "it reached max_tokens, and nearly all of it is reasoning",
    "truncated": "it reached max_tokens (finish_reason length)",
    "tool_calls": "the model called a tool",
    "no_text": "no answer text; there may be reasoning",
    "schema_mismatch": "does not satisfy the task's response schema",
}

# Flag -> reason, for the flags that no other rule detects from the columns.
FLAG_REASONS: dict[str, str] = {
    "malformed": "malformed_response",
    "content_filter": "content_filter",
    "refused": "refusal",
    "reasoning_cut": "reasoning_cut",
    "schema_mismatch": "schema_mismatch",
}


def check_reasons(reasons: Sequence[str]) -> None:
    """Raises ValueError for a reason outside the closed list: a bug of the calling stage."""
    unknown = sorted(set(reasons) - REASONS.keys())
    if unknown:
        raise ValueError(f"reasons not in contracts.REASONS: {unknown}")


def canonical_input(row: Mapping[str, object]) -> str:
    """The row's content (`CONTENT_COLUMNS`) as compact JSON with nulls dropped."""
    # Nulls are left out, so that a new optional column changes no key.
    return compact_json({k: row[k] for k in CONTENT_COLUMNS if row.get(k) is not None})


def sample_id(task_id: str, canonical: str) -> str:
    """The key of a sample: sha256(task_id | canonical_input)."""
    return sha256_text(f"{task_id}|{canonical}")


def _render_markdown() -> str:
    lines = [
        "# Data contracts",
        "",
        "Generated: `python -m nexa_distill.contracts > docs/data-contracts.md`. Do not edit.",
        "",
        "Every table is Parquet (zstd), sealed by a manifest in `data/processed/manifests/`. Paths are",
        "set in `storage:` of `configs/distill_config.yaml`. Joins are on the key, never on position.",
        "",
        "| `storage:` key | stage | grain | key columns | written by |",
        "|---|---|---|---|---|",
    ]
    for t in TABLES.values():
        keys = ", ".join(f"`{k}`" for k in t.unique) or "none"
        lines.append(f"| `{t.key}` | {t.stage} | {t.grain} | {keys} | `{t.command}` |")
    lines += ["", f"`clusters` is a memory and has no manifest: {CLUSTERS_TABLE.grain} per row."]
    for name, schema in {
        "canonical": CANONICAL,
        "inputs": INPUTS,
        "rejected_inputs": REJECTED_INPUTS,
        "clusters": CLUSTERS,
        "outputs": OUTPUTS,
        "checks": CHECKS,
        "canaries": CANARIES,
        "rejections": REJECTIONS,
        "sft": SFT,
        "teacher_logits": TEACHER_LOGITS,
    }.items():
        lines += ["", f"## {name}", "", "| column | type | null | meaning |", "|---|---|---|---|"]
        for f in schema:
            null = "yes" if f.nullable else "never"
            lines.append(f"| `{f.name}` | {f.type} | {null} | {f.metadata[b'doc'].decode()} |")
    lines += ["", "## answer_flag", "", "| flag | what is unusual |", "|---|---|"]
    lines += [f"| `{flag}` | {meaning} |" for flag, meaning in ANSWER_FLAGS.items()]
    lines += ["", "## reasons", "", "| reason | what happened |", "|---|---|"]
    lines += [f"| `{reason}` | {REASONS[reason].meaning} |" for reason in REASONS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(_render_markdown())
