"""How a student's conversations become text and tokens, the same in training and ever after.

The chat template decides. What ends an answer is the token that the template writes after one
(`ChatFormat.end`), whatever `eos_token` and `generation_config.json` say: base models, Gemma and
Phi-3 name another token there. Templates without a system role get the system text at the head of
the first user turn.

`chat_format` looks at a tokenizer once, by rendering a probe; what is wrong with the tokenizer or
the template itself is refused there (`ChatRefused`, whose reasons are `FAULTS`), before any row.
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
    """The tokenizer or its template cannot serve chats; `reason` is a key of FAULTS."""

    def __init__(self, tokenizer: Any, reason: str, detail: object = "") -> None:
        self.reason = reason
        why = f" ({' '.join(str(detail).split())})" if detail else ""
        super().__init__(f"{tokenizer.name_or_path}: {FAULTS[reason]}{why}")


class RowRefused(Exception):
    """One conversation cannot be encoded; `reason` is a key of `chat_tokenization.ROW_REASONS`."""

    def __init__(self, reason: str, detail: object = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


@dataclass(frozen=True)
class ChatFormat:
    """The rendering of one tokenizer.

    `end`, `end_text`: the token that ends an assistant's turn. `folds_system`: the template has no
    system role. `special_texts`: what the tokenizer reads as a special token wherever it occurs.
    """

    tokenizer: Any
    end: int
    end_text: str
    folds_system: bool
    special_texts: frozenset[str]

    @property
    def stops(self) -> list[int]:
        """Tokens that end generation: the end of a turn, and the tokenizer's end of a document."""
        document_end = self.tokenizer.eos_token_id
        return sorted({self.end} if document_end is None else {self.end, document_end})

    def render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """The text; `prompt`: with what asks for the assistant's turn. Raises RowRefused."""
        with rendering():
            text = self.tokenizer.apply_chat_template(
                self.plain(messages), tokenize=False, add_generation_prompt=prompt
            )
        return str(text)

    def plain(self, messages: Sequence[Message]) -> list[Message]:
        """Role and content alone, the system text folded where the template has no such role."""
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        if not self.folds_system or [m["role"] for m in plain[:2]] != ["system", "user"]:
            return plain
        system, user, *rest = plain
        return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads before it answers `messages`. Raises RowRefused."""
        return self.tokens(self.render(messages, prompt=True))

    def tokens(self, text: str) -> list[int]:
        """Token ids; special tokens are those that the text contains, none are added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokens_at(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and of each the characters (begin, end) of `text` that it came from."""
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(made["input_ids"]), [tuple(pair) for pair in made["offset_mapping"]]


def chat_format(tokenizer: Any) -> ChatFormat:
    """The format of a tokenizer. Raises ChatRefused."""
    template = tokenizer.chat_template
    if template is None or (isinstance(template, dict) and "default" not in template):
        raise ChatRefused(tokenizer, "no_chat_template", ", ".join(template or ()))
    if not tokenizer.is_fast:
        raise ChatRefused(tokenizer, "no_offsets")
    special = frozenset(_special_texts(tokenizer))
    bare = ChatFormat(tokenizer, -1, "", False, special)
    try:
        end_text = _end_of_turn(bare.render([USER, ASSISTANT], prompt=False), special)
        folds = not _has_system_role(bare)
        begin = bare.prompt_ids([USER])[:2]
    except RowRefused as fault:
        raise ChatRefused(tokenizer, fault.reason, fault.detail) from None
    bos, end = tokenizer.bos_token_id, bare.tokens(end_text)
    if len(end) != 1:  # its text does not become its id: `split_special_tokens`
        raise ChatRefused(tokenizer, "no_end_of_turn", end_text)
    if bos is not None and begin == [bos, bos]:
        raise ChatRefused(tokenizer, "two_bos")
    if bos is not None and begin[:1] != [bos] and tokenizer("a")["input_ids"][:1] == [bos]:
        raise ChatRefused(tokenizer, "no_bos")
    return ChatFormat(tokenizer, end[0], end_text, folds, special)


@contextmanager
def rendering() -> Iterator[None]:
    """A template is a program from a checkpoint: what it may not do, or cannot, is its fault."""
    try:
        yield
    except (
        TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        raise RowRefused("template_fails", error) from None


def _special_texts(tokenizer: Any) -> Iterator[str]:
    yield from tokenizer.all_special_tokens
    yield from (str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)


def _end_of_turn(text: str, special: frozenset[str]) -> str:
    """The first special token that the template writes after an answer. Raises RowRefused."""
    place = text.rfind(ASSISTANT["content"])
    if place < 0:
        raise RowRefused("answer_changed")
    rest = text[place + len(ASSISTANT["content"]) :]
    # At the same place the longer one: the tokenizer takes it too.
    found = [(rest.find(token), -len(token), token) for token in special if token and token in rest]
    if not found:
        raise RowRefused("no_end_of_turn")
    return min(found)[2]


def _has_system_role(bare: ChatFormat) -> bool:
    """Whether a system message is written, and the same with and without the answer.

    Gemma 2 and Mistral v0.1 refuse one, others leave it out, and Mistral v0.3 writes it into the
    last user turn only while no answer follows.
    """
    try:
        if SYSTEM["content"] not in bare.render([SYSTEM, USER], prompt=True):
            return False
        return _appends(bare, [SYSTEM, USER]) or not _appends(bare, [USER])
    except RowRefused:
        return False  # [USER] alone was rendered


def _appends(bare: ChatFormat, asked: Sequence[Message]) -> bool:
    whole = bare.render([*asked, ASSISTANT], prompt=False)
    return whole.startswith(bare.render(asked, prompt=True))
