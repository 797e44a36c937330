"""The preflight's checks: is each row trained as it should be? Asked of the encoded rows.

`Examination.look` encodes a row (`chat_tokenization.encode`, the only place where masks are made),
asks every check of what came out, and hands it on: what passed here is what is trained on. A row
with a fault of its own is refused and counted; what is wrong with the tokenizer or its template, a
check that fails, and too many refused rows stop everything (`CheckFailed`, exit 65). `record` says
how far it came.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
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
    encode,
    same_text,
    student_format,
)

CHECKS = {
    "masks_proven": "it is proven where the assistant's words begin and end",
    "template_equal": "before each answer a row has, token for token, what inference reads",
    "one_bos": "a conversation has the BOS tokens its template writes, and never begins with two",
    "end_of_turn": "each answer ends with the token that stops generation, and it is in the loss",
    "labelled": "each row has tokens in the loss, and each of them is the row's own",
    "thinking_kept": "the reasoning of an answer is in the loss",
    "recoverable": "the tokens in the loss read as the answers",
    "in_vocabulary": "the model has an embedding for each token",
    "not_cut": "no row is longer than max_length, which the model can read",
    "few_refused": "the share of rows that are refused is at most train.max_refused_share",
}
OF_FAULT = {
    "template_fails": "template_equal", "no_chat_template": "template_equal",
    "prompt_differs": "template_equal", "prompt_opens_thinking": "template_equal",
    "no_end_of_turn": "end_of_turn", "two_bos": "one_bos", "no_bos": "one_bos",
    "turns_rewritten": "masks_proven", "no_offsets": "masks_proven",
    "answer_changed": "recoverable",
}  # fmt: skip
TILE = 64  # positions; attention kernels work in tiles of so many, and few new rows move it
Found = str | None  # what is wrong; "" = nothing; None = there is nothing to look at


class CheckFailed(InputError):
    """A check of CHECKS failed, at a row or (`sample_id` null) for all of them."""

    def __init__(self, check: str, found: str, sample_id: str | None = None) -> None:
        self.check, self.found, self.sample_id = check, found, sample_id
        where = f" in sample {sample_id}" if sample_id else ""
        super().__init__(
            f"preflight, {check}: found{where}: {found}; expected: {CHECKS[check]}. "
            "Nothing was trained"
        )


class Examination:
    """One pass over the rows. `limit`: rows of more tokens are refused; null = of any length.

    `embeddings`: rows of the model's input embedding, null where they are not known. `checks` are
    asked of each row. `digest`: SHA-256 over split, ids and labels of what is trained on, in order.
    """

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
        self.digest = sha256_text("")
        self.checks: dict[str, Callable[[Sample, Sequence[Message]], Found]] = {
            "template_equal": self._template_equal, "one_bos": self._one_bos,
            "end_of_turn": self._end_of_turn, "labelled": self._labelled,
            "thinking_kept": self._thinking_kept, "recoverable": self._recoverable,
            "in_vocabulary": self._in_vocabulary, "not_cut": self._not_cut,
        }  # fmt: skip

    @cached_property
    def format(self) -> ChatFormat:
        """How the tokenizer renders conversations. Raises CheckFailed."""
        try:
            return student_format(self.tokenizer)
        except ChatRefused as error:
            raise self.fail(OF_FAULT[error.reason], str(error), None) from None

    def begin(self) -> None:
        """Look at the tokenizer, before any row. Raises CheckFailed."""
        _ = self.format

    def look(self, split: str, sample_id: str, messages: Sequence[Message]) -> Sample | Skip:
        """The row as it is trained on, or why it is not. Raises CheckFailed."""
        made = encode(self.format, sample_id, messages, self.limit)
        self.rows += 1
        if isinstance(made, Skip):
            self.refused[made.reason] += 1
            self.first_refused.setdefault(made.reason, sample_id)
            self._lengths.extend([made.tokens] if made.tokens else [])
            return made
        self.looked["masks_proven"] += 1
        for name, check in self.checks.items():
            found = check(made, messages)
            self.looked[name] += found is not None
            if found:
                raise self.fail(name, found, sample_id)
        self._count(split, made)
        return made

    def finish(self, max_refused_share: float | None) -> None:
        """After the last row. Raises CheckFailed when too many were refused (null: not asked)."""
        refused, self.asked_all = self.refused.total(), True
        self.looked["few_refused"] = self.rows
        if not self.trained_rows["train"]:
            found = f"no sample to train on ({self.rows} rows in train and val, {refused} refused)"
            raise self.fail("few_refused", found + self._refusals(), None)
        if max_refused_share is not None and refused > max_refused_share * self.rows:
            found = f"{refused:,} of {self.rows:,} rows refused ({refused / self.rows:.1%}), "
            found += f"train.max_refused_share is {max_refused_share:.1%}; correct the rows, or "
            found += "allow a larger share"
            raise self.fail("few_refused", found + self._refusals(), None)

    def _refusals(self) -> str:
        """How many rows were refused for which reason, and what it means."""
        return "".join(
            f"; {reason} {count:,}, first {self.first_refused[reason]} ({ROW_REASONS[reason]})"
            for reason, count in self.refused.most_common()
        )

    def fail(self, check: str, found: str, sample_id: str | None) -> CheckFailed:
        """The error to raise, remembered for the record."""
        self.failed = CheckFailed(check, found, sample_id)
        return self.failed

    def longest(self) -> int:
        """The smallest multiple of TILE that holds every row that was kept."""
        return -(-self._kept_longest // TILE) * TILE

    def record(self) -> dict[str, Any]:
        """What was found so far, as JSON values; the same rows give the same record."""
        steps = dict.fromkeys(("p50", "p90", "p99", "max"))
        if self._lengths:
            of = np.percentile(np.array(self._lengths), [50, 90, 99, 100], method="inverted_cdf")
            steps = dict(zip(steps, of.tolist(), strict=True))
        return {
            "rows": self.rows, "trained_on": dict(self.trained_rows),
            "refused": dict(self.refused.most_common()), "first_refused": self.first_refused,
            "refused_share": self.refused.total() / self.rows if self.rows else None,
            "tokens": self.tokens, "trained_tokens": self.trained_tokens,
            "trained_share": self.trained_tokens / self.tokens if self.tokens else None,
            "tokens_per_row": steps, "samples_sha256": self.digest,
            "checks": [self._result(name) for name in CHECKS],
            "failed": self.failed and {
                "check": self.failed.check, "sample_id": self.failed.sample_id,
                "found": self.failed.found, "expected": CHECKS[self.failed.check],
            },
        }  # fmt: skip

    def _result(self, name: str) -> dict[str, Any]:
        """`ok` null: it was not asked of every row, or there was no row to ask it of."""
        ok: bool | None = None
        if self.failed and self.failed.check == name:
            ok = False
        elif self.asked_all and self.looked[name]:
            ok = True
        return {"check": name, "ok": ok, "rows": self.looked[name], "says": CHECKS[name]}

    def _count(self, split: str, made: Sample) -> None:
        length = len(made.input_ids)
        self._lengths.append(length)
        self._kept_longest = max(self._kept_longest, length)
        self.trained_rows[split] += 1
        self.tokens += length
        self.trained_tokens += made.trained_tokens
        row = [self.digest, split, made.sample_id, made.input_ids, made.labels]
        self.digest = sha256_text(compact_json(row))

    def _template_equal(self, made: Sample, messages: Sequence[Message]) -> Found:
        begins = [i for i in range(1, len(made.labels))
                  if made.labels[i] != IGNORE and made.labels[i - 1] == IGNORE]  # fmt: skip
        turns = assistant_turns(messages)
        if len(begins) != len(turns):
            return f"{len(begins)} answers in the loss, {len(turns)} in the conversation"
        for begin, turn in zip(begins, turns, strict=True):
            read, ids = self.format.prompt_ids(messages[:turn]), made.input_ids[:begin]
            if ids != read:
                return f"before message {turn}: {self._shown(ids)}, inference: {self._shown(read)}"
        whole = self.tokenizer.apply_chat_template(self.format.plain(messages))["input_ids"]
        if made.input_ids != list(whole[: len(made.input_ids)]):
            return "the row's tokens are not those that apply_chat_template makes of it"
        return ""

    def _one_bos(self, made: Sample, messages: Sequence[Message]) -> Found:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return None
        found, wanted = made.input_ids.count(bos), self._bos_written(messages)
        if made.input_ids[:2] == [bos, bos]:
            return "it begins with two BOS tokens"
        return "" if found == wanted else f"{found} BOS tokens, the template writes {wanted}"

    def _bos_written(self, messages: Sequence[Message]) -> int:
        """How many BOS tokens the template itself writes (SmolLM2: one per message)."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._bos:
            plain = [{"role": role, "content": "a"} for role in roles]
            ids = self.format.tokens(self.format.render(plain, prompt=False))
            self._bos[roles] = ids.count(self.tokenizer.bos_token_id)
        return self._bos[roles]

    def _end_of_turn(self, made: Sample, messages: Sequence[Message]) -> Found:
        end, wanted = self.format.end, len(assistant_turns(messages))
        spans, ends = list(_answers(made, end)), made.labels.count(end)
        if ends == wanted == len(spans):
            return ""
        return f"{ends} end-of-turn tokens in the loss, {wanted} answers, {len(spans)} spans"

    def _labelled(self, made: Sample, _messages: Sequence[Message]) -> Found:
        if not made.trained_tokens:
            return "no token in the loss"
        pairs = zip(made.input_ids, made.labels, strict=True)
        wrong = sum(label not in (IGNORE, one) for one, label in pairs)
        return f"{wrong} labels that are not the row's tokens" if wrong else ""

    def _thinking_kept(self, made: Sample, messages: Sequence[Message]) -> Found:
        wanted = sum(answer.count(THINK_END) for answer in _turns(messages))
        if not wanted:
            return None
        read = self.tokenizer.decode([label for label in made.labels if label != IGNORE])
        found = read.count(THINK_END)
        return (
            "" if found >= wanted else f"{found} {THINK_END} in the loss, {wanted} in the answers"
        )

    def _recoverable(self, made: Sample, messages: Sequence[Message]) -> Found:
        spans = _answers(made, self.format.end)
        for span, answer in zip(spans, _turns(messages), strict=True):
            read = self.tokenizer.decode(span, clean_up_tokenization_spaces=False)
            if same_text(answer).removeprefix(THINK) not in same_text(read):
                return f"{read[:80]!r} where the answer is {answer[:80]!r}"
        return ""

    def _in_vocabulary(self, made: Sample, _messages: Sequence[Message]) -> Found:
        if self.embeddings is None:
            return None
        largest = max(made.input_ids)
        if largest < self.embeddings:
            return ""
        return (
            f"token id {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r}), the model "
            f"has {self.embeddings} embeddings; resize them "
            "(model.resize_token_embeddings(len(tokenizer))), or take the model's own tokenizer"
        )

    def _not_cut(self, made: Sample, _messages: Sequence[Message]) -> Found:
        length = len(made.input_ids)
        return f"{length} tokens" if self.limit is not None and length > self.limit else ""

    def _shown(self, ids: Sequence[int]) -> str:
        return repr(self.tokenizer.decode(ids[:12])) + f" ({len(ids)} tokens)"


def _turns(messages: Sequence[Message]) -> list[str]:
    return [messages[turn]["content"] for turn in assistant_turns(messages)]


def _answers(made: Sample, end_of_turn: int) -> Iterator[list[int]]:
    """The tokens in the loss, one list for each end of turn; a rest without one is a list too."""
    span: list[int] = []
    for label in made.labels:
        if label != IGNORE:
            span.append(label)
            if label == end_of_turn:
                yield span
                span = []
    if span:
        yield span
