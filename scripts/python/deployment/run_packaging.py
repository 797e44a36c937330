"""Kept answers to training samples; human decisions that are newer than the gates are applied.

Run: python scripts/python/deployment/run_packaging.py [--format sharegpt]
"""

from nexa_distill import gates, to_sft
from nexa_distill.console import cli
from nexa_distill.cost.cost_report import write_cost_report
from nexa_distill.orchestration.timing import write_timing_report
from nexa_distill.settings.pipeline import load_config


def main() -> None:
    args = to_sft.arguments()
    config = load_config(args.config)
    if args.src is None:
        gates.apply_decisions(config)
    to_sft.run_packaging(args)
    write_timing_report(config)
    write_cost_report(config)


if __name__ == "__main__":
    cli.run(main)
