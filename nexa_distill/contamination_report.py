"""The evidence against contaminated rows, so that a person can see a false hit.

Writes `reports/dedup/contamination.json` and its Markdown twin: per rejected training row its key
and source, the held-out row or eval file that it matches, and the words that both have.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nexa_distill.config import Dedup
from nexa_distill.contamination import EvalTexts
from nexa_distill.dedup_decisions import CONTAMINATED, Rows, Verdicts, own_texts
from nexa_distill.handoff import write_json, write_text
from nexa_distill.manifests import run_id, utc_now
from nexa_distill.shingles import words_of

SHOWN = 100  # rows in the Markdown twin; the JSON has all


class Evidence:
    """Collects while the rows pass (`see`) what only their texts can tell."""

    def __init__(self, rows: Rows, verdicts: Verdicts, evaluation: EvalTexts | None) -> None:
        self._rows, self._verdicts = rows, verdicts
        self._places = evaluation.places if evaluation else {}
        guilty = verdicts.reason == CONTAMINATED
        self._wanted = np.unique(verdicts.other[guilty & (verdicts.other >= 0)])
        self._held: dict[int, dict[str, Any]] = {}
        self._found: dict[int, dict[str, Any]] = {}

    def see(self, start: int, batch: pa.Table) -> None:
        """Rows `start` and following."""
        end = start + batch.num_rows
        first, last = np.searchsorted(self._wanted, [start, end])
        names = ["sample_id", "task_id", "source_file", "source_row"]
        for row in self._wanted[first:last].tolist():
            self._held[row] = batch.select(names).slice(row - start, 1).to_pylist()[0]
        reasons = self._verdicts.reason[start:end]
        for row in (start + np.flatnonzero(reasons == CONTAMINATED)).tolist():
            values = batch.slice(row - start, 1).to_pylist()[0]
            first_word, words = self._verdicts.spans[row]
            span = words_of(own_texts(values)[0])[first_word : first_word + words]
            self._found[row] = {
                **{name: values[name] for name in names}, "words": words, "span": " ".join(span),
            }  # fmt: skip

    def span(self, row: int) -> str:
        """The words of a contaminated row that are held out too."""
        return str(self._found[row]["span"])

    def matched(self, row: int) -> str | None:
        """What a rejected row matches: a sample_id, or the place in an eval file."""
        other = int(self._verdicts.other[row])
        if other >= 0:
            return str(self._rows.sample_ids[other].tobytes().hex())
        if other == -1:
            return None
        file, number, column = self._places[-2 - other]
        return f"{file}:{number}:{column}"

    def _match(self, row: int) -> dict[str, Any]:
        other = int(self._verdicts.other[row])
        if other >= 0:
            return self._held[other]
        file, number, column = self._places[-2 - other]
        return {"eval_file": file, "row": number, "column": column}

    def write(self, path: Path, chosen: Dedup) -> None:
        """Write both reports. Without decontamination `contaminated` is null."""
        looked = chosen.contamination_words is not None
        found = [{**self._found[row], "matched": self._match(row)} for row in sorted(self._found)]
        report = {
            "run_id": run_id(),
            "contamination_words": chosen.contamination_words,
            "contamination_common": chosen.contamination_common,
            "eval_files": list(chosen.eval_files),
            "contaminated": len(found) if looked else None,
            "boilerplate_runs": self._verdicts.common,
            "rows": found,
            "created_at": utc_now(),
        }
        write_json(path, report)
        write_text(path.with_suffix(".md"), _markdown(report))


def _markdown(report: dict[str, Any]) -> str:
    if report["contaminated"] is None:
        return "# Contamination\n\nNot looked for: dedup.contamination_words is null.\n"
    lines = [
        "# Contamination", "",
        f"Run {report['run_id']}, {report['created_at']}.", "",
        f"{report['contaminated']:,} training rows share {report['contamination_words']} or more "
        "words in a row with held-out rows or eval files and were rejected. "
        f"{report['boilerplate_runs']:,} shared runs occur more than "
        f"{report['contamination_common']} times and did not count.",
    ]  # fmt: skip
    if report["rows"]:
        lines += ["", "| training row | matches | words | both have |", "|---|---|---|---|"]
    for row in report["rows"][:SHOWN]:
        other = row["matched"]
        place = (
            other.get("task_id") or f"{other['eval_file']}, row {other['row']}, {other['column']}"
        )
        span = row["span"].replace("|", "\\|")
        lines.append(f"| {row['task_id']} | {place} | {row['words']} | {span} |")
    if len(report["rows"]) > SHOWN:
        lines += ["", f"The first {SHOWN} of {len(report['rows']):,}; the JSON beside it has all."]
    return "\n".join(lines) + "\n"
