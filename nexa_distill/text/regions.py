"""Blank the code, formulas or quotations of an answer. Pure.

Each `blank_` function overwrites such parts by spaces; length and line breaks stay, so positions
hold. All take time linear in the text, except for nesting.
"""

import json
import re

# CommonMark 0.31: three or more backticks or tildes.
FENCED = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n(?:.*?^[ \t]*(?P=fence)[`~]*[ \t]*$|.*\Z)", re.MULTILINE | re.DOTALL
)
INLINE = re.compile(r"(?<!`)(`+)(?!`)[^\n]*?[^`\n]\1(?!`)")
# A line of a program: a keyword or prompt first, an assignment, a call, or a bracket or tag alone.
CODE_LINE = re.compile(
    r"[ \t]*(?:(?:def|class|import|from|return|print|const|let|var|elif|function|public|private)\b"
    r"[^\n]*[(){}:;=][^\n]*|from \w[\w.]* import [^\n]+|(?:for|while|if|with) [^\n]+:|>>> ?[^\n]*"
    r"|\$ [a-z][^\n]*"
    r"|[\w.\[\]\"']+[ \t]*(?:[-+*/|]?=)[ \t]*[^\s=][^\n]*|[\w.]+\([^\n]*\)[;:{]?"
    r"|[\]\[{}(),;]+|</?(?![a-z:_]*(?:think|thought|reason|reflect|scratch|monolog|start_of|end_of)|s>|[eb]os>)[a-z][^\n<>]*>(?:[^\n]*</[a-z]+>)?|[\"'][\w -]+[\"'][ \t]*:[^\n]*)"
    r"[ \t]*",
    re.IGNORECASE,
)
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}"
# TeX: between dollars, `\(`, `\[` or in an environment, and a command with its braces anywhere.
MATH = re.compile(
    r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)"
    r"|\\begin\{(?P<name>(?:equation|align|gather|multline|eqnarray|array|cases|[bpvB]?matrix|"
    r"tikzpicture|split|displaymath|math)\*?)\}.+?\\end\{(?P=name)\}"
    # A dollar before a digit or after a space is money.
    r"|(?<![\\$\w])\$(?=[^\s$])[^$\n]{0,400}?(?<=[^\s\\])\$(?![\w{])"
    rf"|\\(?!cite)[a-zA-Z]+\*?(?:\[[^\]\n]*\])?(?:{_GROUP})+|[_^]{_GROUP}",
    re.DOTALL | re.IGNORECASE,
)
# Quotation marks are folded to " and ' before (text/folding.py). An apostrophe is inside a word.
# The pattern begins with the mark, so that the search skips to it.
QUOTED = re.compile(
    r"[\"'](?:(?<=\")[^\"\n]{1,2000}\"|(?<=\")(?=\S)[^\"\n]{0,2000}$"
    r"|(?<=')(?<![\w']')(?=\S)(?:[^'\n]|(?<=\w)'(?=\w)){1,400}(?<=\S)'(?!\w))",
    re.MULTILINE,
)
QUOTED_LINE = re.compile(r"^[ \t]*>[^\n]*$", re.MULTILINE)
NOT_BREAKS = re.compile(r"[^\n]")


def blank_code(text: str) -> str:
    """Blank fenced and inline code, lines that look like statements, and JSON as a whole."""
    if is_json(text):
        return _to_spaces(text)
    if "```" in text or "~~~" in text:
        text = _blank_region(FENCED, text)
    lines = (_blank_region(INLINE, text) if "`" in text else text).split("\n")
    # Line by line: a search in the whole text would try every character.
    return "\n".join(" " * len(line) if CODE_LINE.fullmatch(line) else line for line in lines)


def blank_math(text: str) -> str:
    return _blank_region(MATH, text) if "$" in text or "\\" in text or "{" in text else text


def blank_quotations(text: str) -> str:
    """Blank quotations; one that is not closed ends with its line."""
    return _blank_region(QUOTED, _blank_region(QUOTED_LINE, text) if ">" in text else text)


def is_json(text: str) -> bool:
    stripped = text.strip()
    # Most answers end here, without being parsed.
    if stripped[:1] not in ("{", "["):
        return False
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    return True


def has_open_fence(text: str) -> bool:
    """Whether a code fence is opened and never closed, or closed and never opened.

    A fence opens on its own line, or at the end of a line of prose ("Run this: ```python"); a line
    of at least as many of its marks closes it. Three backticks that are opened and closed within a
    line are inline code.
    """
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE_LINE.match(line)
        if fence:
            closes = mark and not mark["info"].strip() and mark["fence"].startswith(fence)
            # "print(1)```": the model closed the fence at the end of the last line.
            closes = closes or (line.rstrip().endswith(fence) and line.count(fence) == 1 and not mark)
            fence = "" if closes else fence
        elif mark and mark["fence"] not in mark["info"]:
            fence = mark["fence"]
        elif line.count("```") % 2 and (tail := _FENCE_TAIL.search(line)):
            fence = tail[1]
    return bool(fence)


_FENCE_LINE = re.compile(r"[ \t]*(?:[-*+>]|\d{1,3}[.)])?[ \t]*(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_FENCE_TAIL = re.compile(r"[\s:](`{3,})[\w+#.-]*[ \t]*$")


def _blank_region(region: re.Pattern[str], text: str) -> str:
    return region.sub(lambda match: _to_spaces(match[0]), text)


def _to_spaces(text: str) -> str:
    return NOT_BREAKS.sub(" ", text)
