"""Conversations to text and token ids by the chat template, the same in training and inference.

`chat_format` checks a tokenizer once, on a probe, before any row: a fault of the tokenizer or the
template raises `ChatRefused`, whose reasons are `FAULTS`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from nexa_distill.errors import InputError

Message = dict[str, str]
USER = {"role": "user", "content": "How many are there?"}
ASSISTANT = {"role": "assistant", "content": "Seven, or 7."}
SYSTEM = {"role": "system", "content": "Count them."}
FAULTS = {
    "template_fails": "its chat template cannot be rendered; correct it, or put another "
    "chat_template.jinja into its folder",
    "no_chat_template": "the tokenizer has no chat template (or several, none of them named "
    "default), so training text cannot equal inference text; use an instruct model, or put "
    "chat_template.jinja in its folder",
    "no_offsets": "its tokenizer is not a fast one: it cannot tell which characters a token came "
    "from, so the loss mask cannot be proven; put its tokenizer.json into the folder",
    "two_bos": "its chat template begins a conversation with two BOS tokens; remove one",
    "no_bos": "it puts BOS before a plain text, but its chat template writes none; begin the "
    "template with {{ bos_token }}",
    "no_end_of_turn": "its chat template writes no special token after an answer, so the student "
    "would never learn to stop; end the assistant's turn with {{ eos_token }}",
    "turns_rewritten": "its chat template writes an earlier turn differently once a later one "
    "follows, so the assistant's tokens cannot be told apart; use a template that only appends",
    "prompt_differs": "what its chat template writes before an answer in training is not the "
    "generation prompt that inference reads; make them equal",
    "prompt_opens_thinking": "its generation prompt opens the reasoning (<think>), and its "
    "template writes none before an answer; put a template into the folder whose answers keep "
    "their reasoning, or whose generation prompt does not open it",
    "answer_changed": "its chat template changes the words of an answer; use one that copies them",
}


class ChatRefused(InputError):
    """A tokenizer or template that cannot be used for chats; `reason` is a key of FAULTS."""

    def __init__(self, tokenizer: Any, reason: str, detail: object = "") -> None:
        self.reason = reason
        why = f" ({' '.join(str(detail).split())})" if detail else ""
        super().__init__(f"{tokenizer.name_or_path}: {FAULTS[reason]}{why}")


class RowRefused(Exception):
    """A conversation that cannot be encoded; `reason` is a key of `ROW_REASONS`."""

    def __init__(self, reason: str, detail: object = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer and its chat template."""

    tokenizer: Any
    # Ends an assistant's turn: what the template writes after an answer. `eos_token` and
    # generation_config.json may name another token: base models, Gemma and Phi-3 do.
    end: int
    end_text: str
    folds_system: bool  # the template has no system role
    special_texts: frozenset[str]  # read as special tokens wherever a text has them

    @property
    def stop_tokens(self) -> list[int]:
        document_end = self.tokenizer.eos_token_id
        return sorted({self.end} if document_end is None else {self.end, document_end})

    def render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """The text; `prompt`: with the generation prompt at the end. Raises RowRefused."""
        with refuse_template_errors():
            text = self.tokenizer.apply_chat_template(
                self.plain_messages(messages), tokenize=False, add_generation_prompt=prompt
            )
        return str(text)

    def plain_messages(self, messages: Sequence[Message]) -> list[Message]:
        # Other keys would reach the template, which may render them.
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        if not self.folds_system or [m["role"] for m in plain[:2]] != ["system", "user"]:
            return plain
        system, user, *rest = plain  # the system text moves to the head of the first user turn
        return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids before an answer to `messages`. Raises RowRefused."""
        return self.encode_text(self.render(messages, prompt=True))

    def encode_text(self, text: str) -> list[int]:
        # The template has written BOS and end of turn: special tokens are recognised, none are added.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each its characters (begin, end) in `text`."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def chat_format(tokenizer: Any) -> ChatFormat:
    """The chat format of a tokenizer. Raises ChatRefused."""
    # Several templates may have names; the default one is used.
    template = tokenizer.chat_template
    if template is None or (isinstance(template, dict) and "default" not in template):
        raise ChatRefused(tokenizer, "no_chat_template", ", ".join(template or ()))
    if not tokenizer.is_fast:
        raise ChatRefused(tokenizer, "no_offsets")
    special = frozenset(_special_texts(tokenizer))
    # Without its end of turn a format can render the probes that find it.
    bare = ChatFormat(tokenizer, -1, "", False, special)
    try:
        end_text = _find_end_of_turn(bare.render([USER, ASSISTANT], prompt=False), special)
        folds = not _has_system_role(bare)
        begin = bare.prompt_ids([USER])[:2]
    except RowRefused as fault:
        raise ChatRefused(tokenizer, fault.reason, fault.detail) from None
    bos, end = tokenizer.bos_token_id, bare.encode_text(end_text)
    if len(end) != 1:  # its text is not encoded as its id: `split_special_tokens`
        raise ChatRefused(tokenizer, "no_end_of_turn", end_text)
    if bos is not None and begin == [bos, bos]:
        raise ChatRefused(tokenizer, "two_bos")
    # The tokenizer puts BOS before a plain text, so the model expects it.
    if bos is not None and begin[:1] != [bos] and tokenizer("a")["input_ids"][:1] == [bos]:
        raise ChatRefused(tokenizer, "no_bos")
    return ChatFormat(tokenizer, end[0], end_text, folds, special)


@contextmanager
def refuse_template_errors() -> Iterator[None]:
    # A template is a program from a checkpoint: any of these errors is its fault.
    types = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
    try:
        yield
    except (TemplateError, *types) as error:
        raise RowRefused("template_fails", error) from None


def _special_texts(tokenizer: Any) -> Iterator[str]:
    yield from tokenizer.all_special_tokens
    # Added tokens can be special without being listed above.
    yield from (str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)


def _find_end_of_turn(text: str, special: frozenset[str]) -> str:
    place = text.rfind(ASSISTANT["content"])
    if place < 0:
        raise RowRefused("answer_changed")
    rest = text[place + len(ASSISTANT["content"]) :]
    # Of two tokens at one position the longer wins, as in the tokenizer.
    matches = [(rest.find(token), -len(token), token) for token in special if token]
    matches = [match for match in matches if match[0] >= 0]
    if not matches:
        raise RowRefused("no_end_of_turn")
    return min(matches)[2]


def _has_system_role(bare: ChatFormat) -> bool:
    try:
        # Gemma 2 and Mistral v0.1 refuse a system message; some templates leave it out.
        if SYSTEM["content"] not in bare.render([SYSTEM, USER], prompt=True):
            return False
        # Mistral v0.3 writes it into the last user turn only while no answer follows.
        return _is_append_only(bare, [SYSTEM, USER]) or not _is_append_only(bare, [USER])
    except RowRefused:
        return False  # [USER] alone could be rendered before


def _is_append_only(bare: ChatFormat, messages: Sequence[Message]) -> bool:
    whole = bare.render([*messages, ASSISTANT], prompt=False)
    return whole.startswith(bare.render(messages, prompt=True))
