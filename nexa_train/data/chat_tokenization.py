"""Messages -> token ids and labels: the text that inference reads, loss on the assistant's tokens.

Where an answer is follows from what inference reads: the prompt before it must be the beginning of
the conversation, and the answer runs from there to the token that ends the turn (`ChatFormat.end`).
`{% generation %}` markers are not used: what they mark is this, or is not what inference generates
(SmolLM3's include the header of the turn).

The whole conversation is tokenised once and cut at those characters. Pieces tokenised apart would
get what a tokenizer does at the beginning of a text (SentencePiece puts a space there). Whether the
result is right is proven of each row, in its text and in its tokens; a row of which it cannot be
proven is refused, with a reason of `ROW_REASONS`.
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
IGNORE = -100  # the label that torch's cross entropy leaves out
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
    **{reason: f"of this row: {FAULTS[reason]}" for reason in (
        "template_fails", "no_end_of_turn", "turns_rewritten", "prompt_differs",
        "prompt_opens_thinking", "answer_changed",
    )},
}  # fmt: skip


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
    """Not trained on. `reason`: a key of ROW_REASONS. `tokens`: its length, where that is it."""

    sample_id: str
    reason: str
    tokens: int | None = None


def student_format(tokenizer: Any) -> ChatFormat:
    """The format of a tokenizer that can be trained. Raises ChatRefused."""
    form = chat_format(tokenizer)
    # A template that fails with plain words fails with every row.
    for probe in ([USER, ASSISTANT], [SYSTEM, USER, ASSISTANT]):
        try:
            _spans(form, probe)
        except RowRefused as fault:
            if fault.reason in FAULTS:  # else it is of the probe, which has no reasoning
                raise ChatRefused(tokenizer, fault.reason, fault.detail) from None
    return form


def encode(
    form: ChatFormat, sample_id: str, messages: Sequence[Message], max_length: int | None
) -> Sample | Skip:
    """Ids and labels of one conversation, or why it is not trained on; null = of any length."""
    turns = assistant_turns(messages)
    if not turns or turns[-1] != len(messages) - 1:
        return Skip(sample_id, "no_assistant")
    if any(not messages[turn]["content"].strip() for turn in turns):
        return Skip(sample_id, "empty_answer")
    try:
        _refuse_special_tokens(form, messages)
        text, spans = _spans(form, messages)
        ids, labels = _label(form, text, spans)
        _prove_tokens(form, messages, text, spans, ids, labels)
    except RowRefused as fault:
        return Skip(sample_id, fault.reason)
    if max_length is not None and len(ids) > max_length:
        return Skip(sample_id, "over_max_length", len(ids))
    sample = Sample(sample_id, ids, labels)
    return sample if sample.trained_tokens else Skip(sample_id, "empty_answer")


def assistant_turns(messages: Sequence[Message]) -> list[int]:
    """The places of the assistant's messages."""
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def same_text(text: str) -> str:
    """What two texts are compared by: canonically equal characters are one (Qwen's tokenizers
    normalise to NFC), and white space does not count (templates and SentencePiece move it)."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _refuse_special_tokens(form: ChatFormat, messages: Sequence[Message]) -> None:
    for message in messages:
        is_answer = message["role"] == "assistant"
        # The marks around the reasoning may be special tokens of the model's own (Magistral).
        texts = split_reasoning(message["content"]) if is_answer else (message["content"],)
        if any(token in text for text in texts if text for token in form.special_texts if token):
            raise RowRefused(f"special_token_in_{'answer' if is_answer else 'prompt'}")


def _spans(form: ChatFormat, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """The conversation, and where in it the answers are, each with its end of turn.

    Raises RowRefused unless each follows what inference reads and contains the message's words.
    """
    turns, text = assistant_turns(messages), form.render(messages, prompt=False)
    spans = [_span(form, messages, turn, text) for turn in turns]
    for turn, (start, end) in zip(turns, spans, strict=True):
        _prove_answer(form, messages[turn]["content"], text[:start], text[start:end])
    return text, spans


def _span(form: ChatFormat, messages: Sequence[Message], turn: int, text: str) -> Span:
    before = form.render(messages[:turn], prompt=True)
    if not text.startswith(before):
        if not text.startswith(form.render(messages[:turn], prompt=False)):
            raise RowRefused("turns_rewritten")
        raise RowRefused("prompt_opens_thinking" if opens_thinking(before) else "prompt_differs")
    # The first one is the turn's own: no message contains it. What the template writes after it (a
    # line break, Phi-3's end of the document) is never generated.
    end = text.find(form.end_text, len(before))
    if end < 0:
        raise RowRefused("no_end_of_turn")
    return len(before), end + len(form.end_text)


def opens_thinking(prompt: str) -> bool:
    """Whether the generation prompt itself begins the reasoning (Qwen3-Thinking, DeepSeek-R1)."""
    return prompt.rstrip().endswith(THINK)


def _prove_answer(form: ChatFormat, content: str, prompt: str, answer: str) -> None:
    """The answer in the text ends with the message's words and the end of turn."""
    words, written = same_text(content), same_text(answer.removesuffix(form.end_text))
    if opens_thinking(prompt):  # its tag is in the prompt, not in the loss
        if THINK_END not in content:
            raise RowRefused("reasoning_missing")
        words = words.removeprefix(THINK)
    if not written.endswith(words):
        if any(token in answer.removesuffix(form.end_text) for token in form.special_texts):
            raise RowRefused("turns_end_otherwise")
        dropped = THINK_END in content and THINK_END not in answer
        raise RowRefused("thinking_dropped" if dropped else "answer_changed")


def _label(form: ChatFormat, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    """Ids of the whole conversation up to its last answer, and labels where the spans are."""
    ids, places = form.tokens_at(text)
    labels = [IGNORE] * len(ids)
    for start, end in spans:
        for i, (first, last) in enumerate(places):
            # The end of turn itself may take the line break behind it (Phi-3's, by `rstrip`).
            if first < start < last or (first < end < last and ids[i] != form.end):
                raise RowRefused("answer_joins_prompt", text[first:last])
            if start <= first < end:
                labels[i] = ids[i]
    length = max((i + 1 for i, label in enumerate(labels) if label != IGNORE), default=0)
    return ids[:length], labels[:length]


def _prove_tokens(
    form: ChatFormat, messages: Sequence[Message], text: str, spans: Sequence[Span],
    ids: Sequence[int], labels: Sequence[int],
) -> None:  # fmt: skip
    """The labels read as the answers, each follows what inference reads, and stops at its end."""
    trained = [label for label in labels if label != IGNORE]
    read = form.tokenizer.decode(trained, clean_up_tokenization_spaces=False)
    if same_text(read) != same_text("".join(text[start:end] for start, end in spans)):
        raise RowRefused("answer_not_recoverable")
    begins = [i for i, label in enumerate(labels) if label != IGNORE and labels[i - 1] == IGNORE]
    turns = assistant_turns(messages)
    if len(begins) != len(turns) or any(
        list(ids[:begin]) != form.prompt_ids(messages[:turn])
        for begin, turn in zip(begins, turns, strict=True)
    ):
        raise RowRefused("prompt_tokens_differ")
    if trained.count(form.end) < len(spans):
        raise RowRefused("no_end_of_turn")
    if sum(token in form.stops for token in trained) > len(spans):
        raise RowRefused("special_token_in_answer")
