"""Kept answers to training samples.

Run: python scripts/python/deployment/run_packaging.py [--format sharegpt]
"""

from nexa_distill import cli, reports, to_sft
from nexa_distill.config import load_config


def main() -> int:
    """Command line."""
    args = to_sft.arguments()
    to_sft.run_packaging(args)
    reports.timing_report(load_config(args.config).storage)
    return 0


if __name__ == "__main__":
    cli.run(main)
