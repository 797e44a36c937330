"""Teacher answers to kept answers: rules, exec gate, judges, human checks, SampleGate; funnel.

Run: python scripts/python/data_processing/run_filtering.py [--filters FILE]
"""

from nexa_distill import gates
from nexa_distill.console import cli
from nexa_distill.cost.cost_report import write_cost_report
from nexa_distill.gating import quality_gates
from nexa_distill.orchestration.timing import write_timing_report
from nexa_distill.settings.pipeline import load_with_options


def main() -> None:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--filters", metavar="FILE", help="default: filters:")
    config = load_with_options(parser.parse_args())
    gates.run_gates(config)
    write_timing_report(config)
    write_cost_report(config)
    funnel = config.storage.path_of("reports") / "sample_gate" / "gate_report.md"
    print(f"\n{funnel.read_text(encoding='utf-8')}")
    # Last: a missed gate ends the command, and the reports show why.
    quality_gates.enforce_gates(config)


if __name__ == "__main__":
    cli.run(main)
