"""Split a reply into reasoning and answer, in any format in which models write reasoning.

The teacher's and the student's replies are read alike, so rules, execution and judges measure the
answer alone. Reading never fails, and takes linear time on any text.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple


class Block(NamedTuple):
    """The marks around a model's reasoning."""

    opening: str
    closing: str


# Chat templates and vLLM's reasoning parsers (docs.vllm.ai, "Reasoning Outputs"), unless noted.
BLOCKS = (
    Block("<think>", "</think>"),  # DeepSeek-R1, Qwen3, SmolLM3, GLM-4.5, OLMo 3, MiniMax, Hunyuan
    Block("<thinking>", "</thinking>"),  # Reflection, and prompts after Claude's documentation
    Block("<thought>", "</thought>"),  # prompts after Gemini's OpenAI-compatible API
    Block("<reasoning>", "</reasoning>"),  # TRL's and Unsloth's GRPO recipes, with <answer>
    Block("<seed:think>", "</seed:think>"),  # Seed-OSS
    Block("<longcat_think>", "</longcat_think>"),  # LongCat-Flash-Thinking
    Block("<unused94>", "<unused95>"),  # MedGemma, with the label of Gemma's channel
    Block("[THINK]", "[/THINK]"),  # Magistral (mistral-common, SpecialTokens)
    Block("◁think▷", "◁/think▷"),  # Kimi-VL and Kimi K2 (SGLang, "Reasoning Parser")
    Block("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere Command A Reasoning
    Block("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Block("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker (their data sets)
    Block("<|channel>", "<channel|>"),  # Gemma 4
)
THINK, GEMMA = BLOCKS[0], BLOCKS[-1]
GEMMAS = (GEMMA, Block("<unused94>", "<unused95>"))  # their first line may be a label
GEMMA_LABEL = "thought\n"  # the first line of its channel is the channel's name
# Granite 3.2 has no tags: sentences, "Here's" in quantised ones (vLLM, granite_reasoning_parser).
GRANITE = re.compile(r"\s*Here(?: i|')s my thought process:", re.IGNORECASE)
GRANITE_RESPONSE = re.compile(r"Here(?: i|')s my response:", re.IGNORECASE)
# Around the answer that follows a block. In prose "<answer>" may be text that the user requested,
# so these are removed only after reasoning; tokens that only a template writes are always removed.
WRAPPERS = (
    Block("<answer>", "</answer>"),  # Hunyuan-A13B
    Block("<response>", "</response>"),
    Block("<|begin_of_solution|>", "<|end_of_solution|>"),  # Sky-T1, OpenThinker
)
COHERE_RESPONSE = Block("<|START_RESPONSE|>", "<|END_RESPONSE|>")
# gpt-oss, https://github.com/openai/harmony/blob/main/docs/format.md
CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
HARMONY = (CHANNEL, MESSAGE, "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
HARMONY_START = re.compile(r"\s*+(?:<\|start\|>)?(?:assistant)?\s*+(?=<\|channel\|>)")
HARMONY_END = re.compile(r"<\|(?:end|return|call|start)\|>")
# Where a server drops the special tokens, the names of the channels touch what they say.
BARE_CHANNELS = re.compile(
    r"\s*(?:assistant)?analysis(?=\S)(?P<thought>.*?)assistantfinal(?:json)?(?P<answer>.*)", re.DOTALL
)
FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL
QUOTES = "`'\"“”\u2018\u2019«»"
# Text that is shown rather than meant: fenced code, and within a line inline code and quotations.
SHOWN = r"(?P<shown>^[ \t]*+```.*?(?:^[ \t]*+```|\Z)|`[^`\n]*+`|\"[^\"\n]*+\")"


def _join_alternatives(marks: Iterable[str], around: str = "{}") -> str:
    return "|".join(around.format(re.escape(mark)) for mark in marks)


# One group per block: `lastindex` identifies the block, also for letters that only fold to ASCII.
OPENING = re.compile(rf"\s*(?:{_join_alternatives((b.opening for b in BLOCKS), '({})')})", re.IGNORECASE)
OPEN_PROMPT = re.compile(
    rf"(?:(?:{_join_alternatives(b.opening for b in BLOCKS)})(?:thought)?"
    r"|<\|channel\|>\w{1,20}<\|message\|>)\s*\Z",
    re.IGNORECASE,
)
PROMPT_TAIL = 100  # characters of a prompt in which its open mark is


def split_reasoning(text: str, prompt: str = "") -> tuple[str | None, str | None]:
    """(reasoning, answer), None for an absent one; truncated reasoning has no answer.

    `prompt`: the end of the model's input. A chat template may have written the opening mark there
    (DeepSeek-R1: "<think>\\n").
    """
    opened = OPEN_PROMPT.search(prompt[-PROMPT_TAIL:])
    whole = opened[0] + text if opened else text
    # From the most to the least specific format; the first that applies decides.
    for read in (_read_channels, _read_granite, _read_blocks, _read_after_closing):
        if parts := read(whole):
            reasoning, answer = parts
            answer = _unwrap_answer(answer, (COHERE_RESPONSE, *WRAPPERS) if reasoning else ()).lstrip()
            return reasoning.strip() or None, answer or None
    return None, _unwrap_answer(text, (COHERE_RESPONSE,)) or None


def join_reasoning(reasoning: str, answer: str) -> str:
    """Both in one text, as the chat templates of Qwen3, SmolLM3 and DeepSeek write them."""
    return f"{THINK.opening}\n{reasoning}\n{THINK.closing}\n\n{answer}"


def reasoning_marks(special: Iterable[str]) -> set[str]:
    """The special tokens of a tokenizer that separate reasoning from the answer."""
    marks = {mark for block in (*BLOCKS, *WRAPPERS, COHERE_RESPONSE) for mark in block}
    tokens = set(special)
    # "<|end|>" is also how Phi-3 ends a turn: it belongs to reasoning only beside channels.
    return tokens & (marks | set(HARMONY) if CHANNEL in tokens else marks)


def _read_channels(text: str) -> tuple[str, str] | None:
    """gpt-oss: the final channel is the answer, the others are reasoning."""
    start = HARMONY_START.match(text)
    if start is None:
        bare = BARE_CHANNELS.fullmatch(text)
        return (bare["thought"], bare["answer"]) if bare else None
    messages: list[tuple[str, list[str]]] = []
    for part in text[start.end() + len(CHANNEL) :].split(CHANNEL):
        header, mark, body = part.partition(MESSAGE)
        if mark or not messages:
            messages.append((header.strip().casefold(), [body if mark else ""]))
        else:  # the message itself writes about a channel
            messages[-1][1].append(part)
    answers: list[str] = []
    thoughts: list[str] = []
    for header, parts in messages:
        words = HARMONY_END.split(CHANNEL.join(parts), maxsplit=1)[0]
        (answers if header.startswith("final") else thoughts).append(words)
    return _join_paragraphs(thoughts), _join_paragraphs(answers)


def _read_granite(text: str) -> tuple[str, str] | None:
    # With only the first of the two sentences it is an ordinary answer.
    start = GRANITE.match(text)
    end = GRANITE_RESPONSE.search(text, start.end()) if start else None
    return (text[start.end() : end.start()], text[end.end() :]) if start and end else None


def _read_blocks(text: str) -> tuple[str, str] | None:
    thoughts: list[str] = []
    absent: set[re.Pattern[str]] = set()
    position = 0
    while start := OPENING.match(text, position):
        block = BLOCKS[(start.lastindex or 1) - 1]
        end = _find_closing(block.closing, text, start.end(), absent)
        thought, position = text[start.end() : end and end.start()], end.end() if end else len(text)
        thoughts.append(thought.removeprefix(GEMMA_LABEL) if block in GEMMAS else thought)
    return (_join_paragraphs(thoughts), text[position:]) if thoughts else None


def _find_closing(mark: str, text: str, position: int, absent: set[re.Pattern[str]]) -> re.Match[str] | None:
    """The first delimiting mark; else one in code that is not closed; else one in a sentence."""
    # `absent` holds the patterns that no longer occur, so that many blocks take linear time.
    for pattern in (_delimiter_pattern((mark,)), *_loose_patterns(mark)):
        if pattern not in absent:
            if match := _first_meant(pattern, text, position):
                return match
            absent.add(pattern)
    return None


def _read_after_closing(text: str) -> tuple[str, str] | None:
    """All before the closing mark, whose opening mark was in a prompt that is unknown."""
    # The closing mark must delimit: an answer that only mentions such marks keeps its words.
    end = _first_meant(_delimiter_pattern(tuple(b.closing for b in BLOCKS)), text)
    if end is None or _first_meant(_opening_pattern(), text[: end.start()]):
        return None
    return text[: end.start()], text[end.end() :]


def _first_meant(marks: re.Pattern[str], text: str, position: int = 0) -> re.Match[str] | None:
    return next((m for m in marks.finditer(text, position) if m.lastgroup != "shown"), None)


def _unquoted_mark(marks: Iterable[str]) -> str:
    return rf"(?<![{QUOTES}])(?:{_join_alternatives(marks)})(?![{QUOTES}])"


def _delimiting_mark(marks: Iterable[str]) -> str:
    """A mark at an edge of a line, or right after a word ("4.</think>")."""
    # "Write </think> there" is a sentence about the mark.
    mark = _unquoted_mark(marks)
    return rf"(?:(?:^[ \t]*+|(?<=\S)){mark}|{mark}(?=[ \t\r]*+$))"


@cache
def _delimiter_pattern(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"{SHOWN}|{_delimiting_mark(marks)}", FLAGS)


@cache
def _loose_patterns(mark: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(_delimiting_mark((mark,)), FLAGS), re.compile(_unquoted_mark((mark,)), FLAGS)


@cache
def _opening_pattern() -> re.Pattern[str]:
    return re.compile(f"{SHOWN}|{_unquoted_mark(b.opening for b in BLOCKS)}", FLAGS)


def _unwrap_answer(text: str, wrappers: Iterable[Block]) -> str:
    """The text inside marks around all of it; the closing mark may be truncated."""
    stripped = text.strip()
    for opening, closing in wrappers:
        inner, _, after = stripped[len(opening) :].partition(closing)
        if stripped[: len(opening)].casefold() == opening.casefold() and not after:
            return inner.strip()
    return text


def _join_paragraphs(parts: Iterable[str]) -> str:
    return "\n\n".join(stripped for part in parts if (stripped := part.strip()))
