"""SampleGate: from checks and thresholds to the answers that are kept.

Reads   collected_dataset and regen_dataset (contracts.OUTPUTS), those of rules_checks, exec_checks,
        judge_checks and person_checks that exist (contracts.CHECKS), the judges' canaries
Writes  filtered_dataset (the best passing answer of each sample), rejections (every other answer,
        with all its reasons), reports/sample_gate/gate_report.{json,md,html} and
        quality_report.{json,md}
Keeps   of a sample's passing answers the one with the highest mean judge score; unjudged answers
        rank last, ties go to the earliest attempt
Raises  InputMissing (66) for an absent, unsealed or stale input, InputError (65) for a bad one

An answer passes if all its checks pass and every required check exists (`sample_gate:` in
configs/filters.yaml, and the scores of each judge in `judging.judges`). `ok` null never passes;
only judge scores, which have no threshold in the checks, are compared here. The same thresholds are
applied to canaries, for the false-accept rate of the judges.
Texts are streamed; memory grows by about 130 bytes per answer (`gating/check_summary.py`).

    python -m nexa_distill.sample_gate --judge-f-threshold 0.8
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa

from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.contracts import CHECK_TABLES, OUTPUTS, REJECTIONS, RUBRICS, SCORE_REASONS, TABLES, check_reasons
from nexa_distill.errors import InputError
from nexa_distill.gating.check_summary import AnswerChecks, CheckOutcome, CheckSummary
from nexa_distill.gating.gate_report import FilterStats, count_funnel, render_markdown, render_page
from nexa_distill.judging.canaries import canaries_path, false_accepts
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.filters import FilterConfig, GateConfig, load_filter_config
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.settings.yaml_loading import CONFIGS, load_yaml, validate_section
from nexa_distill.storage.answer_index import AnswerIndex
from nexa_distill.storage.atomic import write_json, write_text
from nexa_distill.storage.manifests import StageRun, refuse_stale, valid_regenerations
from nexa_distill.storage.tables import read_batches, table_writer
from nexa_distill.text.hashing import Indexes

SOURCE = TABLES["collected_dataset"]
KEPT_ANOTHER = "better_attempt_kept"


class SampleGate:
    """Keeps or rejects answers by the thresholds of `config`; default: the file that ships.

    `changes` are keys of `sample_gate:`, as `judge_f_threshold=0.8`. Raises InputError for a wrong one.
    """

    def __init__(self, config: GateConfig | None = None, **changes: float | bool | list[str]) -> None:
        config = config or load_filter_config(CONFIGS / str(FilterConfig.shipped)).sample_gate
        self.config = validate_section("SampleGate", config.model_dump() | changes, GateConfig)

    def filter_sample(self, sample: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> list[str]:
        """Reasons against an answer; empty = it passes.

        `sample`: a row with its judge scores (`judge_f`, `judge_r`, each 0..1, or `judge_score` for both),
        or rows of contracts.CHECKS in order, where those that passed may be left out. A row without any
        score is rejected (`check_missing`); missing required checks are not detected here.
        """
        if isinstance(sample, Mapping):
            checks = _score_checks(sample)
            return self._reasons_against(CheckOutcome(_collect_checks(checks), missing=not checks))
        return self._reasons_against(CheckOutcome(_collect_checks(sample), missing=False))

    def _reasons_against(self, case: CheckOutcome) -> list[str]:
        seen = case.seen
        lacks_one = ["check_missing"] * (self.config.require_both and len(seen.judged) == 1)
        reasons = list(dict.fromkeys([*seen.reasons, *self._low_scores(dict(seen.scores)), *lacks_one]))
        # A later gate does not check answers that an earlier one rejected: a missing check is a
        # reason only if there is no other.
        return reasons or ["check_missing"] * case.missing

    def _low_scores(self, scores: Mapping[str, float]) -> list[str]:
        """Reasons against a judged answer; a score outside 0..1 or NaN is below any threshold."""
        limits = self.config.score_thresholds
        low = [SCORE_REASONS[name] for name, value in scores.items() if not limits[name] <= value <= 1]
        return low if self.config.require_both or len(low) == len(scores) else []

    def filter_dataset(self, src: Sequence[Path], checks: Sequence[Path], dst: Path, rejections: Path) -> FilterStats:
        """Write every answer of `src` to either `dst` or `rejections`.

        Raises InputError for a duplicate key or without answers.
        """
        answers = AnswerIndex(src)
        if not len(answers):
            names = ", ".join(map(str, src))
            raise InputError(f"{names}: 0 answers; run `{SOURCE.command}` first")
        evidence = CheckSummary(answers, checks, self.config.required, SCORE_REASONS)
        reasons, of_answer = self._decide_answers(answers, evidence)
        stats = FilterStats(
            families=sorted(evidence.families), measured=evidence.measured_figures(), not_applied=evidence.not_applied
        )
        with ExitStack() as files, Progress("sample gate", len(answers)) as progress:
            kept_out = files.enter_context(table_writer(dst, OUTPUTS))
            rejected_out = files.enter_context(table_writer(rejections, REJECTIONS))
            for rows in _read_answers(src):
                # The answers are read in the order of the index.
                these = of_answer[stats.total : stats.total + rows.num_rows]
                against = [reasons[number] for number in these.tolist()]
                keep = np.array([not r for r in against])
                kept_out.write(rows.filter(pa.array(keep)))
                rejected_out.write(_rejection_table(rows, keep, against))
                stats.add(rows, against)
                progress.add(rows.num_rows, f"{stats.kept} kept")
            if stats.total != len(answers) or kept_out.rows + rejected_out.rows != stats.total:
                raise RuntimeError(f"rows lost: {len(answers)} answers, {stats}")
        check_reasons(list(stats.reasons))
        return stats

    def _decide_answers(self, answers: AnswerIndex, evidence: CheckSummary) -> tuple[list[list[str]], Indexes]:
        """The distinct lists of reasons, and per answer the index of its list."""
        cases, of_answer = evidence.distinct_outcomes()
        reasons = [self._reasons_against(case) for case in cases]
        passes = np.flatnonzero(np.array([not against for against in reasons])[of_answer])
        # Of a sample's passing answers only the best is kept.
        best = answers.best_attempts(passes, np.array([_rank_answer(case.seen) for case in cases])[of_answer])
        of_answer[np.setdiff1d(passes, best, assume_unique=True)] = len(reasons)
        return [*reasons, [KEPT_ANOTHER]], of_answer

    def generate_report(self, stats: FilterStats, path: Path | None = None) -> str:
        """The funnel as Markdown; with `path`, also written there as JSON, .md and .html."""
        report = count_funnel(stats, self.config)
        text = render_markdown(report)
        if path:
            write_json(path.with_suffix(".json"), report)
            write_text(path.with_suffix(".md"), text)
            write_text(path.with_suffix(".html"), render_page(report))
        return text


def _collect_checks(checks: Iterable[Mapping[str, Any]]) -> AnswerChecks:
    seen = AnswerChecks()
    for row in checks:
        seen = seen.with_check(row, SCORE_REASONS)
    return seen


def _score_checks(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of a sample as rows of contracts.CHECKS. Raises InputError for one that is not 0..1."""
    checks = []
    for rubric in RUBRICS:
        column = rubric.threshold.removesuffix("_threshold")
        name = column if sample.get(column) is not None else "judge_score"
        score = sample.get(name)
        if score is None or score != score:  # pandas has NaN for an absent number
            continue
        if not 0 <= score <= 1:
            raise InputError(f"{name} is {score}, expected a score of 0..1; divide a score of 0..100 by 100")
        checks.append({"check": rubric.check_name, "ok": None, "value": float(score), "reason": None})
    return checks


