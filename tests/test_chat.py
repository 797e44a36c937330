from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from nexa_distill.errors import InputError
from nexa_train.chat import IGNORE, Sample, Skip, check_tokenizer, encode, prompt_ids
from tests.tiny_model import CHATML, tokenizer

ASK = {"role": "user", "content": "How many?"}
SAY = {"role": "assistant", "content": "Seven."}


def trained_text(tok: Any, sample: Sample) -> str:
    return str(tok.decode([label for label in sample.labels if label != IGNORE]))


def encoded(messages: list[dict[str, str]], tok: Any = None) -> Sample:
    made = encode(tok or tokenizer(), "s", messages, 512)
    assert isinstance(made, Sample)
    return made


def test_the_loss_is_on_the_answer_and_its_end_of_turn_and_nothing_else() -> None:
    tok = tokenizer()
    sample = encoded([ASK, SAY], tok)
    assert trained_text(tok, sample) == "Seven.<|im_end|>"
    assert len(sample.labels) == len(sample.input_ids)
    assert sample.trained_tokens == len("Seven.") + 1


def test_training_reads_exactly_what_inference_reads() -> None:
    tok = tokenizer()
    sample = encoded([ASK, SAY], tok)
    prompt = prompt_ids(tok, [ASK])
    assert sample.input_ids[: len(prompt)] == prompt
    assert sample.labels[: len(prompt)] == [IGNORE] * len(prompt)
    whole = tok.apply_chat_template([ASK], add_generation_prompt=True, tokenize=True)
    assert prompt == list(whole["input_ids"])


def test_every_assistant_turn_is_trained() -> None:
    tok = tokenizer()
    sample = encoded([ASK, SAY, ASK, {"role": "assistant", "content": "Eight."}], tok)
    assert trained_text(tok, sample) == "Seven.<|im_end|>Eight.<|im_end|>"


def test_a_tokenizer_that_adds_bos_does_not_add_a_second_one() -> None:
    tok = tokenizer("{{ bos_token }}{{ messages[0]['content'] }}" + CHATML)
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tok.bos_token_id)]
    )
    assert tok("x")["input_ids"].count(tok.bos_token_id) == 1, "it adds none"
    sample = encoded([ASK, SAY], tok)
    assert sample.input_ids[0] == tok.bos_token_id
    assert sample.input_ids[1] != tok.bos_token_id
    assert trained_text(tok, sample) == "Seven.<|im_end|>"


@pytest.mark.parametrize(
    ("messages", "limit", "reason"),
    [
        ([ASK], 512, "no_assistant"),
        ([ASK, SAY, ASK], 512, "no_assistant"),
        ([ASK, {"role": "assistant", "content": " "}], 512, "empty_answer"),
        ([ASK, SAY], 20, "over_max_length"),
    ],
)
def test_what_cannot_be_trained_is_skipped_with_its_reason(
    messages: list[dict[str, str]], limit: int, reason: str
) -> None:
    assert encode(tokenizer(), "s", messages, limit) == Skip("s", reason)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    rewriting = "{{ messages | length }}" + CHATML
    with pytest.raises(InputError, match="only appends"):
        encode(tokenizer(rewriting), "s", [ASK, SAY], 512)


def test_a_template_without_end_of_turn_is_refused() -> None:
    with pytest.raises(InputError, match="stops generation"):
        encode(tokenizer(CHATML.replace("<|im_end|>", "")), "s", [ASK, SAY], 512)


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(InputError, match="chat template"):
        check_tokenizer(tokenizer(None))
