"""The dataset card: counts, lengths and origin of the training samples.

Reads   sft_parquet, the manifests of the stages before it, the student's configuration
Writes  README.md beside the samples
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nexa_distill.contracts import TABLES
from nexa_distill.reporting.templates import render_template
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.atomic import read_json_object, write_text
from nexa_distill.storage.manifests import load_manifest
from nexa_distill.storage.tables import read_batches
from nexa_distill.text.reasoning import split_reasoning

MARKS_PER_MESSAGE = 5  # `<|im_start|>`, role, newline, `<|im_end|>`, newline
BYTES_PER_TOKEN = 4
FUNNEL = ("raw_dataset", "collected_dataset", "rule_filtered", "filtered_dataset")
COUNTED = ("split", "template_name", "domain", "model_id")
Lengths = Callable[[list[str]], list[int]]


def token_counter(config: DistillConfig, student: StudentConfig) -> tuple[Lengths, str]:
    """A function from texts to token counts, and a description of the method."""
    file = student.find_tokenizer(config.storage)
    if file is None:
        estimate = f"estimated at {BYTES_PER_TOKEN} bytes of UTF-8 per token: no tokenizer.json here"
        return lambda texts: [-(-len(t.encode()) // BYTES_PER_TOKEN) for t in texts], estimate
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()

    def count_tokens(texts: list[str]) -> list[int]:
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [len(encoding.ids) for encoding in encoded]

    return count_tokens, f"counted with {file}"


def write_card(path: Path, samples: Path, config: DistillConfig) -> None:
    """Write the card of `samples` (contracts.SFT)."""
    student = load_yaml(Path(config.student), StudentConfig)
    count, how = token_counter(config, student)
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    lengths: list[int] = []
    reasoned = 0
    for rows in read_batches(samples, TABLES["sft_parquet"], batch_rows=1024):
        for name in COUNTED:
            counts[name].update(value or "unknown" for value in rows[name].to_pylist())
        for messages in rows["messages"].to_pylist():
            texts = [message["content"] for message in messages]
            reasoned += split_reasoning(texts[-1])[0] is not None
            lengths.append(sum(count(texts)) + MARKS_PER_MESSAGE * len(texts))
    longest = student.train.max_length
    gate = read_json_object(config.storage.path_of("reports") / "sample_gate" / "gate_report.json") or {}
    is_measured = gate.get("exec_pass_rate") is not None or (gate.get("judge_score") or {}).get("mean") is not None
    text = render_template(
        "dataset_card.md.j2",
        file=samples.name,
        counts=counts,
        reasoning=config.packaging.reasoning,
        reasoned=reasoned,
        how=how,
        percentiles=np.percentile(lengths, [50, 90, 95, 99, 100]).round().tolist(),
        over=sum(length > longest for length in lengths) if longest else 0,
        max_length=longest,
        run_name=student.run_name,
        form_only=bool(gate) and not is_measured,
        funnel={TABLES[key].stage: load_manifest(config.storage.path_of(key), config.storage) for key in FUNNEL},
    )
    write_text(path, text)
