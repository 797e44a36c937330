"""Tests of Python tasks that are only defined are called; what cannot fail decides nothing."""

import os
import shutil

import pytest

from nexa_distill.execution.checks import Job
from nexa_distill.execution.python_checks import PythonChecks
from tests.support.databases import LIMITS, said

RIGHT = "def square(x):\n    return x * x\n"
WRONG = "def square(x):\n    return 0\n"
HUMANEVAL = (
    "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"
)
CASE = (
    "import unittest\nclass TestSquare(unittest.TestCase):\n    def test_two(self):\n"
    "        self.assertEqual(square(2), 4)\n"
)
UNDECIDED = "matches: not_decidable"


@pytest.fixture(scope="module")
def python() -> PythonChecks:
    """Needs bubblewrap: in CI a missing one is a failure."""
    if shutil.which("bwrap") is None and not os.environ.get("CI"):
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    return PythonChecks(LIMITS)


@pytest.mark.parametrize(
    "tests",
    [
        HUMANEVAL,
        HUMANEVAL + "check(square)",
        HUMANEVAL + "\nif __name__ == '__main__':\n    check(square)",
        "def verify(fn, *, times=1):\n    if fn(2) != 4:\n        raise ValueError\n",
        "def test_two():\n    assert square(2) == 4\n\ndef test_n(n=3):\n    assert square(n) == 9",
        "def helper(n):\n    assert square(n) == n * n\n\ndef test_all():\n    helper(3)",
        "async def test_two():\n    assert square(2) == 4",
        "if __name__ == '__main__':\n    assert square(2) == 4",
        "if __name__ == '__main__':\n    def test():\n        assert square(2) == 4",
        CASE,
        CASE + "\nunittest.main()",
        CASE + "\nif __name__ == '__main__':\n    unittest.main()",
        CASE + "\nunittest.TextTestRunner().run(unittest.TestSuite([TestSquare('test_two')]))",
        "from unittest import TestCase, main\nclass T(TestCase):\n    def test(self):\n"
        "        assert square(2) == 4\nmain()",
        ">>> square(2)\n4\n>>> square(3)\n9\n",
        '"""\n>>> square(2)\n4\n"""',
        'def examples():\n    """Examples.\n\n    >>> square(2)\n    4\n    """',
        "from answer import square as f\nassert f(2) == 4",
    ],
)
def test_d35_tests_of_every_shape_are_called(python: PythonChecks, tests: str) -> None:
    assert said(python.check_answer(Job("python", RIGHT, tests))) == "matches"
    assert said(python.check_answer(Job("python", WRONG, tests))) == "matches: tests_failed"


@pytest.mark.parametrize(
    "tests",
    [
        "",
        "def check(candidate):\n    pass\n",
        "def check(candidate):\n    assert True\n",
        "def check(candidate, other):\n    assert candidate(2) == 4\n",
        "def square(x):\n    return x * x\nassert square(2) == 4",  # the solution among the tests
        "try:\n    assert square(2) == 5\nexcept Exception:\n    pass",
        '["assert square(2) == 4", "assert square(3) == 9"]',
        '{"inputs": ["2"], "outputs": ["4"]}',
        "# assert square(2) == 4",
        "import pytest\ndef test_two():\n    assert square(2) == 4",
        "from solution import square\nassert square(2) == 4",
        "def test_two(tmp_path):\n    assert True",
    ],
)
@pytest.mark.parametrize("program", [RIGHT, WRONG])
def test_d35_tests_that_never_call_the_program_decide_nothing(python: PythonChecks, tests: str, program: str) -> None:
    assert said(python.check_answer(Job("python", program, tests))) == UNDECIDED


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def helper(x):\n    return 7\n\n" + RIGHT, "matches"),
        (RIGHT + "\ndef main():\n    print(square(3))", "matches"),
        ("square = lambda x: x * x", "matches"),
        ("class Solution:\n    def square(self, x):\n        return x * x", "matches"),
        ("class Solution:\n    def square(self, x):\n        return 0", "matches: tests_failed"),
        ("def a(x):\n    return 4\n\ndef b(x):\n    return 9", "matches: tests_failed"),
        ("x = 1", "matches: tests_failed"),
        ("def square(x):\n    import numpy\n    return x * x", "matches: tests_failed"),
        ("def square(x):\n    raise SystemExit(0)", "matches: tests_failed"),
        ("def square(x):\n    return", "matches: tests_failed"),
    ],
)
def test_d35_check_is_called_with_the_function_under_test(python: PythonChecks, program: str, expected: str) -> None:
    assert said(python.check_answer(Job("python", program, HUMANEVAL))) == expected
