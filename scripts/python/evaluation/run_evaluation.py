"""Evaluate the student on held-out prompts: generate, run the gates, compare, report.

The student before and after training answers the held-out prompts. Its answers and the teacher's
pass through the rules, the exec gate, the judges (if configured) and SampleGate. Each step is
skipped if its output is up to date, so the same command continues after any stop. The exit code is
3 for a student that is worse than the accepted one.

Run: python scripts/python/evaluation/run_evaluation.py [--config FILE] [--student FILE]
"""

import json
from pathlib import Path

from nexa_distill import gates
from nexa_distill.console import cli
from nexa_distill.orchestration.timing import write_timing_report
from nexa_distill.settings.pipeline import load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train import evaluate_student, generate_student, regression
from nexa_train.evaluation import gate_results, teacher_agreement
from nexa_train.evaluation.metrics import ANSWER_TABLES


def main() -> None:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--student", type=Path, metavar="FILE", help="default: config's student")
    args = parser.parse_args()
    config = load_config(args.config)
    student = load_yaml(args.student or Path(config.student), StudentConfig)
    generate_student.run(config, student)
    for model, table in ANSWER_TABLES.items():
        files = gate_results.gate_files(config.storage, model)
        gates.run_gates_on(config, config.storage.path_of(table), files)
    page = evaluate_student.run(config, student)
    teacher_agreement.run(config, student)
    write_timing_report(config)
    report = json.loads(config.storage.path_of("evaluation_report").read_text(encoding="utf-8"))
    print("\n".join(["", *report["headline"], "", f"Open {page} in a browser."]))
    # Last: a missed gate ends the command, and the report shows why.
    print(regression.enforce_gate(config))


if __name__ == "__main__":
    cli.run(main)
