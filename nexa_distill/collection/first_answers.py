"""Stop a run early if its first outcomes show that no other request can succeed."""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from nexa_distill.collection.answers.completions import Answer
from nexa_distill.collection.requests import retry_policy
from nexa_distill.journal.journal import Outcome

SAME_REFUSALS = 8  # with the same message, before the first answer
UNUSABLE_ANSWERS = 8
# Refusals of a prompt's content or length say nothing about the other prompts.
_OF_A_PROMPT = re.compile(
    r"content.{0,3}(?:filter|policy|management|inspection)|moderat|harmful|sensitive|"
    r"(?:prompt|input|message)s? (?:\w+ ){0,2}too long|messages resulted in",
    re.IGNORECASE,
)


class FirstRefusals:
    """Counts equal refusals (4xx) until something else happens."""

    def __init__(self) -> None:
        self.count = 0
        self._sign: tuple[int, str] | None = None
        self._is_over = False

    def count_outcome(self, outcome: Outcome) -> bool:
        """Count an outcome; returns whether the first `SAME_REFUSALS` were all the same."""
        status = outcome.status or 0
        if self._is_over or outcome.outcome != "rejected" or not 400 <= status < 500:
            return False
        # Overload passes, and says nothing about the requests.
        if retry_policy.is_retryable(status) or status == 429:
            return False
        words = retry_policy.failure_text(outcome)
        sign = status, _normalize_message(words)
        self._is_over = self._sign not in (None, sign) or bool(_OF_A_PROMPT.search(words))
        self._sign, self.count = sign, self.count + 1
        return not self._is_over and self.count >= SAME_REFUSALS

    def stop_counting(self) -> None:
        # An answer has arrived: address, key and model are right.
        self._is_over = True


def _normalize_message(words: str) -> str:
    # Numbers and ids differ between refusals of the same kind.
    text = unicodedata.normalize("NFKC", words).casefold()
    text = re.sub(r"\b(?=\w*\d)\w+\b", "#", text)
    return text[:120]


class AnswerRequirement(NamedTuple):
    """A stage's requirement of answers; `hint` tells the user what to do if none satisfies it."""

    is_usable: Callable[[Answer], bool]
    hint: str


class FirstAnswers:
    """Counts unusable answers until the first usable one."""

    def __init__(self, usable: AnswerRequirement | None) -> None:
        self.usable, self.count = usable, 0

    def count_answer(self, answer: Answer) -> bool:
        """Count an answer; returns whether the first `UNUSABLE_ANSWERS` were all unusable."""
        if self.usable is None:
            return False
        if self.usable.is_usable(answer):
            self.usable = None
            return False
        self.count += 1
        return self.count >= UNUSABLE_ANSWERS
