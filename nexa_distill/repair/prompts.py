"""Prompts for repairs: the instruction of each rejection reason (contracts.REASONS), and its evidence."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nexa_distill.contracts import REASONS, SCORE_REASONS

EVIDENCE_CHARS = 300
GOLD_COLUMNS = ("gold_sql", "reference", "tests")  # columns that the model must not see
WORDS_PER_TOKEN = 0.55  # with a margin, so that an answer ends before max_tokens
JOURNAL_KEY = re.compile(r" \(journal: [0-9a-f]+\)$")

BY_PERSON = "rejected_by_person"
JUDGE_REASONS = {*SCORE_REASONS.values(), "critical_safety", "requires_human_review"}


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
        str(REASONS[fault.reason].instruction).replace("{most}", max_words) + _evidence_text(row, fault)
        for fault in faults
    )
    parts = [row["user_prompt"]]
    hidden = any(REASONS[fault.reason].hides_answer for fault in faults)
    if answer and not hidden and not _quotes_gold(row, answer):
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
    is_shown = REASONS[fault.reason].tells_evidence and not _quotes_gold(row, text)
    return f" Found: {text}" if is_shown else ""


def _quotes_gold(row: Mapping[str, Any], text: str) -> bool:
    # A model may write a known answer with other spaces and capitals.
    folded = _fold_text(text)
    return any(_fold_text(row[name]) in folded for name in GOLD_COLUMNS if row[name])


def _fold_text(text: str) -> str:
    return "".join(text.casefold().split())
