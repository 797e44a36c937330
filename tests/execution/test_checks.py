"""Python, maths and JSON answers: what runs, and what is right."""

import os
import shutil
from pathlib import Path

import pytest

from nexa_distill.execution import sandbox, seccomp
from nexa_distill.execution.checks import Job
from nexa_distill.execution.math_and_json_checks import JsonChecks, MathChecks
from nexa_distill.execution.python_checks import PythonChecks
from nexa_distill.text.json_schemas import compile_schemas
from tests.support.databases import LIMITS, said

WORKED = "There are 3 apples and 2 more.\n3 + 2 = <<3+2=5>>5\n#### 5"
PERSON = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}


@pytest.fixture(scope="module")
def maths() -> MathChecks:
    return MathChecks()


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("#### 5", WORKED, "matches"),
        ("3 + 2 = 5, so the answer is \\boxed{5}.", WORKED, "matches"),
        ("The answer is 5.", WORKED, "matches"),
        ("It has 5 apples", WORKED, "matches"),
        ("#### 5.0", WORKED, "matches"),
        ("#### 5\nI hope these 7 lines help.", WORKED, "matches"),
        ("#### 4\nNo:\n#### 5", WORKED, "matches"),
        ("\\boxed{\\frac{10}{2}}", WORKED, "matches"),
        ("#### 1,234", "1234", "matches"),
        ("#### $18", "#### 18", "matches"),
        ("\\boxed{x^2 + 2x + 1}", "$(x+1)^2$", "matches"),
        ("#### 6", WORKED, "matches: wrong_result"),
        ("First 5, no, wait.\n#### 6", WORKED, "matches: wrong_result"),
        ("#### -5", WORKED, "matches: wrong_result"),
        ("nothing", WORKED, "matches: no_final_answer"),
        ("#### 5", "see above", "matches: not_decidable"),
        ("#### 5", None, "executes"),
    ],
)  # fmt: skip
def test_a_final_answer_is_found_and_compared(
    maths: MathChecks, answer: str, reference: str | None, expected: str
) -> None:
    assert said(maths.check_answer(Job("math", answer, reference))) == expected


@pytest.mark.parametrize(
    ("answer", "task", "expected"),
    [
        ('{"age": 3}', "person", "matches"),
        (' [1, "two"] ', None, "executes"),
        ('{"age": "3"}', "person", "matches: schema_mismatch"),
        ("[]", "person", "matches: schema_mismatch"),
        ('{"age": 3', "person", "matches: invalid_json"),
        ('{"age": NaN}', "person", "matches: invalid_json"),
        ('Here you are: {"age": 3}', "person", "matches: invalid_json"),
        ("[" * 100_000, "person", "matches: invalid_json"),
        ("", None, "executes: invalid_json"),
    ],
)
def test_json_is_parsed_as_a_whole_and_satisfies_its_schema(answer: str, task: str | None, expected: str) -> None:
    assert said(JsonChecks(compile_schemas({"person": PERSON})).check_answer(Job("json", answer, task))) == expected


# Python.


@pytest.fixture
def python() -> PythonChecks:
    """Needs bubblewrap: in CI a missing one is a failure."""
    if shutil.which("bwrap") is None and not os.environ.get("CI"):
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    return PythonChecks(LIMITS)


FIBONACCI = "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"


@pytest.mark.parametrize(
    ("program", "tests", "expected"),
    [
        (FIBONACCI, "assert fib(10) == 55", "matches"),
        (FIBONACCI, "assert fib(10) == 54", "matches: tests_failed"),
        (FIBONACCI, "import unittest\nassert [fib(i) for i in range(3)] == [0, 1, 1]", "matches"),
        (FIBONACCI, None, "executes"),
        (FIBONACCI + "if __name__ == '__main__':\n    fib(int(input()))", "assert fib(1) == 1",
         "matches"),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int", "assert P(1).x == 1",
         "matches"),
        ("import asyncio, threading, decimal, sqlite3, json, re, collections, heapq\n"
         "async def f():\n    await asyncio.sleep(0)\n    return 7", "assert asyncio.run(f()) == 7",
         "matches"),
        ("from concurrent.futures import ThreadPoolExecutor",
         "assert list(ThreadPoolExecutor(4).map(abs, [-1, 2])) == [1, 2]", "matches"),
        ("import tempfile\nf = open('notes.txt', 'w')\nf.write('x')\nf.close()",
         "assert open('/home/notes.txt').read() == 'x'", "matches"),
        ("x = '" + "é" * 100_000 + "'", "assert len(x) == 100000", "matches"),
        ("print('noise' * 1000)\n" + FIBONACCI, "assert fib(2) == 1", "matches"),
        ("import os", "assert not os.environ and os.getcwd() == '/home'", "matches"),
        (FIBONACCI, "assert fib(", "matches: tests_failed"),
    ],
)  # fmt: skip
def test_a_program_is_loaded_and_passes_its_tests(
    python: PythonChecks, program: str, tests: str | None, expected: str
) -> None:
    found = python.check_answer(Job("python", program, tests))
    assert said(found) == expected, found


def test_without_the_sandbox_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.sandbox_command.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sandbox.SandboxUnavailable, match="apt-get install bubblewrap") as stop:
        sandbox.require_sandbox(LIMITS)
    assert stop.value.exit_code == 69
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(sandbox.SandboxUnavailable, match="cannot be isolated here"):
        sandbox.require_sandbox(LIMITS)
    sandbox.sandbox_command.cache_clear()


def test_the_filter_is_well_formed_on_both_processors() -> None:
    for machine in seccomp.ARCHITECTURES:
        program = seccomp.build_filter(machine)
        assert program is not None
        assert len(program) % 8 == 0
        assert 40 < len(program) // 8 < 4096
    assert seccomp.build_filter("riscv64") is None
