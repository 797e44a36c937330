"""Messages -> token ids and labels: the text that inference sees, loss on the assistant's words.

A chat template says where the assistant's words are with `{% generation %}` markers. For one that
has none (SmolLM2's) they are found by prefixes: what the template makes of `messages[:i]` plus the
generation prompt must be the beginning of what it makes of `messages[:i + 1]`; the rest is the
turn, with its end-of-turn token. Either way the result is checked on the text and on the tokens,
never assumed: what cannot be proven is refused (`MasksUnproven`, whose reasons are `FAULTS`).

BOS is what the template writes: the text is tokenised without special tokens of the tokenizer's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from nexa_distill.errors import InputError

Span = tuple[int, int]  # characters of the rendered conversation
IGNORE = -100  # the label that torch's cross entropy leaves out
Message = Mapping[str, str]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
FAULTS = {
    "template_fails": "its chat template cannot be rendered; mend it, or put another "
    "chat_template.jinja into its folder",
    "no_chat_template": "the tokenizer has no chat template, so training text cannot equal "
    "inference text; use an instruct model, or put chat_template.jinja in its folder",
    "no_end_of_turn_token": "the tokenizer has no eos_token; set it in tokenizer_config.json, the "
    "student would never learn to stop",
    "two_bos": "its chat template begins a conversation with two BOS tokens; remove one",
    "no_bos": "it puts BOS before a plain text, but its chat template writes none; begin the "
    "template with {{ bos_token }}",
    "no_end_of_turn": "its chat template ends an assistant turn without eos_token, the token that "
    "stops generation (or leaves it outside of {% generation %}); fix eos_token or the template",
    "turns_rewritten": "its chat template writes an earlier turn differently once a later one "
    "follows, so the assistant's words cannot be told apart; use a template that only appends, or "
    "put {% generation %} markers into it",
    "turns_unmarked": "its chat template marks another number of assistant turns with "
    "{% generation %} than there are; put markers around each",
    "prompt_differs": "what its chat template writes before an answer in training is not the "
    "generation prompt that inference reads; make them equal",
    "thinking_dropped": "its chat template drops <think> from an answer that has it, so reasoning "
    "would not be trained; use a template that keeps it",
    "answer_changed": "its chat template changes the words of an answer; use one that copies them",
    "answer_not_recoverable": "the tokens of an answer do not read as its text (a lossy "
    "tokenizer: lower-casing, normalising, unknown tokens); use another student",
}


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
    """Not trained on. `tokens`: its length, where that is the reason.

    The reason is `no_assistant`, `empty_answer`, `over_max_length`, `special_token_in_answer` (it
    would stop there) or `bos_in_text` (a message writes the token that begins a conversation).
    """

    sample_id: str
    reason: str
    tokens: int | None = None


class MasksUnproven(InputError):
    """It cannot be shown that the loss is where it should be; `reason` is a key of FAULTS."""

    def __init__(
        self, tokenizer: Any, reason: str, sample_id: str | None = None, said: object = ""
    ) -> None:
        self.reason, self.sample_id, self.said = reason, sample_id, " ".join(str(said).split())
        where = f" (sample {sample_id})" if sample_id else ""
        why = f" ({self.said})" if self.said else ""
        super().__init__(f"{tokenizer.name_or_path}: {FAULTS[reason]}{why}{where}")


def check_tokenizer(tokenizer: Any) -> None:
    """Raises MasksUnproven when the tokenizer cannot serve chat training at all."""
    if tokenizer.chat_template is None:
        raise MasksUnproven(tokenizer, "no_chat_template")
    if tokenizer.eos_token_id is None:
        raise MasksUnproven(tokenizer, "no_end_of_turn_token")
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    begins = prompt_ids(tokenizer, [{"role": "user", "content": "a"}])[:2]
    if begins == [bos, bos]:
        raise MasksUnproven(tokenizer, "two_bos")
    if begins[:1] != [bos] and tokenizer("a")["input_ids"][:1] == [bos]:
        raise MasksUnproven(tokenizer, "no_bos")


def has_markers(template: str) -> bool:
    """Whether the template itself says where the assistant's words are."""
    return bool(_GENERATION.search(template))


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """What the model reads before it answers `messages`."""
    return _tokens(tokenizer, _render(tokenizer, messages, prompt=True))


