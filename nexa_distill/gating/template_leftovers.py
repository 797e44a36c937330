"""Tell leftover marks of a template from answers that write about such marks. Pure.

`{{ name }}` in a sentence and `<|im_end|>` at an end are leftovers; "In Jinja, {{ name }} prints a
variable" and "the [INST] token" are explanations.
Input: folded text without code and formulas (text/folding.py, text/regions.py).
"""

import re

from nexa_distill.gating.word_lists import any_of

MARK = re.compile(r"\{\{[^{}\n]*\}\}|\$?\{[^{}\n]*\}|\{%[^\n]*?%\}|<\|[^|\n]*\|>|<<?/?[^<>\n]*>>?|\[/?\w+\]|\S+")
SENTENCE_BREAK = re.compile(r"[.!?](?=\s)|[\u3002\uff01\uff1f\u0964]|\n")
# Words of a sentence about templates.
ABOUT_TEMPLATES = re.compile(rf"\b(?:{any_of('about_templates')})\b|{any_of('about_templates_unspaced')}")
# Braces of a command, a path, markup or a string of code touch the text around them.
TOUCHES_BEFORE = re.compile(r"[a-z0-9\\}^_{\])@#>/'\"=$]$")
TOUCHES_AFTER = {False: re.compile(r"[a-z0-9_{}<'\"/]"), True: re.compile(r"[}'\"]")}
# Words next to a mark that is mentioned.
NEXT_TO, UNSPACED = any_of("next_to_marks"), any_of("next_to_marks_unspaced")
MENTIONED_AFTER = re.compile(
    rf"[\"')]|[ \t]*(?:(?:and|or|und|et|y|и|/|,)[ \t]*[<\[]\S+[ \t]*)?(?:(?:{NEXT_TO})\b|{UNSPACED})"
)
MENTIONED_BEFORE = re.compile(
    rf"[\"'(]$|(?:\b(?:{NEXT_TO}|{any_of('words_before_marks')})|{any_of('words_before_marks_unspaced')})[ \t:]*$"
)


def end_of_false_leftover(text: str, start: int, _source: str = "") -> int:
    """The end of a mark at `start` that is no leftover; 0 if it is a leftover."""
    match = MARK.match(text, start)
    if match is None:
        return 0
    before = text[max(0, start - 200) : start]
    after = text[match.end() : match.end() + 200]
    if match[0].startswith(("{", "${")):
        is_shown = _is_placeholder_shown(before, after, match[0].startswith("{{"))
    else:
        is_shown = _is_mark_shown(before, after)
    return match.end() if is_shown else 0


def _is_placeholder_shown(before: str, after: str, double: bool) -> bool:
    if TOUCHES_BEFORE.search(before) or TOUCHES_AFTER[double].match(after):
        return True
    sentence = SENTENCE_BREAK.split(before)[-1] + " " + SENTENCE_BREAK.split(after, maxsplit=1)[0]
    return bool(ABOUT_TEMPLATES.search(sentence))


def _is_mark_shown(before: str, after: str) -> bool:
    line = before.rpartition("\n")[2]
    # Alone at the start of its line, it can only be mentioned by the words after it.
    if not line.strip() and not MENTIONED_AFTER.match(after):
        return False
    return bool(MENTIONED_AFTER.match(after) or MENTIONED_BEFORE.search(line))
