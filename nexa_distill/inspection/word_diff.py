"""Two texts side by side, word by word."""

import difflib
import re

Span = tuple[str, str]  # text, and `same`, `gone` or `new`
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 4000


def differences(old: str, new: str) -> list[Span]:
    """What `new` makes of `old`. Texts of more than MOST_WORDS words are compared as a whole."""
    if old == new:
        return [(old, "same")] if old else []
    before, after = WORDS.findall(old), WORDS.findall(new)
    if max(len(before), len(after)) > MOST_WORDS:
        return [(old, "gone"), (new, "new")]
    spans: list[Span] = []
    for _tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
        if before[a:b] == after[c:d]:
            spans.append(("".join(before[a:b]), "same"))
        else:
            spans += [("".join(before[a:b]), "gone"), ("".join(after[c:d]), "new")]
    return [span for span in spans if span[0]]
