"""The teacher cache: the table of top-k log-probabilities that `teacher_logits` writes.

The distribution is the teacher's at `distillation.temperature`: the tail at another temperature
cannot be computed from k tokens.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError
from nexa_distill.settings.student import StudentConfig
from nexa_distill.storage.tables import read_table
from nexa_distill.text.hashing import compact_json, sha256_text
from nexa_train.data.chat_tokenization import Sample

if TYPE_CHECKING:
    from nexa_train.data.collate import Collate

TABLE = TABLES["teacher_logits"]


def tokens_hash(sample: Sample) -> str:
    return sha256_text(compact_json([sample.input_ids, sample.labels]))


def refuse_other_vocabulary(teacher: Any, student: Any) -> None:
    if teacher.get_vocab() != student.get_vocab():
        raise InputError(
            f"distillation.teacher: the vocabulary of {teacher.name_or_path} ({len(teacher)} "
            f"tokens) is not that of the student {student.name_or_path} ({len(student)} tokens), "
            "so its probabilities are for other tokens; take a teacher of the student's family, or "
            "distillation.loss: none"
        )


def logits_rows(
    config: StudentConfig, model: Any, samples: Sequence[Sample], batch_of: "Collate", vocabulary: int
) -> Iterator[list[dict[str, Any]]]:
    """Rows of contracts.TEACHER_LOGITS, one list per batch."""
    import torch

    from nexa_train.training.assistant_loss import AnswerLogits
    from nexa_train.training.divergences import top_k

    settings, size = config.distillation, config.train.batch_size
    logits_of = AnswerLogits(model)
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        with torch.inference_mode():
            logits = logits_of(batch_of(batch, model.device))[:, :vocabulary]
            top = top_k(logits, settings.top_k, settings.temperature)
        # The tokens of a batch are concatenated; they are split by sample again.
        lengths = [sample.trained_tokens for sample in batch]
        parts = (torch.split(part.cpu(), lengths) for part in top)
        yield [
            {
                "sample_id": sample.sample_id,
                "tokens_sha256": tokens_hash(sample),
                "tokens": len(tail),
                "top_ids": ids.flatten().numpy(),
                "top_log_probs": probs.flatten().half().numpy(),
                "tail_log_prob": tail.flatten().half().numpy(),
            }
            for sample, ids, probs, tail in zip(batch, *parts, strict=True)
        ]


class CachedTeacher:
    """The table as tensors for batches. All of it is in memory: see Size in `teacher_logits`."""

    def __init__(self, path: Path, samples: Sequence[Sample]) -> None:
        """Raises InputError unless the table has each sample with the same tokens."""
        self.path = path
        table = read_table(path, TABLE)
        self._columns = {name: table[name].combine_chunks() for name in ("top_ids", "top_log_probs", "tail_log_prob")}
        names, hashes = table["sample_id"].to_pylist(), table["tokens_sha256"].to_pylist()
        self._rows = {name: row for row, name in enumerate(names)}
        # k is not in the table; it is the same in all rows.
        self.k = len(table["top_ids"][0]) // table["tokens"][0].as_py() if names else 1
        for sample in samples:
            row = self._rows.get(sample.sample_id)
            if row is None or hashes[row] != tokens_hash(sample):
                problem = "is missing" if row is None else "was written for other tokens"
                raise InputError(
                    f"{path}: sample {sample.sample_id} {problem}; remove the file, then run `{TABLE.command}`"
                )

    def batch_tensors(self, samples: Sequence[Sample], device: Any) -> dict[str, Any]:
        """`top_ids`, `top_log_probs`: (trained tokens, k); `tail_log_prob`: (trained tokens, 1)."""
        import numpy as np
        import torch

        tensors = {}
        for name, column in self._columns.items():
            width = 1 if name == "tail_log_prob" else self.k
            parts = []
            for sample in samples:  # a sample without labels takes no values
                values = column[self._rows[sample.sample_id]].values
                parts.append(values[: sample.trained_tokens * width].to_numpy(zero_copy_only=False))
            joined = torch.from_numpy(np.concatenate(parts)).to(device)
            tensors[name] = joined.view(-1, width)
        return tensors
