"""Find text that many prompts share, so that prompts are compared without it.

- An instruction is a context of at least a third of the rows ("You are the assistant of a library
  ..."); each of these rows is its own document.
- An opening or closing of `LONG` bytes and more, up to the end of a sentence or line, that at least
  `FEWEST` different prompts without a context share, is an instruction if a third of the rows have
  it. Otherwise it is a passage: the prompts are about it, and the rest is the question.

Not covered: instructions that differ in a word, or that are in the middle.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FEWEST = 5  # rows
SHARE = 3  # at least one row in so many has an instruction
LONG = 75  # bytes: 13 words of English, 25 characters of Chinese
MOST_BORDERS = 12  # sentences from each end that are examined
COLUMNS = ["document_id", "context", "user_prompt", "schema"]
_BORDER = re.compile(r"(?<=[.!?:])\s+|\s*\n\s*|(?<=[\u3002\uff01\uff1f\uff1a\u0964])\s*")

Span = tuple[int, int]


@dataclass(frozen=True)
class SharedText:
    """Shared texts, by `name_of` of a context's document id, or of an opening or closing."""

    instructions: frozenset[str] = frozenset()
    passages: frozenset[str] = frozenset()
    reported: tuple[tuple[str, int], ...] = ()  # (text, number of rows) of each instruction of this run

    def is_instruction(self, document_id: str) -> bool:
        return bool(self.instructions) and name_of(document_id) in self.instructions

    def split_prompt(self, prompt: str) -> tuple[str, str]:
        """(subject, question) of a prompt that has no context."""
        if not self.instructions and not self.passages:
            return prompt, ""
        ends = list(_openings_and_closings(prompt))
        start, end = _longest_span(span for name, span in ends if name in self.instructions)
        first, last = _longest_span(span for name, span in ends if name in self.passages)
        if last - first <= end - start:
            first, last = 0, len(prompt)
        # Where an instruction and a passage overlap, the text belongs to the instruction.
        cut = [min(max(place, first), last) for place in (start, end)]
        subject = f"{prompt[first : cut[0]]} {prompt[cut[1] : last]}".strip()
        return subject, " ".join([prompt[:first], prompt[start:end], prompt[last:]]).strip()


def _longest_span(spans: Iterable[Span]) -> Span:
    return max(spans, key=lambda span: span[1] - span[0], default=(0, 0))


NOTHING_SHARED = SharedText()
Read = Callable[[], Iterable[pa.Table]]


