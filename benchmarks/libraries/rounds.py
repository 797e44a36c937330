"""Interleaved rounds: each contender in a process of its own, which prints its figures."""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping


def run_rounds(module: str, contenders: Mapping[str, Callable[[], str]]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=list(contenders), help="measure one contender in this process")
    args = parser.parse_args()
    if args.one:
        figures = contenders[args.one]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{args.one}: {figures}, peak {peak} MB", flush=True)
        return
    for _ in range(args.rounds):
        for name in contenders:
            subprocess.run([sys.executable, "-m", module, "--one", name], check=True)
