"""The student takes the teacher's exam: answer, judge, compare, report.

The student before and after training answers the held-out prompts; the rules, the exec gate, the
judges (if there are any) and SampleGate judge its answers and the teacher's, and the report says
whether training helped. Each step is skipped when its output is up to date, so the same command
continues after any stop. A student that is worse than the accepted one ends it with 3.

Run: python scripts/python/evaluation/run_evaluation.py [--config FILE] [--student FILE]
"""

import json
from pathlib import Path

from nexa_distill import gates
from nexa_distill.console import cli
from nexa_distill.reporting import stage_reports
from nexa_distill.settings.pipeline import load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train import evaluate_student, generate_student, regression
from nexa_train.evaluation import gate_results, teacher_agreement
from nexa_train.evaluation.metrics import ANSWERS


def main() -> int:
    """Command line."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--student", type=Path, metavar="FILE", help="default: the config's student"
    )
    args = parser.parse_args()
    config = load_config(args.config)
    student = load_yaml(args.student or Path(config.student), StudentConfig)
    generate_student.run(config, student)
    for model in ANSWERS:
        answers = config.storage.path(ANSWERS[model])
        gates.examine(config, answers, gate_results.gate_files(config.storage, model))
    page = evaluate_student.run(config, student)
    teacher_agreement.run(config, student)
    stage_reports.timing_report(config.storage)
    report = json.loads(config.storage.path("evaluation_report").read_text(encoding="utf-8"))
    print("\n".join(["", *report["headline"], "", f"Open {page} in a browser."]))
    print(regression.enforce(config))
    return 0


if __name__ == "__main__":
    cli.run(main)
