"""Rejected answers get a second attempt, then everything passes the gates again.

Run: python scripts/python/data_processing/run_regeneration.py [--annotations FILE]
"""

from pathlib import Path

from nexa_distill import cli, exec_gate, filter_pairs, judge, regenerate_bad, sample_gate
from nexa_distill.config import load_config
from nexa_distill.money.cost_report import write_cost_report


def main() -> int:
    """Command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="decisions of a person")
    args = parser.parse_args()
    config = load_config(args.config)
    regenerate_bad.run(config, annotations=args.annotations)
    filter_pairs.run(config)
    exec_gate.run(config)
    judge.run(config)
    sample_gate.run(config)
    write_cost_report(config)
    return 0


if __name__ == "__main__":
    cli.run(main)
