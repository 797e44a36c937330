"""Reasoning and answer apart, in every format that is known, and in texts that only mention one."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nexa_distill.text.reasoning import BLOCKS, join_reasoning, reasoning_marks, split_reasoning
from nexa_train.models.generation import decode_answer

HARMONY = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary"
    ' to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|><|start|>assistant'
    "<|channel|>final<|message|>Four.<|return|>"
)
FORMATS = {
    **{b.opening: f"{b.opening}\nHm.\n{b.closing}\n\nFour." for b in BLOCKS},
    **{f"{b.opening} on one line": f"{b.opening}Hm.{b.closing}Four." for b in BLOCKS},
    **{f"{b.closing} alone": f"Hm.\n{b.closing}\n\nFour." for b in BLOCKS},
    "other case": "<THINK>Hm.</Think>Four.",
    "spaces": "<think> Hm. </think> Four.",
    "two blocks": "<think></think>\n<think>Hm.</think>\n\nFour.",
    "the label of Gemma": "<|channel>thought\nHm.<channel|>Four.",
    "Cohere": "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|>",
    "Hunyuan": "<think>\nHm.\n</think>\n<answer>\nFour.\n</answer>",
    "response": "<thinking>Hm.</thinking>\n<response>Four.</response>",
    "a cut wrapper": "<think>Hm.</think><answer>Four.",
    "Sky-T1": "<|begin_of_thought|>\nHm.\n<|end_of_thought|>\n\n<|begin_of_solution|>\nFour.\n<|end_of_solution|>",
    "gpt-oss without its tokens": "analysisHm.assistantfinalFour.",
    "MedGemma": "<unused94>thought\nHm.<unused95>Four.",
    "Granite": "Here is my thought process: Hm. Here is my response: Four.",
    "Granite, quantised": "Here's my thought process:\nHm.\n\nHere's my response:\nFour.",
}


@pytest.mark.parametrize("text", FORMATS.values(), ids=FORMATS)
def test_t06_d11_every_format_is_read_apart(text: str) -> None:
    assert split_reasoning(text) == ("Hm.", "Four.")


def test_t06_the_channels_of_harmony_are_read_apart() -> None:
    assert split_reasoning(HARMONY) == ('Hm.\n\n{"a": 1}', "Four.")
    assert split_reasoning(HARMONY.partition("<|start|>assistant<|channel|>final")[0])[1] is None
    assert split_reasoning("<|channel|>final<|message|>Four.") == (None, "Four.")
    mention = "<|channel|>final<|message|>It writes <|channel|> there."
    assert split_reasoning(mention) == (None, "It writes <|channel|> there.")


@pytest.mark.parametrize(
    "text",
    [
        "Write <think> and </think> so.",
        "It ends with </think>.",
        "It ends with `</think>`\nand then the answer.",
        'The pattern is `a</think>b`, or "a</think>b".',
        "```\n</think>\n```\nis how it is written.",
        "Sure.\n<think>\nHm.\n</think>\n\nFour.",
        "<answer>4</answer>",
        "Here is my thought process: two and two are four.",
        "Use <|channel|>final<|message|> for it.",
        " \n",
    ],
)
def test_t06_an_answer_that_mentions_a_mark_keeps_its_words(text: str) -> None:
    assert split_reasoning(text) == (None, text)


def test_t06_a_mark_that_the_reasoning_mentions_does_not_end_it() -> None:
    thought = 'I end with </think> then.\n```\n</think>\n```\nOr `</think>`, or "a</think>".'
    assert split_reasoning(f"<think>\n{thought}\n</think>\n\nFour.") == (thought, "Four.")
    left_open = "<think>\n```python\nx = 4\n</think>\n\nFour:\n```python\n4\n```"
    assert split_reasoning(left_open)[1] == "Four:\n```python\n4\n```"


def test_t06_a_reasoning_that_was_cut_has_no_answer() -> None:
    assert split_reasoning("<think>\nHm, it was") == ("Hm, it was", None)
    assert split_reasoning("<think>a</think>\n<think>b") == ("a\n\nb", None)
    assert split_reasoning("<think>\n\n</think>\n\n") == (None, None)
    assert split_reasoning("") == (None, None)


@pytest.mark.parametrize(
    "prompt", ["<|assistant|><think>\n", "[/INST][THINK]", "<|channel|>analysis<|message|>", "<|channel>thought\n"]
)
def test_t06_a_mark_that_the_prompt_opened_counts(prompt: str) -> None:
    assert split_reasoning("Hm, it was", prompt) == ("Hm, it was", None)
    assert split_reasoning("Four.", f"{prompt}</think>\n\n") == (None, "Four.")


def test_t06_an_empty_block_in_the_prompt_opens_nothing() -> None:
    assert split_reasoning("Four.", "<think>\n\n</think>\n\n") == (None, "Four.")


WORDS = st.lists(
    st.sampled_from(
        [*(mark for block in BLOCKS for mark in block), "`", '"', "```", "\n", " ", "a", "<answer>",
         "<|channel|>", "<|message|>", "final", "<|end|>", "Here is my response:", "\u017f", "\x85"]
    )
).map("".join)  # fmt: skip


@given(st.text() | WORDS, st.text() | WORDS)
def test_t06_reading_never_fails_and_invents_nothing(text: str, prompt: str) -> None:
    reasoning, answer = split_reasoning(text, prompt)
    assert reasoning != ""
    assert answer != ""
    assert answer is None or answer in text or "<|channel|>" in text


@pytest.mark.parametrize(
    "unit",
    ["<think>", "</think>", "<think> </think> <think>", "a</think>", "`", '"', "```\n", " ", "\n ",
     "<|channel|>", "<|channel|>a<|message|>b<|channel|>", "Here is my thought process:",
     "'</think>'"],
)  # fmt: skip
def test_t06_a_hostile_megabyte_is_read_in_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        start = time.process_time()
        for head in ("", "<think>", "<think>a</think>"):
            split_reasoning(head + unit * (size // len(unit)))
        return time.process_time() - start

    seconds(1_000)  # the patterns are compiled once
    assert seconds(1_000_000) < 20, "quadratic time would take many minutes"


@given(st.text(min_size=1), st.text(min_size=1))
def test_what_packaging_writes_is_read_back(reasoning: str, answer: str) -> None:
    reasoning, answer = reasoning.strip() or "a", answer.strip() or "b"
    assert split_reasoning(join_reasoning(reasoning, answer)) == (reasoning, answer)


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    words = ["Hm.", "Four.", "analysis", "final", "[unk]"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[unk]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in special])
    return PreTrainedTokenizerFast(tokenizer_object=made)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("special", "text"),
    [
        (("[THINK]", "[/THINK]", "</s>"), "[THINK] Hm. [/THINK] Four. </s>"),
        (("<|inner_prefix|>", "<|inner_suffix|>"), "<|inner_prefix|> Hm. <|inner_suffix|> Four."),
        (("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>"),
         "<|channel|> analysis <|message|> Hm. <|end|> <|channel|> final <|message|> Four."),
    ],
)  # fmt: skip
def test_t06_decoding_keeps_the_special_tokens_that_tell_reasoning_from_answer(
    special: tuple[str, ...], text: str
) -> None:
    tok = tokenizer(*special)
    decoded, _, _ = decode_answer(tok, tok(text)["input_ids"], [])
    assert "</s>" not in decoded
    assert split_reasoning(decoded) == ("Hm.", "Four.")


def test_t06_other_special_tokens_are_dropped() -> None:
    tok = tokenizer("<|end|>", "<s>")
    assert decode_answer(tok, tok("<s> Four. <|end|>")["input_ids"], [])[0].strip() == "Four."
    assert reasoning_marks(["<|end|>", "<s>"]) == set()
