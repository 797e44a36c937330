"""Samples as training reads them: each token, and whether it is in the loss.

Reads:  JSON lines on stdin, {sample_id, messages}; the configured student's tokenizer
Writes: one JSON line per sample on stdout: {sample_id, tokens: [[text, trained, special], ...]} or
        {sample_id, skipped: reason, why}, by the `chat_tokenization.encode_conversation` of the training
Raises: InputError (65) as the training would

`trained` marks the predicted token. A character of several tokens is shown with the last of them.

Run: python -m nexa_train.token_view [--config configs/baseline_distill.yaml] < samples.jsonl
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from nexa_distill.console import cli
from nexa_distill.settings.student import load_both
from nexa_train.data.chat_format import ChatFormat
from nexa_train.data.chat_tokenization import IGNORE, ROW_REASONS, Sample, Skip, encode_conversation, student_format
from nexa_train.models.bundled import resolve_model
from nexa_train.models.loading import context_length, load_student_tokenizer

Token = tuple[str, bool, bool]  # text, trained, special


def view_sample(form: ChatFormat, sample_id: str, messages: Any, longest: int | None) -> dict[str, Any]:
    sample = encode_conversation(form, sample_id, messages, longest)
    if isinstance(sample, Skip):
        why = ROW_REASONS[sample.reason]
        return {"sample_id": sample_id, "skipped": sample.reason, "why": why}
    return {"sample_id": sample_id, "tokens": decode_tokens(form.tokenizer, sample)}


def decode_tokens(tokenizer: Any, sample: Sample) -> list[Token]:
    """The text of each token; joined, they equal the decoded text of all ids."""
    special, shown = set(tokenizer.all_special_ids), list[Token]()
    before, waiting = list[int](), list[int]()
    for token, label in zip(sample.input_ids, sample.labels, strict=True):
        waiting.append(token)
        # Decoded behind the tokens before it: alone, SentencePiece drops the leading space.
        length = len(_decode_ids(tokenizer, before))
        text = _decode_ids(tokenizer, before + waiting)[length:]
        # A character has at most 4 bytes: after as many tokens it is really U+FFFD.
        if text.endswith("\ufffd") and len(waiting) < 4:
            text = ""  # the first bytes of a character
        else:
            before, waiting = waiting, []
        shown.append((text, label != IGNORE, token in special))
    return shown


def _decode_ids(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def main() -> None:
    config, student = load_both(cli.build_student_parser(__doc__).parse_args())
    model = resolve_model(student.student, config.storage)
    form = student_format(load_student_tokenizer(model, student))
    longest = student.longest_row(context_length(model))
    for line in sys.stdin:
        sample = json.loads(line)
        print(json.dumps(view_sample(form, sample["sample_id"], sample["messages"], longest)))


if __name__ == "__main__":
    cli.run(main)
