"""Stop a run early if its first outcomes show that no other request can succeed."""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from nexa_distill.collection.answers.completions import Answer
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.errors import ProviderUnusable
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

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._count = endpoint, 0
        self._sign: tuple[int, str] | None = None
        self._is_over = False

    def count_outcome(self, outcome: Outcome) -> None:
        """Count an outcome. Raises ProviderUnusable if the first `SAME_REFUSALS` were all the same."""
        status = outcome.status or 0
        if self._is_over or outcome.outcome != "rejected" or not 400 <= status < 500:
            return
        # Overload passes, and says nothing about the requests.
        if retry_policy.is_retryable(status) or status == 429:
            return
        words = retry_policy.failure_text(outcome)
        sign = status, _normalize_message(words)
        self._is_over = self._sign not in (None, sign) or bool(_OF_A_PROMPT.search(words))
        self._sign, self._count = sign, self._count + 1
        if not self._is_over and self._count >= SAME_REFUSALS:
            raise retry_policy.all_refused_error(self._endpoint, outcome, self._count)

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

    def __init__(self, endpoint: Endpoint, usable: AnswerRequirement | None) -> None:
        self._endpoint, self._usable, self._count = endpoint, usable, 0

    def count_answer(self, answer: Answer) -> None:
        """Count an answer. Raises ProviderUnusable if the first `UNUSABLE_ANSWERS` were all unusable."""
        if self._usable is None:
            return
        if self._usable.is_usable(answer):
            self._usable = None
            return
        self._count += 1
        if self._count >= UNUSABLE_ANSWERS:
            raise ProviderUnusable(
                f"provider {self._endpoint.provider}: none of the first {self._count} answers of "
                f"{self._endpoint.model} can be read; the last: {(answer.text or '')[:200]!r}. {self._usable.hint}"
            )
