"""Regenerate rejected answers and run the gates on the new attempts; cost; quality gates.

Run: python scripts/python/data_processing/run_regeneration.py [--annotations FILE]
"""

from pathlib import Path

from nexa_distill import gates
from nexa_distill.console import cli
from nexa_distill.cost.cost_report import write_cost_report
from nexa_distill.gating import quality_gates
from nexa_distill.orchestration.timing import write_timing_report
from nexa_distill.settings.pipeline import load_with_options


def main() -> None:
    parser = cli.build_parser(__doc__)
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="human decisions")
    # Another input than the configured one has other answers, or none.
    parser.add_argument("--input", dest="input.path", metavar="PATH", help="raw data (default: input.path)")
    cli.add_server_options(parser)
    parser.add_argument("--answers", dest="answers.path", metavar="FILE", help="existing answers, in place of requests")
    args = parser.parse_args()
    config = load_with_options(args)
    gates.run_repair_loop(config, args.annotations)
    write_timing_report(config)
    write_cost_report(config)
    # Last: a missed gate ends the command, and the reports show why.
    quality_gates.enforce_gates(config)


if __name__ == "__main__":
    cli.run(main)
