"""Rubrics and the requests to judges: system prompt, sections of the user message, JSON schema."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexa_distill.collection.requests.body import PromptRequest, prompt_request, request_body
from nexa_distill.contracts import RUBRICS
from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import DistillConfig, JudgeModel, load_system_prompt
from nexa_distill.text.hashing import compact_json, sha256_text
from nexa_distill.text.json_schemas import compile_schemas

Row = Mapping[str, Any]

TOKEN_LENGTH = 24
SAFETY = ("safe", "review", "critical")
_SCORED: dict[str, dict[str, Any]] = {
    "reason": {"type": "string"},
    "score": {"type": "number", "minimum": 0, "maximum": 1},
}
# By rubric: the fields of the reply. The reason comes first, so that the score follows from it.
FIELDS: dict[str, dict[str, dict[str, Any]]] = {
    rubric.name: _SCORED | ({"safety": {"type": "string", "enum": list(SAFETY)}} if rubric.rates_safety else {})
    for rubric in RUBRICS
}
_SCHEMAS = compile_schemas(
    {
        name: {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
        for name, fields in FIELDS.items()
    }
)
# The sections of the user message, in order: column -> title.
PROMPT_SECTIONS = {
    "system_prompt": "instructions",
    "user_prompt": "question",
    "context": "source",
    "schema": "tables",
    "reference": "known right answer",
    "gold_sql": "known right query",
    "teacher_output": "answer",
}


@dataclass(frozen=True)
class RubricText:
    """`text` is the system prompt, including its first line with name and version."""

    name: str
    version: str
    text: str


def load_rubrics(config: DistillConfig) -> list[RubricText]:
    """The rubrics of `judging.rubrics`. Raises InputError naming the file without a version."""
    return [_load_rubric(name, config.judging.rubrics[name]) for name in FIELDS]


def _load_rubric(name: str, path: str) -> RubricText:
    text = load_system_prompt(path)
    first = text.partition("\n")[0]
    match = re.fullmatch(rf"Rubric: {name}, version (\S+)", first.strip())
    if not match:
        raise InputError(
            f'{path} (judging.rubrics.{name}): line 1 is {first[:60]!r}, expected "Rubric: {name}, '
            'version 1"; give a changed rubric another version'
        )
    return RubricText(name, match[1], text)


def judge_request(row: Row, rubric: RubricText, judge: JudgeModel, config: DistillConfig) -> PromptRequest:
    """One rubric, one answer. `config.collection` has max_tokens and temperature of a verdict."""
    extra = _SCHEMAS.request_options(rubric.name) | judge_options(judge, config)
    provider = config.providers[judge.provider]
    body = request_body(rubric.text, render_sections(row), judge.model, config, provider, extra)
    return prompt_request(row["sample_id"], body, attempt=row["attempt"])


def judge_options(judge: JudgeModel, config: DistillConfig) -> dict[str, Any]:
    provider, settings = config.providers[judge.provider], config.collection
    dialect = provider.active_dialect
    # These override the provider's `extra_body`, whose sampling is meant for a teacher.
    own: dict[str, Any] = {dialect.limit_key: settings.max_tokens}
    if dialect.sends_temperature:
        own["temperature"] = settings.temperature
    other = judge.model == provider.regen_model != provider.model
    made_for = provider.regen_extra_body if other else {}
    return provider.extra_body | own | made_for | judge.extra_body


def render_sections(row: Row) -> str:
    parts = {part: row[column] for column, part in PROMPT_SECTIONS.items() if row[column] is not None}
    # The question contains the source: a second copy would only cost tokens.
    if parts.get("source", "") in parts["question"]:
        parts.pop("source", None)
    # The answer is untrusted. A hash of all sections delimits them, so none can forge its own end.
    token = sha256_text(compact_json(parts))[:TOKEN_LENGTH]
    return "\n\n".join(f"=== {name} {token} ===\n{text}\n=== end of {name} {token} ===" for name, text in parts.items())