def encode(
    tokenizer: Any, sample_id: str, messages: Sequence[Message], max_length: int | None
) -> Sample | Skip:
    """Ids and labels of one conversation, or why it is not trained on; null = of any length.

    Raises MasksUnproven: labels would be guesses.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or turns[-1] != len(messages) - 1:
        return Skip(sample_id, "no_assistant")
    if any(not messages[turn]["content"].strip() for turn in turns):
        return Skip(sample_id, "empty_answer")
    bos = tokenizer.bos_token
    if bos and any(bos in message["content"] for message in messages):
        return Skip(sample_id, "bos_in_text")
    try:
        text, marked = _render_marked(tokenizer, messages)
        spans = marked
        if spans is None:
            spans = [_span(tokenizer, messages, turn, text) for turn in turns]
    except MasksUnproven as error:
        raise MasksUnproven(tokenizer, error.reason, sample_id, error.said) from None
    _prove(tokenizer, sample_id, messages, turns, text, spans)
    ids, labels = _label(tokenizer, text, spans)
    _prove_tokens(tokenizer, sample_id, text, spans, labels)
    ends = labels.count(tokenizer.eos_token_id)
    if ends < len(spans):  # the text of eos_token does not become its id
        raise MasksUnproven(tokenizer, "no_end_of_turn", sample_id)
    if ends > len(spans):
        return Skip(sample_id, "special_token_in_answer")
    if max_length is not None and len(ids) > max_length:
        # Cut, its answer would teach to stop nowhere.
        return Skip(sample_id, "over_max_length", len(ids))
    sample = Sample(sample_id, ids, labels)
    return sample if sample.trained_tokens else Skip(sample_id, "empty_answer")


def _span(tokenizer: Any, messages: Sequence[Message], turn: int, text: str) -> Span:
    """Characters of `text` that the assistant says in `turn`, end-of-turn token included."""
    before = _render(tokenizer, messages[:turn], prompt=True)
    after = _render(tokenizer, messages[: turn + 1], prompt=False)
    so_far = _render(tokenizer, messages[:turn], prompt=False)
    if not (text.startswith(after) and after.startswith(so_far)):
        raise MasksUnproven(tokenizer, "turns_rewritten")
    if not after.startswith(before):
        raise MasksUnproven(tokenizer, "prompt_differs")
    end = after.rfind(tokenizer.eos_token, len(before))
    if end < 0:
        raise MasksUnproven(tokenizer, "no_end_of_turn")
    # What the template writes after the end of the turn (a line break) is never generated.
    return len(before), end + len(tokenizer.eos_token)


def _prove(
    tokenizer: Any, sample_id: str, messages: Sequence[Message], turns: Sequence[int], text: str,
    spans: Sequence[Span],
) -> None:  # fmt: skip
    """Raises MasksUnproven unless each span follows what inference reads and holds the answer."""
    if len(spans) != len(turns):
        raise MasksUnproven(tokenizer, "turns_unmarked", sample_id)
    for turn, (start, end) in zip(turns, spans, strict=True):
        said, content = text[start:end], messages[turn]["content"].strip()
        if text[:start] != _render(tokenizer, messages[:turn], prompt=True):
            raise MasksUnproven(tokenizer, "prompt_differs", sample_id)
        if not said.endswith(tokenizer.eos_token):
            raise MasksUnproven(tokenizer, "no_end_of_turn", sample_id)
        if content not in said:
            lost = "<think>" in content and "<think>" not in said
            reason = "thinking_dropped" if lost else "answer_changed"
            raise MasksUnproven(tokenizer, reason, sample_id)


def _prove_tokens(
    tokenizer: Any, sample_id: str, text: str, spans: Sequence[Span], labels: Sequence[int]
) -> None:
    """Raises MasksUnproven unless the labels read as what the assistant says."""
    trained = [label for label in labels if label != IGNORE]
    read = tokenizer.decode(trained, clean_up_tokenization_spaces=False)
    # A tokenizer may write the space before its first word, or not.
    if "".join(read.split()) != "".join("".join(text[a:b] for a, b in spans).split()):
        raise MasksUnproven(tokenizer, "answer_not_recoverable", sample_id)


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
    with _sandboxed(tokenizer):
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)
    return str(text)


@contextmanager
def _sandboxed(tokenizer: Any) -> Iterator[None]:
    """A template is a program from a checkpoint: what it may not do or cannot is its fault."""
    try:
        yield
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise MasksUnproven(tokenizer, "template_fails", said=error) from None


def _render_marked(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[Span] | None]:
    """The conversation, and where its template marks the assistant's words; None = no markers."""
    template = tokenizer.get_chat_template()  # of several, the one named "default"
    if not has_markers(template):
        return _render(tokenizer, messages, prompt=False), None
    from transformers.utils.chat_template_utils import render_jinja_template

    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    with _sandboxed(tokenizer):
        found: Any = render_jinja_template(
            [plain], chat_template=template, return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )  # fmt: skip
    (text,), (spans,) = found
    return str(text), [(start, end) for start, end in spans]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
