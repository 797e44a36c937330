"""The teacher's probabilities as JSONL: a line per sample, `{token id: probability}` per position.

Positions are the trained tokens of a sample, its end of turn included: position i is the
distribution that token i was drawn from. Lines are in the order of the labelled items. A file for
other samples is refused, because it would train on noise without an error.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nexa_distill.contracts import TEACHER_LOGITS
from nexa_distill.errors import InputError
from nexa_distill.storage.atomic import replace_atomically
from nexa_distill.storage.tables import table_writer
from nexa_train.data.chat_tokenization import IGNORE, Sample
from nexa_train.training.divergences import SMALLEST
from nexa_train.training.teacher_cache import tokens_hash

MIN_TEACHER_SHARE = 0.5  # least share of trained tokens that are among the teacher's
# Probabilities are written with six digits.
SUM_TOLERANCE = 1e-3
BATCH_ROWS = 1024
Position = tuple[np.ndarray, np.ndarray]  # ids and probabilities, the most likely first


def write(table: Path, samples: Sequence[str], path: Path) -> None:
    """Write the rows of `table` (contracts.TEACHER_LOGITS) in the order of the sample ids."""
    rows = {row["sample_id"]: row for row in pq.read_table(table).to_pylist()}
    with replace_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for name in samples:
            file.write(json.dumps(_row_positions(rows.get(name))) + "\n")


def _row_positions(row: dict[str, Any] | None) -> list[dict[str, float]]:
    if row is None:  # a sample that is not trained on
        return []
    width = len(row["top_ids"]) // row["tokens"]
    ids = np.array(row["top_ids"]).reshape(-1, width).tolist()
    probabilities = np.exp(np.array(row["top_log_probs"], dtype=np.float32)).reshape(-1, width)
    return [
        {str(token): float(f"{p:.6g}") for token, p in zip(*pair, strict=True)}
        for pair in zip(ids, probabilities, strict=True)
    ]


def read(path: Path, names: Sequence[str], samples: Sequence[Sample], vocabulary: int, table: Path) -> None:
    """Write `table` from the file. `names`: the sample of each line. Raises InputError per line."""
    by_name, parsed = {sample.sample_id: sample for sample in samples}, dict[str, list[Position]]()
    total, fits = 0, Counter[str]()
    for number, line in _read_lines(path, len(names)):
        sample = by_name.get(names[number])
        if sample is None:  # not trained on
            continue
        where = f"{path}: line {number + 1}"
        positions = _parse_line(where, line, sample, vocabulary)
        trained = [label for label in sample.labels[1:] if label != IGNORE]
        fits.update(_alignment_scores(trained, positions))
        total += len(trained)
        parsed[sample.sample_id] = positions
    _refuse_misaligned(path, fits, total)
    width = _common_width(path, {len(ids) for rows in parsed.values() for ids, _ in rows} or {1})
    with table_writer(table, TEACHER_LOGITS) as out:
        for start in range(0, len(samples), BATCH_ROWS):
            some = samples[start : start + BATCH_ROWS]
            rows = [_table_row(sample, parsed[sample.sample_id], width) for sample in some]
            out.write(pa.Table.from_pylist(rows, TEACHER_LOGITS))


def _common_width(path: Path, sizes: set[int]) -> int:
    """The number of tokens that every position has."""
    # Servers give the k likeliest, and the drawn token if it is not among them.
    if max(sizes) > min(sizes) + 1:
        raise InputError(
            f"{path}: positions hold {min(sizes)} to {max(sizes)} tokens, expected k, or k + 1 "
            "where the token that was drawn is not among the k likeliest"
        )
    return min(sizes)


def _alignment_scores(trained: Sequence[int], positions: Sequence[Position]) -> dict[str, float]:
    """How well the positions fit the tokens.

    `among`: tokens that are among those of their position. `here`, `earlier`, `later`: the sum of
    the tokens' probabilities, as aligned now and shifted by one position.
    """
    tops = [dict(zip(ids.tolist(), p.tolist(), strict=True)) for ids, p in positions]
    shifts = {"here": (trained, tops), "earlier": (trained[1:], tops), "later": (trained, tops[1:])}
    fits = {name: sum(top.get(token, 0.0) for token, top in zip(*pair, strict=False)) for name, pair in shifts.items()}
    return fits | {"among": sum(token in top for token, top in zip(trained, tops, strict=True))}


def _refuse_misaligned(path: Path, fits: Mapping[str, float], total: int) -> None:
    again = "write the file again with a job of type kd_white_box"
    # The file is for other samples or for another tokenizer.
    if total and fits["among"] < MIN_TEACHER_SHARE * total:
        raise InputError(
            f"{path}: only {fits['among']:.0f} of {total} trained tokens are among the teacher's; "
            f"the lines are of other samples or of another tokenizer; {again}"
        )
    # A file that is shifted by one position fits better when it is shifted back.
    for side in ("earlier", "later"):
        if fits[side] > fits["here"]:
            raise InputError(
                f"{path}: the tokens fit better to the positions one {side} (mean probability "
                f"{fits[side] / total:.3f} instead of {fits['here'] / total:.3f}); {again}"
            )


def _read_lines(path: Path, expected: int) -> Iterator[tuple[int, Any]]:
    number = -1
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file):
            if number >= expected:
                break
            try:
                yield number, json.loads(text)
            except ValueError as error:
                raise InputError(f"{path}: line {number + 1} is not JSON ({error})") from None
    if number + 1 != expected:
        count = f"more than {expected}" if number >= expected else str(number + 1)
        raise InputError(f"{path}: {count} lines, expected {expected}: one for each item with an output")


def _parse_line(where: str, line: Any, sample: Sample, vocabulary: int) -> list[Position]:
    if not isinstance(line, list) or len(line) != sample.trained_tokens:
        actual = f"{len(line)} positions" if isinstance(line, list) else type(line).__name__
        raise InputError(
            f"{where}: {actual}, expected {sample.trained_tokens}: one for each trained token of "
            f"sample {sample.sample_id}, its end of turn included"
        )
    return [_parse_position(f"{where}, position {i}", value, vocabulary) for i, value in enumerate(line)]


def _parse_position(where: str, value: Any, vocabulary: int) -> Position:
    try:
        ids = np.array([int(token) for token in value], dtype=np.int64)
        probabilities = np.array(list(value.values()), dtype=np.float64)
    except (TypeError, ValueError, AttributeError):
        raise InputError(f"{where}: expected {{token id: probability}}") from None
    if not len(ids):
        raise InputError(f"{where}: no token, expected at least one")
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise InputError(
            f"{where}: token id {ids.max() if ids.max() >= vocabulary else ids.min()}, the "
            f"student's vocabulary has {vocabulary}"
        )
    total = float(probabilities.sum())
    if not (np.all(probabilities >= 0) and 0 < total <= 1 + SUM_TOLERANCE):
        raise InputError(f"{where}: probabilities add up to {total:.4g}, expected (0, 1]")
    # The most likely first, so that a longer position can be cut to the common width.
    order = np.argsort(-probabilities, kind="stable")
    return ids[order], probabilities[order]


def _table_row(sample: Sample, positions: Sequence[Position], width: int) -> dict[str, Any]:
    """A row of the teacher cache: `width` tokens per position; the rest is in the tail."""
    ids = np.stack([ids[:width] for ids, _ in positions])
    kept = np.stack([probabilities[:width] for _, probabilities in positions])
    tail = np.clip(1 - kept.sum(axis=1), SMALLEST, 1)
    return {
        "sample_id": sample.sample_id,
        "tokens_sha256": tokens_hash(sample),
        "tokens": len(positions),
        "top_ids": ids.flatten(),
        "top_log_probs": np.log(np.clip(kept, SMALLEST, 1)).flatten().astype(np.float16),
        "tail_log_prob": np.log(tail).astype(np.float16),
    }
