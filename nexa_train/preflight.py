"""Check and show what training would read, token by token; runs before each training.

Reads:  the student's YAML, `storage.sft_parquet` (sealed), the tokenizer and configuration of the
        student's base model
Writes: `<storage.reports>/training/preflight.{json,md,html}`, also when a check fails
Keeps:  every row of train and val: trained on whole, or refused and counted with its reason
Raises: CheckFailed (65) with check, row, actual and expected value; 66 no sealed dataset

`train_sft` runs it in its own process and trains on exactly the rows that passed. `--show N` prints
the first N rows: tokens in the loss are green, or between brackets without colour.

Run: python -m nexa_train.preflight [--config configs/baseline_distill.yaml] [--show 3]
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nexa_distill.console import cli
from nexa_distill.settings.pipeline import Storage
from nexa_distill.settings.student import StudentConfig, load_both
from nexa_distill.storage.atomic import Json, write_json, write_text
from nexa_distill.storage.manifests import sealed_hash
from nexa_distill.text.hashing import compact_json, sha256_text
from nexa_train import token_view
from nexa_train.data.chat_format import ASSISTANT, SYSTEM, USER
from nexa_train.data.chat_tokenization import Sample, Skip
from nexa_train.data.dataset import Dataset, build_dataset, check_dataset_rows
from nexa_train.data.row_checks import CheckFailed, RowChecker
from nexa_train.models.bundled import resolve_model
from nexa_train.models.loading import (
    context_length,
    embedding_count,
    load_student_tokenizer,
    load_tokenizer,
    refuse_quantised,
)
from nexa_train.reports import preflight_html, preflight_text
from nexa_train.training import folder_notes

SHOWN_ROWS = 6  # rows in the report, token by token


class Preflight:
    """One pass over the rows of a training. `main`: whether this process writes the report."""

    def __init__(
        self,
        config: StudentConfig,
        storage: Storage,
        dataset: Path,
        base: str,
        *,
        shown: int = SHOWN_ROWS,
        main: bool = True,
    ) -> None:
        refuse_quantised(base)
        self.config, self.dataset, self.base, self.main = config, dataset, base, main
        self.path = storage.path_of("reports") / "training" / "preflight.json"
        self.dataset_sha256 = sealed_hash(dataset, storage)
        self.tokenizer, self.context = load_student_tokenizer(base, config), context_length(base)
        limit = config.longest_row(self.context)
        self.examination = RowChecker(self.tokenizer, limit, embedding_count(base))
        self.shown, self.views = shown, list[Json]()

    def load_data(self) -> Dataset:
        return build_dataset(self.check_rows(), self.examination)

    def check_rows(self) -> Iterator[tuple[str, Sample | Skip]]:
        """Each row as it is trained on. The report follows the last row or a failed check."""
        try:
            self._refuse_beyond_context()
            self._refuse_change_on_saving()
            share = self.config.train.max_refused_share
            for split, encoded in check_dataset_rows(self.dataset, self.examination, share, quiet=not self.main):
                if isinstance(encoded, Sample) and len(self.views) < self.shown:
                    self.views.append(self._view_sample(split, encoded))
                yield split, encoded
        except CheckFailed:
            self._write_report()
            raise
        self._write_report()

    def build_report(self) -> Json:
        """The report as JSON values; the same rows and settings give the same report."""
        checker, train = self.examination, self.config.train
        # Without a setting the rows decide: the longest, as a whole number of tiles.
        max_length = train.max_length
        if max_length is None and not checker.failed:
            max_length = min(checker.tiled_max_length(), self.context or checker.tiled_max_length())
        return {
            "run_name": self.config.run_name,
            "student": self.config.student,
            "dataset": str(self.dataset),
            "dataset_sha256": self.dataset_sha256,
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "max_length": max_length,
            "max_length_from": "train.max_length" if train.max_length else "the rows",
            "context": self.context,
            "max_refused_share": train.max_refused_share,
            **checker.to_record(),
            "shown": self.views[:SHOWN_ROWS],
        }

    def _refuse_beyond_context(self) -> None:
        limit = self.config.train.max_length
        if limit and self.context and limit > self.context:
            problem = f"train.max_length is {limit}, {self.base} reads at most {self.context} tokens"
            raise self.examination.record_failure("not_cut", problem, None)

    def _refuse_change_on_saving(self) -> None:
        # Otherwise the export would be refused, after the whole training.
        text = self.examination.chat_format.render([SYSTEM, USER, ASSISTANT], prompt=False)
        with TemporaryDirectory() as folder:
            folder_notes.save_tokenizer(self.tokenizer, Path(folder))
            again = load_tokenizer(folder)
        if again(text)["input_ids"] != self.tokenizer(text)["input_ids"]:
            problem = (
                f"the tokenizer of {self.base} reads a text differently once it is saved by this "
                "transformers, so the student could not be exported; take another student, or "
                "another version of its tokenizer files"
            )
            raise self.examination.record_failure("template_equal", problem, None)

    def _view_sample(self, split: str, sample: Sample) -> Json:
        tokens = token_view.decode_tokens(self.tokenizer, sample)
        return {"sample_id": sample.sample_id, "split": split, "tokens": tokens}

    def _write_report(self) -> None:
        if self.main:
            report = self.build_report()
            write_json(self.path, report)
            write_text(self.path.with_suffix(".md"), preflight_text.render_markdown(report))
            write_text(self.path.with_suffix(".html"), preflight_html.render_page(report))


def tokenizer_fingerprint(tokenizer: Any) -> Json:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        # Of several named templates the default one is used.
        template = template.get("default")
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    return {
        "name": tokenizer.name_or_path,
        "sha256": sha256_text(compact_json([vocabulary, tokenizer.special_tokens_map])),
        "template_sha256": template and sha256_text(template),
    }


def main() -> None:
    parser = cli.build_student_parser(__doc__)
    parser.add_argument("--dataset", type=Path, metavar="FILE", help="default: storage.sft_parquet")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N rows")
    args = parser.parse_args()
    pipeline, config = load_both(args)
    dataset = args.dataset or pipeline.storage.path_of("sft_parquet")
    base = resolve_model(config.student, pipeline.storage)
    flight = Preflight(config, pipeline.storage, dataset, base, shown=max(SHOWN_ROWS, args.show))
    # The checks run while the rows are read.
    for _ in flight.check_rows():
        pass
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for view in flight.views[: args.show]:
        print(preflight_text.format_sample(view, colour=colour), end="\n\n")
    print(preflight_text.summary_lines(flight.build_report()))
    print(f"preflight: {flight.path.with_suffix('.html')}")


if __name__ == "__main__":
    cli.run(main)
