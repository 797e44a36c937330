"""The preflight's checks of each encoded row: token ids, loss mask, end of turn, length.

A row with a fault of its own is refused and counted. A fault of the tokenizer or its template, a
failed check, and too many refused rows stop the training (`CheckFailed`, exit 65).
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from nexa_distill.errors import InputError
from nexa_distill.text.hashing import compact_json, sha256_text
from nexa_train.data.chat_format import ChatFormat, ChatRefused, Message
from nexa_train.data.chat_tokenization import (
    IGNORE,
    ROW_REASONS,
    THINK,
    THINK_END,
    Sample,
    Skip,
    assistant_turns,
    comparable_text,
    encode_conversation,
    student_format,
)

CHECKS = {
    "masks_proven": "the first and last token of each answer are known for certain",
    "template_equal": "the tokens before each answer equal the prompt that inference reads",
    "one_bos": "a conversation has the BOS tokens of its template, and never begins with two",
    "end_of_turn": "each answer ends with the token that stops generation, and it is in the loss",
    "labelled": "each row has tokens in the loss, and each label equals its token",
    "thinking_kept": "the reasoning of an answer is in the loss",
    "recoverable": "the tokens in the loss decode to the answers",
    "in_vocabulary": "the model has an embedding for each token",
    "not_cut": "no row is longer than max_length, which the model can read",
    "few_refused": "the share of refused rows is at most train.max_refused_share",
}
CHECK_OF_FAULT = {
    "template_fails": "template_equal", "no_chat_template": "template_equal",
    "prompt_differs": "template_equal", "prompt_opens_thinking": "template_equal",
    "no_end_of_turn": "end_of_turn", "two_bos": "one_bos", "no_bos": "one_bos",
    "turns_rewritten": "masks_proven", "no_offsets": "masks_proven",
    "answer_changed": "recoverable",
}  # fmt: skip
TILE = 64  # positions: the tile of attention kernels; few new rows change the rounded length
Problem = str | None  # the problem; "" = none; None = the check does not apply to the row


class CheckFailed(InputError):
    """A failed check of CHECKS, at one row or (`sample_id` None) over all rows."""

    def __init__(self, check: str, found: str, sample_id: str | None = None) -> None:
        self.check, self.found, self.sample_id = check, found, sample_id
        where = f" in sample {sample_id}" if sample_id else ""
        super().__init__(f"preflight, {check}: found{where}: {found}; expected: {CHECKS[check]}. Nothing was trained")


class RowChecker:
    """One pass over the rows. `limit`: longer rows are refused. `embeddings`: rows of the input embedding."""

    def __init__(self, tokenizer: Any, limit: int | None, embeddings: int | None = None) -> None:
        self.tokenizer, self.limit, self.embeddings = tokenizer, limit, embeddings
        self.rows, self.trained_rows, self.refused = 0, Counter[str](), Counter[str]()
        self.first_refused: dict[str, str] = {}  # reason: sample_id
        self.looked = Counter[str]()
        self.tokens = self.trained_tokens = 0
        self.failed: CheckFailed | None = None
        self.asked_all = False
        self._lengths, self._kept_longest = array("l"), 0
        self._bos: dict[tuple[str, ...], int] = {}
        # Over split, ids and labels of the rows that are trained on, in order.
        self.digest = sha256_text("")
        self.checks: dict[str, Callable[[Sample, Sequence[Message]], Problem]] = {
            "template_equal": self._check_template_equal, "one_bos": self._check_one_bos,
            "end_of_turn": self._check_end_of_turn, "labelled": self._check_labelled,
            "thinking_kept": self._check_thinking_kept, "recoverable": self._check_recoverable,
            "in_vocabulary": self._check_in_vocabulary, "not_cut": self._check_not_cut,
        }  # fmt: skip

    @cached_property
    def chat_format(self) -> ChatFormat:
        try:
            return student_format(self.tokenizer)
        except ChatRefused as error:
            raise self.record_failure(CHECK_OF_FAULT[error.reason], str(error), None) from None

    def check_tokenizer(self) -> None:
        """Check the tokenizer, before any row. Raises CheckFailed."""
        # The property checks on its first use.
        _ = self.chat_format

    def check_row(self, split: str, sample_id: str, messages: Sequence[Message]) -> Sample | Skip:
        """The encoded row, or why it is refused. Raises CheckFailed."""
        # The only place where loss masks are made. The checks below verify the result a second
        # time, independently; the returned sample is the one that is trained on.
        sample = encode_conversation(self.chat_format, sample_id, messages, self.limit)
        self.rows += 1
        if isinstance(sample, Skip):
            self.refused[sample.reason] += 1
            self.first_refused.setdefault(sample.reason, sample_id)
            self._lengths.extend([sample.tokens] if sample.tokens else [])
            return sample
        # `encode_conversation` has verified the mask.
        self.looked["masks_proven"] += 1
        for name, check in self.checks.items():
            problem = check(sample, messages)
            self.looked[name] += problem is not None
            if problem:
                raise self.record_failure(name, problem, sample_id)
        self._count_row(split, sample)
        return sample

    def check_totals(self, max_refused_share: float | None) -> None:
        """After the last row: raises CheckFailed if too many were refused (None: any share)."""
        refused, self.asked_all = self.refused.total(), True
        self.looked["few_refused"] = self.rows
        problem = ""
        if not self.trained_rows["train"]:
            problem = f"no sample to train on ({self.rows} rows in train and val, {refused} refused)"
        elif max_refused_share is not None and refused > max_refused_share * self.rows:
            problem = f"{refused:,} of {self.rows:,} rows refused ({refused / self.rows:.1%}), "
            problem += f"train.max_refused_share is {max_refused_share:.1%}; correct the rows, or "
            problem += "allow a larger share"
        if problem:
            raise self.record_failure("few_refused", problem + self._refusal_summary(), None)

    def _refusal_summary(self) -> str:
        return "".join(
            f"; {reason} {count:,}, first {self.first_refused[reason]} ({ROW_REASONS[reason]})"
            for reason, count in self.refused.most_common()
        )

    def record_failure(self, check: str, found: str, sample_id: str | None) -> CheckFailed:
        """The error to raise; `to_record` reports it."""
        self.failed = CheckFailed(check, found, sample_id)
        return self.failed

    def tiled_max_length(self) -> int:
        # Ceiling division: the smallest multiple of TILE that holds the longest kept row.
        return -(-self._kept_longest // TILE) * TILE

    def to_record(self) -> dict[str, Any]:
        """The results so far, as JSON values; the same rows give the same record."""
        percentiles = dict.fromkeys(("p50", "p90", "p99", "max"))
        if self._lengths:
            # inverted_cdf: a length that some row has, never one between two rows.
            steps = np.percentile(np.array(self._lengths), [50, 90, 99, 100], method="inverted_cdf")
            percentiles = dict(zip(percentiles, steps.tolist(), strict=True))
        failed = self.failed and {
            "check": self.failed.check,
            "sample_id": self.failed.sample_id,
            "found": self.failed.found,
            "expected": CHECKS[self.failed.check],
        }
        return {
            "rows": self.rows,
            "trained_on": dict(self.trained_rows),
            "refused": dict(self.refused.most_common()),
            "first_refused": self.first_refused,
            "refused_share": self.refused.total() / self.rows if self.rows else None,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_share": self.trained_tokens / self.tokens if self.tokens else None,
            "tokens_per_row": percentiles,
            "samples_sha256": self.digest,
            "checks": [self._check_result(name) for name in CHECKS],
            "failed": failed,
        }

    def _check_result(self, name: str) -> dict[str, Any]:
        ok: bool | None = None  # not every row was checked, or the check applied to none
        if self.failed and self.failed.check == name:
            ok = False
        elif self.asked_all and self.looked[name]:
            ok = True
        return {"check": name, "ok": ok, "rows": self.looked[name], "says": CHECKS[name]}

    def _count_row(self, split: str, sample: Sample) -> None:
        length = len(sample.input_ids)
        self._lengths.append(length)
        self._kept_longest = max(self._kept_longest, length)
        self.trained_rows[split] += 1
        self.tokens += length
        self.trained_tokens += sample.trained_tokens
        # A chain of hashes, so that rows need not stay in memory.
        row = [self.digest, split, sample.sample_id, sample.input_ids, sample.labels]
        self.digest = sha256_text(compact_json(row))

    def _check_template_equal(self, sample: Sample, messages: Sequence[Message]) -> Problem:
        labels = enumerate(pairwise(sample.labels), 1)
        begins = [i for i, (before, label) in labels if before == IGNORE and label != IGNORE]
        turns = assistant_turns(messages)
        if len(begins) != len(turns):
            return f"{len(begins)} answers in the loss, {len(turns)} in the conversation"
        for begin, turn in zip(begins, turns, strict=True):
            prompt, ids = self.chat_format.prompt_ids(messages[:turn]), sample.input_ids[:begin]
            if ids != prompt:
                shown = f"{self._describe_tokens(ids)}, inference: {self._describe_tokens(prompt)}"
                return f"before message {turn}: {shown}"
        # As users call the tokenizer, without this project's code.
        whole = self.tokenizer.apply_chat_template(self.chat_format.plain_messages(messages))["input_ids"]
        if sample.input_ids != list(whole[: len(sample.input_ids)]):
            return "the row's tokens are not those that apply_chat_template makes of it"
        return ""

    def _check_one_bos(self, sample: Sample, messages: Sequence[Message]) -> Problem:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return None
        count, expected = sample.input_ids.count(bos), self._count_template_bos(messages)
        if sample.input_ids[:2] == [bos, bos]:
            return "it begins with two BOS tokens"
        return "" if count == expected else f"{count} BOS tokens, the template writes {expected}"

    def _count_template_bos(self, messages: Sequence[Message]) -> int:
        # The template alone decides the number: SmolLM2 writes one per message.
        roles = tuple(message["role"] for message in messages)
        if roles not in self._bos:
            plain = [{"role": role, "content": "a"} for role in roles]
            ids = self.chat_format.encode_text(self.chat_format.render(plain, prompt=False))
            self._bos[roles] = ids.count(self.tokenizer.bos_token_id)
        return self._bos[roles]

    def _check_end_of_turn(self, sample: Sample, messages: Sequence[Message]) -> Problem:
        end, expected = self.chat_format.end, len(assistant_turns(messages))
        spans, ends = list(_answer_tokens(sample, end)), sample.labels.count(end)
        if ends == expected == len(spans):
            return ""
        return f"{ends} end-of-turn tokens in the loss, {expected} answers, {len(spans)} spans"

    def _check_labelled(self, sample: Sample, _messages: Sequence[Message]) -> Problem:
        if not sample.trained_tokens:
            return "no token in the loss"
        pairs = zip(sample.input_ids, sample.labels, strict=True)
        wrong = sum(label not in (IGNORE, token) for token, label in pairs)
        return f"{wrong} labels that are not the row's tokens" if wrong else ""

    def _check_thinking_kept(self, sample: Sample, messages: Sequence[Message]) -> Problem:
        expected = sum(answer.count(THINK_END) for answer in _answer_texts(messages))
        if not expected:
            return None
        trained = self.tokenizer.decode([label for label in sample.labels if label != IGNORE])
        count = trained.count(THINK_END)
        if count >= expected:
            return ""
        return f"{count} {THINK_END} in the loss, {expected} in the answers"

    def _check_recoverable(self, sample: Sample, messages: Sequence[Message]) -> Problem:
        spans = _answer_tokens(sample, self.chat_format.end)
        for span, answer in zip(spans, _answer_texts(messages), strict=True):
            decoded = self.tokenizer.decode(span, clean_up_tokenization_spaces=False)
            # Normalisation and white space may differ.
            if comparable_text(answer).removeprefix(THINK) not in comparable_text(decoded):
                return f"{decoded[:80]!r} where the answer is {answer[:80]!r}"
        return ""

    def _check_in_vocabulary(self, sample: Sample, _messages: Sequence[Message]) -> Problem:
        if self.embeddings is None:
            return None
        largest = max(sample.input_ids)
        if largest < self.embeddings:
            return ""
        return (
            f"token id {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r}), the model "
            f"has {self.embeddings} embeddings; resize them "
            "(model.resize_token_embeddings(len(tokenizer))), or take the model's own tokenizer"
        )

    def _check_not_cut(self, sample: Sample, _messages: Sequence[Message]) -> Problem:
        length = len(sample.input_ids)
        return f"{length} tokens" if self.limit is not None and length > self.limit else ""

    def _describe_tokens(self, ids: Sequence[int]) -> str:
        return repr(self.tokenizer.decode(ids[:12])) + f" ({len(ids)} tokens)"


def _answer_texts(messages: Sequence[Message]) -> list[str]:
    return [messages[turn]["content"] for turn in assistant_turns(messages)]


def _answer_tokens(sample: Sample, end_of_turn: int) -> Iterator[list[int]]:
    span: list[int] = []
    for label in sample.labels:
        if label != IGNORE:
            span.append(label)
            if label == end_of_turn:
                yield span
                span = []
    # A rest without an end of turn is a span too: the counts differ, and the check fails.
    if span:
        yield span
