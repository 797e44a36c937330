"""Complete the tests of a Python task: append calls of the tests that are only defined.

Called here: `check(candidate)` (HumanEval; any function with one argument, an assertion and no
caller) with the functions of the program, of which one must pass; `test_...()` without arguments;
`unittest.TestCase` classes; doctests. `python_checks.py` finds tests that cannot fail by running them
without the program.
"""

import ast
import re
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
DOCTEST = re.compile(r"^[ \t]*>>> ", re.MULTILINE)
NOTHING = "lambda: (lambda *_, **__: None)"  # replaces a function if there is no program

# Source code to append, with names that neither a program nor its tests will have.
CALL_ONE = """
def _nexa_call(check, candidates):
    first = AssertionError("the program defines no function to test")
    for number, make in enumerate(candidates):
        try:
            return check(make())
        except Exception as error:
            first = first if number else error
    raise first
"""
RUN_CASES = """
import unittest as _nexa_unittest
def _nexa_run(case):
    result = _nexa_unittest.TestResult()
    _nexa_unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    for _, trace in result.failures + result.errors:
        raise AssertionError(trace.strip().splitlines()[-1])
"""
RUN_EXAMPLES = """
import doctest as _nexa_doctest
def _nexa_examples(text):
    examples = _nexa_doctest.DocTestParser().get_doctest(text, globals(), "tests", None, 0)
    said = []
    _nexa_doctest.DocTestRunner(verbose=False).run(examples, out=said.append, clear_globs=False)
    if said:
        raise AssertionError(" ".join("".join(said).split())[-200:])
"""
# A TestCase is run here; `unittest.main()` would look for it in another module, and exit.
NO_MAIN = "import unittest as _nexa_unittest; _nexa_unittest.main = lambda *_, **__: None\n"


def complete_tests(tests: str, program: str) -> str:
    """The tests and the missing calls; without a `program` they get functions that do nothing."""
    try:
        tree = ast.parse(tests)
    # Whatever a model writes: it may also be too deep for the parser.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        is_session = DOCTEST.search(tests) is not None
        return f"{RUN_EXAMPLES}_nexa_examples({tests!r})\n" if is_session else tests
    # A test that is defined and never called passes every program.
    calls = [*_test_calls(tree, _candidate_makers(program)), *_testcase_calls(tree), *_doctest_calls(tree)]
    if not calls:
        return tests
    # Nothing may come before an import from __future__.
    start = NO_MAIN if "unittest" in tests and "from __future__" not in tests else ""
    helpers = {"_nexa_call(": CALL_ONE, "_nexa_run(": RUN_CASES, "_nexa_examples(": RUN_EXAMPLES}
    used = [text for name, text in helpers.items() if any(name in call for call in calls)]
    return "\n".join([f"{start}{tests}", *used, *calls]) + "\n"


def _test_calls(tree: ast.Module, candidates: str) -> Iterator[str]:
    """Calls of the functions that contain an assertion and are not used elsewhere."""
    for function in _module_functions(tree.body):
        arguments = function.args
        required = len(arguments.posonlyargs + arguments.args) - len(arguments.defaults)
        required += sum(default is None for default in arguments.kw_defaults)
        if function.decorator_list or _is_named(tree, function):
            continue
        is_async = isinstance(function, ast.AsyncFunctionDef)
        if required == 0 and (_has_assertion(function) or function.name.startswith("test")):
            call = f"{function.name}()"
            yield f"import asyncio\nasyncio.run({call})" if is_async else call
        elif required == 1 and not is_async and _takes_program(function):
            yield f"_nexa_call({function.name}, [{candidates}])"


def _module_functions(body: list[ast.stmt]) -> Iterator[Function]:
    for statement in body:
        if isinstance(statement, Function):
            yield statement
        # Also below `if __name__ == "__main__":`.
        elif isinstance(statement, ast.If):
            yield from _module_functions(statement.body)


def _has_assertion(function: Function) -> bool:
    return any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(function))


def _takes_program(function: Function) -> bool:
    """Whether its argument is the function under test: the function calls it and is a test."""
    argument = (function.args.posonlyargs + function.args.args)[:1]
    called = {
        node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    is_test = _has_assertion(function) or function.name.startswith(("check", "test"))
    return is_test and (not argument or argument[0].arg in called)


def _is_named(tree: ast.Module, function: Function) -> bool:
    own = {id(node) for node in ast.walk(function)}
    return any(
        isinstance(node, ast.Name) and node.id == function.name and id(node) not in own for node in ast.walk(tree)
    )


def _testcase_calls(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if any(base.endswith("TestCase") for base in bases):
                yield f"_nexa_run({node.name})"


def _doctest_calls(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str) and DOCTEST.search(text):
                yield f"_nexa_examples({text!r})"


def _candidate_makers(program: str) -> str:
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        body = []
    # The last one first, because helpers are defined earlier.
    makers = [maker for statement in body for maker in _statement_makers(statement)][::-1]
    makers.sort(key="lambda: main".__eq__)  # main last: it may wait for input
    return ", ".join(makers) if program.strip() else NOTHING


def _statement_makers(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, Function):
        yield f"lambda: {statement.name}"
    elif isinstance(statement, ast.ClassDef):
        yield f"lambda: {statement.name}"
        for method in statement.body:
            if isinstance(method, Function) and not method.name.startswith("_"):
                yield f"lambda: {statement.name}().{method.name}"  # LeetCode's Solution
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield f"lambda: {target.id}"