def _rank_answer(seen: AnswerChecks) -> float:
    """The mean of the judges' scores, 0..1; -1 for an unjudged answer."""
    scores = [score for _, score in seen.scores if 0 <= score <= 1]
    return fmean(scores) if scores else -1.0


def _read_answers(src: Sequence[Path]) -> Iterable[pa.Table]:
    return (rows for path in src for rows in read_batches(path, SOURCE, batch_rows=8192))


def _rejection_table(rows: pa.Table, keep: np.ndarray[Any, Any], against: list[list[str]]) -> pa.Table:
    reasons = [r for r in against if r]
    table = rows.filter(pa.array(~keep))
    table = table.append_column(REJECTIONS.field("rejection_reason"), pa.array([r[0] for r in reasons], pa.string()))
    column = pa.array(reasons, pa.list_(pa.string()))
    return table.append_column(REJECTIONS.field("rejection_reasons"), column)


def report_path(config: DistillConfig) -> Path:
    return config.storage.path_of("reports") / "sample_gate" / "gate_report.json"


def settings(config: DistillConfig) -> dict[str, Any]:
    """The values that determine which answers are kept, besides the checks."""
    return _gate_config(config).model_dump()


def _gate_config(config: DistillConfig, override: GateConfig | None = None) -> GateConfig:
    gate = override or load_filter_config(config.filters).sample_gate
    # The checks of every configured judge are required too.
    judges = [f"{check}.{judge.model}" for judge in config.judging.judges for check in SCORE_REASONS]
    return gate.model_copy(update={"required": [*gate.required, *judges]})


