"""Report the evidence against contaminated rows, so that a user can recognize a false hit.

Writes `reports/dedup/contamination.json` and the same as Markdown: per rejected training row its
key and source, the held-out row or eval file that it matches, and the words that both share. The
first `LISTED` rows; all are in `rejected_inputs` (`matched`, `detail`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nexa_distill.deduplication.assignment import CONTAMINATED, DedupDecisions, DedupRows, own_texts
from nexa_distill.deduplication.contamination import EvalTexts
from nexa_distill.deduplication.shared_text import SharedText
from nexa_distill.reporting.stage_reports import write_report
from nexa_distill.settings.pipeline import Dedup
from nexa_distill.text.ngrams import join_words, words_of

LISTED = 1000  # rows in the JSON
SHOWN = 100  # rows in the Markdown


class ContaminationEvidence:
    """Collects the words and locations of contaminated rows while their texts are read."""

    def __init__(
        self, rows: DedupRows, verdicts: DedupDecisions, evaluation: EvalTexts | None, shared: SharedText
    ) -> None:
        self._rows, self._verdicts, self._shared = rows, verdicts, shared
        self._places = evaluation.places if evaluation else {}
        contaminated = np.flatnonzero(verdicts.reason == CONTAMINATED)
        self._count, others = len(contaminated), verdicts.other[contaminated[:LISTED]]
        self._wanted = np.unique(others[others >= 0])
        self._held: dict[int, dict[str, Any]] = {}
        self._found: dict[int, dict[str, Any]] = {}
        self._spans: dict[int, str] = {}

    def add_batch(self, start: int, batch: pa.Table) -> None:
        """Read the texts of rows `start` and following; `shared_words` covers them until the next call."""
        end = start + batch.num_rows
        first, last = np.searchsorted(self._wanted, [start, end])
        names = ["sample_id", "task_id", "source_file", "source_row"]
        for row in self._wanted[first:last].tolist():
            self._held[row] = batch.select(names).slice(row - start, 1).to_pylist()[0]
        reasons = self._verdicts.reason[start:end]
        self._spans.clear()
        for row in (start + np.flatnonzero(reasons == CONTAMINATED)).tolist():
            values = batch.slice(row - start, 1).to_pylist()[0]
            first_word, words = self._verdicts.spans[row]
            span = words_of(own_texts(values, self._shared)[0])[first_word : first_word + words]
            self._spans[row] = join_words(span)
            if len(self._found) < LISTED:
                self._found[row] = {**{name: values[name] for name in names}, "words": words, "span": self._spans[row]}

    def shared_words(self, row: int) -> str:
        """The words that a contaminated row shares with held-out text."""
        return self._spans[row]

    def match_name(self, row: int) -> str | None:
        """The sample_id, or the location in an eval file, that a rejected row matches."""
        other = int(self._verdicts.other[row])
        if other >= 0:
            return str(self._rows.sample_ids[other].tobytes().hex())
        if other == -1:
            return None
        file, number, column = self._places[-2 - other]
        return f"{file}:{number}:{column}"

    def _match_fields(self, row: int) -> dict[str, Any]:
        other = int(self._verdicts.other[row])
        if other >= 0:
            return self._held[other]
        file, number, column = self._places[-2 - other]
        return {"eval_file": file, "row": number, "column": column}

    def write_reports(self, path: Path, chosen: Dedup) -> None:
        """Write both reports. Without decontamination `contaminated` is null."""
        rows = [{**row, "matched": self._match_fields(number)} for number, row in self._found.items()]
        figures = {
            "contamination_words": chosen.contamination_words,
            "contamination_common": chosen.contamination_common,
            "eval_files": list(chosen.eval_files),
            "contaminated": None if chosen.contamination_words is None else self._count,
            "boilerplate_runs": self._verdicts.common,
            "rows": rows,
        }
        write_report(path, figures, "contamination.md.j2", shown=SHOWN)
