"""Messages to token ids and labels: the loss mask is on the assistant's tokens.

An answer begins after the prompt that inference reads, and runs to the token that ends the turn
(`ChatFormat.end`). The mask of each row is verified in its text and in its tokens; a row that
cannot be verified is refused with a reason of `ROW_REASONS`.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nexa_distill.text.reasoning import split_reasoning
from nexa_train.data.chat_format import (
    ASSISTANT,
    FAULTS,
    SYSTEM,
    USER,
    ChatFormat,
    ChatRefused,
    Message,
    RowRefused,
    chat_format,
)

Span = tuple[int, int]  # characters of the rendered conversation
IGNORE = -100  # the label that torch's cross entropy ignores
THINK, THINK_END = "<think>", "</think>"
ROW_REASONS = {
    "no_assistant": "it does not end with an assistant's message",
    "empty_answer": "an assistant's message is empty",
    "over_max_length": "it is longer than train.max_length, or than the model can read; cut, it "
    "would teach to stop nowhere",
    "special_token_in_answer": "an answer contains a special token of the tokenizer: generation "
    "would stop there, or the model would read a turn that is none",
    "special_token_in_prompt": "a message before the answer contains a special token of the "
    "tokenizer, which the model would read as a turn that is none",
    "reasoning_missing": "the generation prompt opens the reasoning (<think>), and the answer has "
    "none; train on answers with their reasoning (packaging.reasoning: keep)",
    "turns_end_otherwise": "an earlier answer ends with another token than the last one (gpt-oss); "
    "write such conversations as rows of one answer",
    "thinking_dropped": "the chat template leaves out the reasoning (<think>) of the answer; use a "
    "template that keeps it, or packaging.reasoning: drop",
    "answer_not_recoverable": "the tokens of the answer do not read as its text: the tokenizer "
    "changes letters, or does not know them",
    "prompt_tokens_differ": "its tokens do not begin with those that inference reads before an "
    "answer: the tokenizer joins characters across the border",
    "answer_joins_prompt": "the tokenizer joins the end of the generation prompt and the beginning "
    "of the answer into one token, which inference never reads",
} | {
    reason: f"of this row: {FAULTS[reason]}"
    for reason in ("template_fails", "no_end_of_turn", "turns_rewritten")
    + ("prompt_differs", "prompt_opens_thinking", "answer_changed")
}


@dataclass(frozen=True)
class Sample:
    """One conversation: `labels` is `input_ids` at tokens in the loss, IGNORE elsewhere."""

    sample_id: str
    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        # The first token has no predecessor to predict it.
        return sum(label != IGNORE for label in self.labels[1:])


@dataclass(frozen=True)
class Skip:
    """A refused row. `reason`: a key of ROW_REASONS. `tokens`: its length, if too long."""

    sample_id: str
    reason: str
    tokens: int | None = None


def student_format(tokenizer: Any) -> ChatFormat:
    """The chat format of a tokenizer that can be trained with. Raises ChatRefused."""
    form = chat_format(tokenizer)
    # A template that fails with plain text fails with every row.
    for probe in ([USER, ASSISTANT], [SYSTEM, USER, ASSISTANT]):
        try:
            _find_answer_spans(form, probe)
        except RowRefused as fault:
            if fault.reason in FAULTS:  # otherwise the probe is the cause: it has no reasoning
                raise ChatRefused(tokenizer, fault.reason, fault.detail) from None
    return form


def encode_conversation(
    form: ChatFormat, sample_id: str, messages: Sequence[Message], max_length: int | None
) -> Sample | Skip:
    """Ids and labels of one conversation, or why it is refused. `max_length` None: no limit."""
    turns = assistant_turns(messages)
    if not turns or turns[-1] != len(messages) - 1:
        return Skip(sample_id, "no_assistant")
    if any(not messages[turn]["content"].strip() for turn in turns):
        return Skip(sample_id, "empty_answer")
    try:
        _refuse_special_tokens(form, messages)
        text, spans = _find_answer_spans(form, messages)
        ids, labels = _label_tokens(form, text, spans)
        _prove_tokens(form, messages, text, spans, ids, labels)
    except RowRefused as fault:
        return Skip(sample_id, fault.reason)
    # After the other checks: a long row with another fault is counted under that fault.
    if max_length is not None and len(ids) > max_length:
        return Skip(sample_id, "over_max_length", len(ids))
    sample = Sample(sample_id, ids, labels)
    # The first token is never predicted, so a row may have no trained token.
    return sample if sample.trained_tokens else Skip(sample_id, "empty_answer")


def assistant_turns(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def comparable_text(text: str) -> str:
    # Qwen's tokenizers normalise to NFC; templates and SentencePiece move white space.
    return "".join(unicodedata.normalize("NFC", text).split())


def _refuse_special_tokens(form: ChatFormat, messages: Sequence[Message]) -> None:
    for message in messages:
        is_answer = message["role"] == "assistant"
        # The marks around the reasoning may be special tokens of the model itself (Magistral).
        texts = split_reasoning(message["content"]) if is_answer else (message["content"],)
        if any(token in text for text in texts if text for token in form.special_texts if token):
            raise RowRefused(f"special_token_in_{'answer' if is_answer else 'prompt'}")


def _find_answer_spans(form: ChatFormat, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """The rendered conversation, and the span of each answer with its end of turn."""
    # `{% generation %}` markers are not used: they mark the same span, or one that inference does
    # not generate (SmolLM3's include the header of the turn).
    turns, text = assistant_turns(messages), form.render(messages, prompt=False)
    spans = [_find_answer_span(form, messages, turn, text) for turn in turns]
    for turn, (start, end) in zip(turns, spans, strict=True):
        _prove_answer(form, messages[turn]["content"], text[:start], text[start:end])
    return text, spans


def _find_answer_span(form: ChatFormat, messages: Sequence[Message], turn: int, text: str) -> Span:
    before = form.render(messages[:turn], prompt=True)
    if not text.startswith(before):
        if not text.startswith(form.render(messages[:turn], prompt=False)):
            raise RowRefused("turns_rewritten")
        raise RowRefused("prompt_opens_thinking" if opens_thinking(before) else "prompt_differs")
    # No message contains this token, so the first one ends the turn. Text behind it (a line break,
    # Phi-3's end of document) is never generated.
    end = text.find(form.end_text, len(before))
    if end < 0:
        raise RowRefused("no_end_of_turn")
    return len(before), end + len(form.end_text)


def opens_thinking(prompt: str) -> bool:
    # Those of Qwen3-Thinking and DeepSeek-R1 do: an answer begins within the reasoning.
    return prompt.rstrip().endswith(THINK)


def _prove_answer(form: ChatFormat, content: str, prompt: str, answer: str) -> None:
    rendered = answer.removesuffix(form.end_text)
    expected = comparable_text(content)
    if opens_thinking(prompt):  # the <think> tag is in the prompt, not in the loss
        if THINK_END not in content:
            raise RowRefused("reasoning_missing")
        expected = expected.removeprefix(THINK)
    # Only the end: Qwen3 writes an empty <think> block before an answer without reasoning.
    if not comparable_text(rendered).endswith(expected):
        if any(token in rendered for token in form.special_texts):
            raise RowRefused("turns_end_otherwise")
        dropped = THINK_END in content and THINK_END not in answer
        raise RowRefused("thinking_dropped" if dropped else "answer_changed")


def _label_tokens(form: ChatFormat, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    # The conversation is tokenised as one text: at the beginning of a text a tokenizer may add
    # something (SentencePiece adds a space), so pieces would get other tokens.
    ids, places = form.encode_with_offsets(text)
    labels = [IGNORE] * len(ids)
    for start, end in spans:
        for i, (first, last) in enumerate(places):
            # The end of turn itself may include the line break behind it (Phi-3's, by `rstrip`).
            if first < start < last or (first < end < last and ids[i] != form.end):
                raise RowRefused("answer_joins_prompt", text[first:last])
            if start <= first < end:
                labels[i] = ids[i]
    # Tokens after the last answer are never generated.
    length = max((i + 1 for i, label in enumerate(labels) if label != IGNORE), default=0)
    return ids[:length], labels[:length]


def _prove_tokens(
    form: ChatFormat,
    messages: Sequence[Message],
    text: str,
    spans: Sequence[Span],
    ids: Sequence[int],
    labels: Sequence[int],
) -> None:
    trained = [label for label in labels if label != IGNORE]
    # Offsets alone prove nothing: a tokenizer may change letters, or not know them.
    decoded = form.tokenizer.decode(trained, clean_up_tokenization_spaces=False)
    if comparable_text(decoded) != comparable_text("".join(text[start:end] for start, end in spans)):
        raise RowRefused("answer_not_recoverable")
    begins = [i for i, label in enumerate(labels) if label != IGNORE and labels[i - 1] == IGNORE]
    turns = assistant_turns(messages)
    # Each answer begins directly behind the tokens that inference reads.
    if len(begins) != len(turns) or any(
        list(ids[:begin]) != form.prompt_ids(messages[:turn]) for begin, turn in zip(begins, turns, strict=True)
    ):
        raise RowRefused("prompt_tokens_differ")
    # One stop token per answer, and no other.
    if trained.count(form.end) < len(spans):
        raise RowRefused("no_end_of_turn")
    if sum(token in form.stop_tokens for token in trained) > len(spans):
        raise RowRefused("special_token_in_answer")
