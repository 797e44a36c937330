"""Prompts for repairs: an instruction per rejection reason, and their evidence.

Every reason of contracts.REASONS has an instruction, or is in `NOT_REPAIRED`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nexa_distill.contracts import DOUBT_REASONS, RUBRICS, SCORE_REASONS

EVIDENCE_CHARS = 300
GOLD_COLUMNS = ("gold_sql", "reference", "tests")  # columns that the model must not see
WORDS_PER_TOKEN = 0.55  # with a margin, so that an answer ends before max_tokens
JOURNAL_KEY = re.compile(r" \(journal: [0-9a-f]+\)$")

BY_PERSON = "rejected_by_person"
COMPLETE = "End with a complete sentence and stop there."
# An instruction describes the wanted answer, not the fault: a small model does what it reads.
INSTRUCTIONS: dict[str, str] = {
    "malformed_response": "Answer the question directly.",
    "content_filter": "Keep to the subject matter, in neutral and factual language.",
    "schema_mismatch": "Give exactly the JSON object that is asked for, and nothing else.",
    "empty_output": "Give the answer itself, in full.",
    "truncated": f"Keep the whole answer below {{most}} words. {COMPLETE}",
    "reasoning_cut": "Think briefly, then give the whole answer.",
    "too_short": "Say more: give the reasons and the details.",
    "too_long": "Keep it short.",
    "too_few_tokens": "Say more: give the reasons and the details.",
    "too_many_tokens": "Keep it short.",
    "no_action_verb": "Name a measurable outcome and the conditions: what to measure and what to compare.",
    "banned_citation": "Use no citations, no bracketed numbers and no names of papers.",
    "forbidden_pattern": "Leave this out.",
    "unbalanced_code_fence": "Close every code fence that you open.",
    "template_leftover": "Write the actual words in place of unfilled placeholders and control "
    "tokens. Formulas and code stay as they are.",
    "refusal": "Answer the question with what you know; it is a harmless exercise.",
    "repetition": "Say each thing only once.",
    "invalid_json": "Give one valid JSON value and nothing around it.",
    "safety_flag": "Leave out personal identifiers of any kind.",
    "personal_data": "Leave out e-mail addresses, phone numbers and card numbers.",
    "secret": "Leave out keys, tokens and passwords.",
    **{rubric.reason: rubric.instruction for rubric in RUBRICS},
    "not_executable": "It must run without an error, on the given names only.",
    "not_a_query": "Give exactly one SELECT statement.",
    "forbidden_operation": "Only compute the answer: write nothing, start nothing.",
    "execution_timeout": "It must be done quickly: avoid needless joins and loops.",
    "memory_limit": "It must need little memory.",
    "output_limit": "Return only what is asked for.",
    "execution_crashed": "Write it more simply.",
    "wrong_result": "The earlier result was wrong: read the question again, and check columns, "
    "conditions and grouping.",
    "lucky_match": "The earlier answer was right only by chance: follow the question's conditions exactly.",
    "tests_failed": "The earlier program was wrong: read the task again, with its special cases.",
    "no_final_answer": "End with the final answer on a line of its own.",
    "critical_safety": "Leave out everything that could harm somebody.",
    "requires_human_review": "Stay on safe and well-established ground.",
    "rejected_by_person": "Do what the reviewer asks for.",
}

NOT_REPAIRED = DOUBT_REASONS | {
    "better_attempt_kept",
    "not_applied",
    # Reasons against prompts, and for requests without an answer.
    "duplicate",
    "near_duplicate",
    "joins_splits",
    "contaminated",
    "no_answer_in_file",
    "request_refused",
    "held",
    "prompt_too_large",
    "provider_failed",
}

# Reasons whose evidence is about the answer alone.
WITH_EVIDENCE = {"forbidden_pattern", "invalid_json", "not_executable", "not_a_query", "forbidden_operation"}
JUDGE_REASONS = {*SCORE_REASONS.values(), "critical_safety", "requires_human_review"}
# Answers that must not be quoted in the new prompt.
NOT_SHOWN = {
    "malformed_response",
    "content_filter",
    "refusal",
    "safety_flag",
    "personal_data",
    "secret",
    "critical_safety",
    "repetition",
    "empty_output",
}


class Fault(NamedTuple):
    """A reason against an answer, with the evidence of its check or an annotator's comment."""

    reason: str
    detail: str | None = None


def repair_prompt(row: Mapping[str, Any], faults: Sequence[Fault], answer: str | None, max_tokens: int) -> str:
    """The user message: the question, the instructions, and the rejected `answer` if given.

    `row` is one of contracts.INPUTS, `max_tokens` the limit of an answer.
    """
    if any(fault.reason == "reasoning_cut" for fault in faults):
        # The reasoning left no room for an answer; other reasons follow from that.
        faults = [fault for fault in faults if fault.reason in ("reasoning_cut", BY_PERSON)]
    # In tens, because a model does not count words exactly.
    max_words = str(int(max_tokens * WORDS_PER_TOKEN) // 10 * 10)
    # Several reasons have the same instruction: it is given once.
    instructions = dict.fromkeys(
        INSTRUCTIONS[fault.reason].replace("{most}", max_words) + _evidence_text(row, fault) for fault in faults
    )
    parts = [row["user_prompt"]]
    if answer and not {fault.reason for fault in faults} & NOT_SHOWN and not _quotes_gold(row, answer):
        parts.append(f"An earlier answer, which was not accepted:\n{answer}")
    parts.append("\n".join(["Mind this:", *(f"- {line}" for line in instructions)]))
    return "\n\n".join([*parts, "Write the answer only."])


def _evidence_text(row: Mapping[str, Any], fault: Fault) -> str:
    text = JOURNAL_KEY.sub("", fault.detail or "").strip()[:EVIDENCE_CHARS]
    if not text:
        return ""
    if fault.reason == BY_PERSON:  # annotators know that the model reads their comment
        return f" The reviewer said: {text}"
    if fault.reason in JUDGE_REASONS:
        # Judges see the known answer, so their reasons may quote it.
        has_known = any(row[name] for name in GOLD_COLUMNS)
        return "" if has_known else f" A reader said: {text.partition(': ')[2] or text}"
    # Evidence of other checks may compare the answer with the known one.
    is_shown = fault.reason in WITH_EVIDENCE and not _quotes_gold(row, text)
    return f" Found: {text}" if is_shown else ""


def _quotes_gold(row: Mapping[str, Any], text: str) -> bool:
    # A model may write a known answer with other spaces and capitals.
    folded = _fold_text(text)
    return any(_fold_text(row[name]) in folded for name in GOLD_COLUMNS if row[name])


def _fold_text(text: str) -> str:
    return "".join(text.casefold().split())
