"""Runs inside the sandbox: load the program, run its tests, report the last step.

Started as `python -I -S -B -c <this file> DESCRIPTOR`, with only the standard library. Standard
input has two parts, each JSON after eight digits with its length: the program with its limits, then
the tests with a token. The report on DESCRIPTOR contains the last step and the token.
"""

import json
import os
import resource
import sys
import types
from typing import Any


def _read_part() -> Any:
    # Unbuffered: the second part must not be in memory while the program is loaded.
    size, part = int(os.read(0, 8)), b""
    while len(part) < size:
        part += os.read(0, size - len(part))
    return json.loads(part)


def _run_code(code: str, name: str, module: types.ModuleType) -> str | None:
    """The error that ended the code, `Kind: text`; None = it ran to its end."""
    try:
        exec(compile(code, name, "exec"), module.__dict__)  # noqa: S102 - this is the sandbox
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program ended with it
        try:
            return f"{type(error).__name__}: {error}"[:300]
        except BaseException:  # noqa: BLE001 - an error whose text raises
            return type(error).__name__[:100]
    return None


def main() -> None:
    descriptor = int(sys.argv.pop())
    job = _read_part()
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    os.environ.clear()
    os.chdir("/home")
    module = sys.modules["answer"] = types.ModuleType("answer")
    step, error = "load", _run_code(job["program"], "answer.py", module)
    # A program that exits or prints a report of its own does not have the token.
    tests = _read_part()
    if error is None and tests["tests"] is not None:
        module.__dict__["__name__"] = "__main__"  # also run tests below `if __name__ == ...`
        step, error = "tests", _run_code(tests["tests"], "tests.py", module)
    report = json.dumps({"step": step, "error": error, "token": tests["token"]})
    os.write(descriptor, report.encode())
    # No exit handler or thread of the program runs after the report.
    os._exit(0)


if __name__ == "__main__":
    main()
