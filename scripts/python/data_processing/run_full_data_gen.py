"""Raw text to teacher answers: canonicalize, dedup, teacher.

Each step is skipped when its output is up to date, so the same command continues after any stop.

Run: python scripts/python/data_processing/run_full_data_gen.py [--input PATH] [--task LIST] [--limit N]
"""

from nexa_distill import gates
from nexa_distill.console import cli
from nexa_distill.settings.pipeline import load_with_options


def main() -> None:
    parser = cli.build_parser(__doc__)
    cli.add_task_option(parser)
    parser.add_argument("--input", dest="input.path", metavar="PATH", help="raw data (default: input.path)")
    parser.add_argument("--limit", dest="input.limit", type=cli.positive_int, metavar="N", help="first N raw rows")
    cli.add_server_options(parser)
    parser.add_argument(
        "--answers", dest="answers.path", metavar="FILE", help="existing answers, in place of a teacher"
    )
    gates.run_data_gen(load_with_options(parser.parse_args()))


if __name__ == "__main__":
    cli.run(main)
