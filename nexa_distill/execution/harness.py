"""Runs inside the sandbox: the program, then its tests; reports how far it came.

Started as `python -I -S -B -c <this file> DESCRIPTOR`, with the standard library alone. Standard
input holds the program with its limits and behind it, not read before the program has been loaded,
the tests and a token; each is JSON after eight digits with its length. The report on DESCRIPTOR is
what was reached and the token: a program that ends itself, or prints what it likes, reports
nothing.
"""

import json
import os
import resource
import sys
import types
from typing import Any


def _read() -> Any:
    """The next part of standard input, and no byte more."""
    size, found = int(os.read(0, 8)), b""
    while len(found) < size:
        found += os.read(0, size - len(found))
    return json.loads(found)


def _run(code: str, name: str, module: types.ModuleType) -> str | None:
    """The error it ended with, `Kind: text`; null = it ran to its end."""
    try:
        exec(compile(code, name, "exec"), module.__dict__)  # noqa: S102 - this is the sandbox
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program ended with it
        try:
            return f"{type(error).__name__}: {error}"[:300]
        except BaseException:  # noqa: BLE001 - an error whose text raises
            return type(error).__name__[:100]
    return None


def main() -> None:
    """Load, test, report, end."""
    descriptor = int(sys.argv.pop())
    asked = _read()
    for name, value in asked["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    os.environ.clear()
    os.chdir("/home")
    module = sys.modules["answer"] = types.ModuleType("answer")
    step, error = "load", _run(asked["program"], "answer.py", module)
    exam = _read()
    if error is None and exam["tests"] is not None:
        module.__dict__["__name__"] = "__main__"  # tests below `if __name__ == "__main__"` are run
        step, error = "tests", _run(exam["tests"], "tests.py", module)
    said = json.dumps({"step": step, "error": error, "token": exam["token"]})
    os.write(descriptor, said.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