def run(
    config: DistillConfig,
    *,
    gate: GateConfig | None = None,
    src: list[Path] | None = None,
    checks: list[Path] | None = None,
    dst: Path | None = None,
    rejections: Path | None = None,
    report: Path | None = None,
) -> FilterStats | None:
    """Decide on `src` by `checks` (default: the storage's); None = up to date.

    `gate` defaults to `sample_gate:` of the file that the pipeline's `filters:` names.
    """
    storage = config.storage
    gate = _gate_config(config, gate)
    src = src or [storage.path_of("collected_dataset"), *valid_regenerations(storage)]
    tables = [storage.path_of(key) for key in (*CHECK_TABLES, "person_checks")]
    # The first one is required: without its file, the reader raises.
    checks = checks or [path for path in tables if path == tables[0] or path.exists()]
    report = report or storage.path_beside(dst, "report.json", report_path(config))
    rejections = rejections or storage.path_beside(dst, "rejections.parquet", storage.path_of("rejections"))
    dst = dst or storage.path_of("filtered_dataset")
    canaries = [canary for path in checks if (canary := canaries_path(path, storage)).exists()]
    inputs = [*src, *checks, *canaries]
    stage = StageRun("sample_gate", storage, inputs=inputs, settings=gate.model_dump())
    for path in checks:
        refuse_stale(path, storage)
    written = all(report.with_suffix(end).exists() for end in (".json", ".md", ".html"))
    if written and stage.is_current(rejections, dst):
        print(f"sample gate: {dst} is up to date")
        return None
    decider = SampleGate(gate)
    stats = decider.filter_dataset(src, checks, dst, rejections)
    stats.canaries = false_accepts(canaries, lambda rows: not decider.filter_sample(rows))
    decider.generate_report(stats, report)
    stage_reports.write_quality_report(
        report.with_name("quality_report.json"),
        stage="sample_gate",
        total=stats.total,
        reject_reason_counts=stats.reasons,
        **stats.measured,
    )
    for path in (rejections, dst):
        stage.seal_output(path, rows_in=stats.total, rejected=stats.rejected_count)
    print(f"sample gate: {stats.kept} of {stats.total} answers kept; {report.with_suffix('.md')}")
    return stats


def main() -> None:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--src", type=Path, nargs="+", help="answers (contracts.OUTPUTS)")
    parser.add_argument("--checks", type=Path, nargs="+", help="measurements (contracts.CHECKS)")
    parser.add_argument("--dst", type=Path, help="answers that are kept")
    parser.add_argument("--rejections", type=Path, help="answers that are not, with reasons")
    parser.add_argument("--report", type=Path, help="funnel (JSON; Markdown beside it)")
    for rubric in RUBRICS:
        parser.add_argument(f"--{rubric.threshold.replace('_', '-')}", type=float, metavar="0..1")
    parser.add_argument("--require-both", action=argparse.BooleanOptionalAction, default=None)
    args = parser.parse_args()
    config = load_config(args.config)
    names = [*(rubric.threshold for rubric in RUBRICS), "require_both"]
    flags = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    filters = load_yaml(Path(config.filters), FilterConfig, {"sample_gate": flags})
    run(
        config,
        gate=filters.sample_gate,
        src=args.src,
        checks=args.checks,
        dst=args.dst,
        rejections=args.rejections,
        report=args.report,
    )


if __name__ == "__main__":
    cli.run(main)
