"""Personal data and secrets in a text, found by rule. Pure.

    email    an address with a dotted domain, as people write it (not all of RFC 5322)
    phone    +, country code and 7 to 14 more digits (E.164), or 3-3-4 digits as in North America
    card     13 to 19 digits that begin as a payment card and satisfy the Luhn check (ISO/IEC 7812)
    secret   tokens of well-known forms (OpenAI, GitHub, AWS, Google, Slack, Hugging Face), JSON web
             tokens, and private keys in PEM form

`SCREEN` is a looser pattern of each kind for RE2 on the lower-cased text: what it does not match
holds nothing of that kind. Not covered: names, addresses, local phone numbers without a separator,
secrets without a form of their own.
"""

import re
from collections.abc import Collection, Iterator
from typing import Literal

Kind = Literal["email", "phone", "card", "secret"]

_PATTERNS: dict[Kind, re.Pattern[str]] = {
    "email": re.compile(
        r"(?<![\w.+%-])[A-Za-z0-9_.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])"
    ),
    "phone": re.compile(
        r"(?<![\w+.-])(?:\+[1-9](?:[ .-]?\(?[0-9]\)?){7,14}"
        r"|(?:\([0-9]{3}\) ?|[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4})(?![\w-])"
    ),
    "card": re.compile(r"(?<![\w.-])[2-6](?:[ -]?[0-9]){12,18}(?![\w-])"),
    "secret": re.compile(
        r"(?<![\w-])(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}"
        r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}|hf_[A-Za-z0-9]{30,}"
        r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})(?![\w-])"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
        r"(?:[^-]|-(?!----END))*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    ),
}
SCREEN: dict[Kind, str] = {
    "email": r"[a-z0-9]@[a-z0-9-]+\.",
    "phone": r"\+[1-9]|[0-9]{3}\)? ?[ .-]?[0-9]{3}[ .-][0-9]{4}",
    "card": r"[2-6](?:[ -]?[0-9]){12}",
    "secret": r"sk-|gh[pousr]_|github_|a[ks]ia[0-9a-z]{16}|aiza|xox[abprs]-|hf_|eyj|private key-",
}


def find(text: str, kind: Kind) -> Iterator[tuple[int, int]]:
    """(start, end) of each place, in order."""
    for match in _PATTERNS[kind].finditer(text):
        if kind != "card" or luhn(match[0]):
            yield match.span()


def redact(text: str, kinds: Collection[Kind]) -> str:
    """`text` with `[email]`, `[phone]`, ... for what is found; of overlaps the longest first."""
    places = sorted((start, -end, kind) for kind in kinds for start, end in find(text, kind))
    parts, last = [], 0
    for start, end, kind in ((start, -end, kind) for start, end, kind in places):
        if start >= last:
            parts += [text[last:start], f"[{kind}]"]
            last = end
    return "".join([*parts, text[last:]])


def luhn(number: str) -> bool:
    """Whether the digits in `number` satisfy the Luhn check (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in reversed(number) if c.isdecimal()]
    doubled = (2 * d - 9 * (d > 4) for d in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