def name_of(text: str) -> str:
    """16 hexadecimal digits, the same in every run, independent of the text's case."""
    return blake2b(text.casefold().encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _openings_and_closings(prompt: str) -> Iterator[tuple[str, Span]]:
    """(name, span) of the long openings and closings of a prompt that are not all of it."""
    # A character has at most 4 bytes: nothing here can be long enough.
    if len(prompt) * 4 < LONG:
        return
    borders = [match.span() for match in _BORDER.finditer(prompt)]
    for end, start in borders[:MOST_BORDERS]:
        if len(prompt[:end].encode()) >= LONG and prompt[start:].strip():
            yield name_of(prompt[:end].strip()), (0, end)
    for end, start in borders[-MOST_BORDERS:]:
        if len(prompt[start:].encode()) >= LONG and prompt[:end].strip():
            yield name_of(prompt[start:].strip()), (start, len(prompt))


def find_shared_text(
    read: Read, before: SharedText | None, is_document: Callable[[list[str]], list[bool]]
) -> SharedText:
    """Find the shared texts; each call of `read` yields all prompts, as tables with COLUMNS.

    `before`: shared texts of earlier runs; `is_document`: which document ids earlier runs had.
    """
    total, contexts, openings = _count_shared(read())
    fewest = max(FEWEST, total / SHARE)
    often = {name: count for name, count in (contexts | openings).items() if count >= fewest}
    texts = _collect_texts(read(), often.keys()) if often else {}
    documents = [document for document, _ in texts.values() if document]
    # An instruction stays one, a document stays a document, and only the first run looks for
    # passages: otherwise rows would change their split, or be lost, when others are added.
    flags = is_document(documents)
    old = {document for document, is_old in zip(documents, flags, strict=True) if is_old}
    texts = {name: value for name, value in texts.items() if value[0] not in old}
    instructions = texts.keys() | (before.instructions if before else frozenset())
    passages = openings.keys() if before is None else before.passages
    reported = [(text, often[name]) for name, (_, text) in texts.items()]
    # Of several openings of one instruction, only the longest is reported.
    reported = [item for item in reported if not any(item[0] in o[0] and item != o for o in reported)]
    return SharedText(frozenset(instructions), frozenset(passages - instructions), tuple(reported))


def _has_context(row: Mapping[str, str | None]) -> bool:
    return bool((row["context"] or "").strip())


def _prompt_without_schema(row: Mapping[str, str | None]) -> str:
    prompt = row["user_prompt"] or ""
    return prompt.replace(row["schema"], " ") if row["schema"] else prompt


def _count_shared(batches: Iterable[pa.Table]) -> tuple[int, dict[str, int], dict[str, int]]:
    """(rows, rows per document with a context, different prompts per opening or closing).

    Only counts of at least `FEWEST`. Takes 16 bytes per row and 24 per opening.
    """
    total, none = 0, np.zeros(0, "S16")
    documents, prompts, names, owners = [none], [none], [none], [np.zeros(0, np.int64)]
    for batch in batches:
        rows = batch.select(COLUMNS).to_pylist()
        texts = [_prompt_without_schema(row) for row in rows if not _has_context(row)]
        ends = [sorted({name for name, _ in _openings_and_closings(text)}) for text in texts]
        owner = np.repeat(np.arange(len(texts)), [len(part) for part in ends])
        # Positions among the prompts of all batches so far.
        owners.append(owner + sum(map(len, prompts)))
        documents.append(_name_array(row["document_id"] for row in rows if _has_context(row)))
        prompts.append(_name_array(texts))
        names.append(np.array(list(chain.from_iterable(ends)), "S16"))
        total += batch.num_rows
    # A prompt counts once, however many rows have it.
    _, different = np.unique(np.concatenate(prompts), return_index=True)
    counted = np.isin(np.concatenate(owners), different)
    contexts = _frequent_names(np.concatenate(documents))
    return total, contexts, _frequent_names(np.concatenate(names)[counted])


def _name_array(texts: Iterable[str]) -> npt.NDArray[np.bytes_]:
    return np.array([name_of(text) for text in texts], "S16")


def _frequent_names(names: npt.NDArray[np.bytes_]) -> dict[str, int]:
    values, numbers = np.unique(names, return_counts=True)
    often = numbers >= FEWEST
    pairs = zip(values[often].tolist(), numbers[often].tolist(), strict=True)
    return {name.decode(): count for name, count in pairs}


def _collect_texts(batches: Iterable[pa.Table], names: Collection[str]) -> dict[str, tuple[str, str]]:
    """(document id, text) of these contexts, and ("", text) of these openings and closings."""
    texts: dict[str, tuple[str, str]] = {}
    chunked: set[str] = set()
    for batch in batches:
        for row in batch.select(COLUMNS).to_pylist():
            if _has_context(row):
                name, text = name_of(row["document_id"]), row["context"]
                if name in names and texts.setdefault(name, (row["document_id"], text))[1] != text:
                    chunked.add(name)  # a document of several chunks has several contexts
                continue
            prompt = _prompt_without_schema(row)
            for name, (start, end) in _openings_and_closings(prompt):
                if name in names:
                    texts.setdefault(name, ("", prompt[start:end].strip()))
    return {name: value for name, value in texts.items() if name not in chunked}
