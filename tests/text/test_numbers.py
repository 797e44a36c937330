"""Numbers of other scripts and countries, in answers and in references."""
# ruff: noqa: RUF001 - the signs that look like others are what is tested

import pytest

from nexa_distill.execution.checks import Job
from nexa_distill.execution.math_and_json_checks import MathChecks
from nexa_distill.text.numbers import with_plain_numbers
from tests.support.databases import said


@pytest.fixture(scope="module")
def maths() -> MathChecks:
    return MathChecks()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is \u22125.", "-5"),
        ("#### \u22125", "-5"),
        ("#### \uff0d5", "-5"),
        ("#### \ufe635", "-5"),
        ("It falls to \u20135.", "-5"),
        ("It falls from 2 to \u22123 degrees", "-3"),
        ("It lies between 10\u201315", "15"),
        ("\u200e\u2212\u206012", "-12"),
        ("$\\frac{\u22121}{2}$", "-1/2"),
        ("\\boxed{\u22125}", "-5"),
        ("7 \u2212 5 = 2", "2"),
        ("The answer is ２５", "25"),
        ("答案是５。", "5"),
        ("一共有18个苹果。", "18"),
        ("结果是3，不是4，而是1，234", "1234"),
        ("答案：\uff0d１２", "-12"),
        ("答えは-3です。", "-3"),
        ("답은 18입니다.", "18"),
        ("الجواب هو ٤٢.", "42"),
        ("الجواب هو ١٬٢٣٤٫٥", "1234.5"),
        ("جواب ۴۲ است", "42"),
        ("उत्तर १२३ है।", "123"),
        ("উত্তর ৪২", "42"),
        ("คำตอบคือ๑๒บาท", "12"),
        ("Ответ: 1\u00a0234,5 рубля", "1234.5"),
        ("Réponse : 1\u202f234\u202f567", "1234567"),
        ("Die Antwort ist 1.234.567,5 Euro", "1234567.5"),
        ("Die Antwort ist 1.234,50", "1234.5"),
        ("Es sind 1\u2019234\u2019567", "1234567"),
        ("Es sind 1'234.5", "1234.5"),
        ("It costs 1,23,456", "123456"),
        ("It costs 1_000_000", "1000000"),
        ("\\boxed{1\\,234}", "1234"),
        ("It takes 1\u00bd hours", "3/2"),
        ("It is \u2212\u00bd", "-1/2"),
        ("She pays \\$18.", "18"),
        ("**Answer:** \\$1,234.50", "1234.5"),
        ("$\\$18$", "18"),
        ("The answer is +5", "5"),
        ("#### +5", "5"),
        ("x = +5", "5"),
        ("3 +5 = 8", "8"),
        ("The answer is 10\u2075", "100000"),
        ("The answer is 10\u207b\u00b3", "0.001"),
        ("The answer is 5 \u00d7 10\u00b3", "5000"),
        ("The answer is 3\u00b710^4", "30000"),
        ("#### 1.5e3", "1500"),
        ("It is 2.5E-3", "0.0025"),
        ("It takes 2 1/2 hours", "5/2"),
        ("The area is 25 cm\u00b2.", "25"),
        ("2\u00b3 = 8", "8"),
        ("3 \u00d7 4 = 12", "12"),
    ],
)
def test_d31_a_number_is_read_however_it_is_typed(maths: MathChecks, text: str, number: str) -> None:
    assert said(maths.check_answer(Job("math", text, number))) == "matches"
    assert said(maths.check_answer(Job("math", f"#### {number}", text))) == "matches"
    assert said(maths.check_answer(Job("math", text, f"{number}8"))) == "matches: wrong_result"


@pytest.mark.parametrize(
    "text",
    ["1,234", "1.234", "3.14", "3,5", "(3, 5)", "7 - 5", "x_100", "12.5.2024", "1'234 o'clock's",
     "e5", "1e5a", "0x1e5", "a +b", "3 1/2/3", "2024 1/2", "a - b", "10-15",
     "version 1.2.3", "5'6", "1,2,3", "100,200,30", "x² + 1"],
)  # fmt: skip
def test_d31_what_can_mean_something_else_stays(text: str) -> None:
    expected = text.replace("1'234 o", "1234 o")
    assert with_plain_numbers(text) == expected
