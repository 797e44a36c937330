"""Two texts side by side, word by word."""

import difflib
import re

Span = tuple[str, str]  # text, and `same`, `gone` or `new`
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS = 4000


def diff_words(old: str, new: str) -> list[Span]:
    """The changes from `old` to `new`. Texts of more than MAX_WORDS words are not compared."""
    if old == new:
        return [(old, "same")] if old else []
    before, after = WORDS.findall(old), WORDS.findall(new)
    if max(len(before), len(after)) > MAX_WORDS:
        return [(old, "gone"), (new, "new")]
    spans: list[Span] = []
    # False: without autojunk, which ignores the most frequent words of long texts.
    for _tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
        if before[a:b] == after[c:d]:
            spans.append(("".join(before[a:b]), "same"))
        else:
            spans += [("".join(before[a:b]), "gone"), ("".join(after[c:d]), "new")]
    return [span for span in spans if span[0]]
