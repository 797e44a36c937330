"""Messages -> token ids and labels: the text that inference sees, loss on the assistant's words.

A chat template without `{% generation %}` markers (SmolLM2's) does not say where the assistant's
words are. They are found by prefixes: what the template makes of `messages[:i]` plus the generation
prompt must be the beginning of what it makes of `messages[:i + 1]`; the rest is the turn, with its
end-of-turn token. The difference is checked on the text and on the tokens, never assumed.

BOS is what the template writes: the text is tokenised without special tokens of the tokenizer's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_distill.errors import InputError

IGNORE = -100  # the label that torch's cross entropy leaves out
Message = Mapping[str, str]


@dataclass(frozen=True)
class Sample:
    """One conversation: `labels` is `input_ids` where the loss is, IGNORE elsewhere."""

    sample_id: str
    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss sees; the first token has no predecessor to predict it."""
        return sum(label != IGNORE for label in self.labels[1:])


@dataclass(frozen=True)
class Skip:
    """Not trained on; the reason is `no_assistant`, `empty_answer` or `over_max_length`."""

    sample_id: str
    reason: str


def check_tokenizer(tokenizer: Any) -> None:
    """Raises InputError when the tokenizer cannot serve chat training at all."""
    if tokenizer.chat_template is None:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, so training text "
            "cannot equal inference text; use an instruct model, or put "
            "chat_template.jinja in its folder"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no eos_token; set it in "
            "tokenizer_config.json, the student would never learn to stop"
        )


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """What the model reads before it answers `messages`."""
    return _tokens(tokenizer, _render(tokenizer, messages, prompt=True))


def encode(
    tokenizer: Any, sample_id: str, messages: Sequence[Message], max_length: int
) -> Sample | Skip:
    """Ids and labels of one conversation, or why it is not trained on.

    Raises InputError when the template does not keep the prefix: labels would be guesses.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or turns[-1] != len(messages) - 1:
        return Skip(sample_id, "no_assistant")
    if any(not messages[turn]["content"].strip() for turn in turns):
        return Skip(sample_id, "empty_answer")
    text = _render(tokenizer, messages, prompt=False)
    spans = [_span(tokenizer, messages, turn, text) for turn in turns]
    ids, labels = _label(tokenizer, text, spans)
    if len(ids) > max_length:
        return Skip(sample_id, "over_max_length")  # cut, its answer would teach to stop nowhere
    sample = Sample(sample_id, ids, labels)
    return sample if sample.trained_tokens else Skip(sample_id, "empty_answer")


def _span(tokenizer: Any, messages: Sequence[Message], turn: int, text: str) -> tuple[int, int]:
    """Characters of `text` that the assistant says in `turn`, end-of-turn token included."""
    before = _render(tokenizer, messages[:turn], prompt=True)
    after = _render(tokenizer, messages[: turn + 1], prompt=False)
    if not (text.startswith(after) and after.startswith(before)):
        raise InputError(
            f"{tokenizer.name_or_path}: its chat template writes an earlier turn differently once "
            "a later one follows, so the assistant's words cannot be told apart; use a template "
            "that only appends"
        )
    end = after.rfind(tokenizer.eos_token, len(before))
    if end < 0:
        raise InputError(
            f"{tokenizer.name_or_path}: its chat template ends an assistant turn without "
            f"{tokenizer.eos_token!r}, the token that stops generation; fix eos_token or the "
            "template"
        )
    # What the template writes after the end of the turn (a line break) is never generated.
    return len(before), end + len(tokenizer.eos_token)


def _label(tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Tokenise piece by piece at the spans' borders, as inference does: prompt, then answer."""
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for start, end in spans:
        prompt, answer = (
            _tokens(tokenizer, text[position:start]),
            _tokens(tokenizer, text[start:end]),
        )
        ids += prompt + answer
        labels += [IGNORE] * len(prompt) + answer
        position = end
    return ids, labels


def _render(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> str:
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    rendered = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)
    return str(rendered)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
