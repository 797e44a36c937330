"""Find personal data and secrets in a text by rule: e-mail, telephone, payment card, secret. Pure.

Digits of other scripts, full-width characters and typographic hyphens are read as their plain forms.
Not covered: names, addresses, telephone numbers without a known form or a word before them, secrets
without a known form, Visa of 13 digits (no longer issued).
"""

import re
import unicodedata
from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Kind = Literal["email", "phone", "card", "secret"]

_PHONE_WORD = (
    r"(?:t[eé]l|tele?phone|tel[eé]fono|telefone|telefon|phone|mobile|cell|call|fax|whatsapp|handy|rufnummer|"
    r"durchwahl|portable|movil|celular|cellulare|тел|телефон|моб|звоните|电话|手机|電話|携帯|"
    r"फ़ोन|फोन|मोबाइल|هاتف|جوال|الهاتف|전화)"
)
# Letters that a number or address must not touch; Chinese and Japanese put no space in between.
_WORD = r"A-Za-z0-9_\u00c0-\u052f"
_PATTERNS: dict[Kind, re.Pattern[str]] = {
    # A dotted domain is required; not all of RFC 5322. A CJK character may touch the address;
    # letters with accents belong to it.
    "email": re.compile(
        r"(?<![A-Za-z0-9_\u00c0-\u052f.+%-])"
        r"[A-Za-z0-9_\u00c0-\u052f.+%'-]{1,64}(?<![.'])@"
        r"(?:[A-Za-z0-9\u00c0-\u052f-]{1,63}\.)+[A-Za-z\u0400-\u052f]{2,24}(?![A-Za-z0-9_(@-])"
    ),
    # +, country code and number (E.164); national forms that are grouped as telephone numbers
    # (North America, France, Russia, Japan, China, numbers with an area code from 0); any 7 to 15
    # digits after a word such as "phone", "Tel." or "电话".
    "phone": re.compile(
        rf"(?<![{_WORD}+.,/-])(?:"
        r"(?:\+[1-9][0-9]{0,3}|00[1-9][0-9]{0,2}(?=[ -]))(?:[ ./-]{0,2}\(?[0-9]{1,9}\)?){1,7}"
        r"|(?:\+?1[ .-]?)?\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-][0-9]{4}"
        r"|(?:1-)?[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1[0-9]{4}"
        r"|0[1-9](?:([ .-])[0-9]{2})(?:\2[0-9]{2}){3}"
        r"|8[ -]?\([0-9]{3,5}\)[ -]?[0-9]{1,3}(?:-[0-9]{2}){2}"
        r"|\(0[0-9]{1,4}\) ?[0-9][0-9 -]{4,10}[0-9]"
        r"|0[1-9][0-9]{0,3}[ /-][0-9]{3,4}[ -][0-9]{4}"
        r"|0[1-9][0-9]{1,3}/[0-9]{5,9}|0[1-9][0-9]{2,3} [0-9]{6,8}"
        r"|1[3-9][0-9]([ -])[0-9]{4}\3[0-9]{4}"
        rf")(?![{_WORD}-]|[.,/:][0-9])"
        rf"|(?<![^\W_]){_PHONE_WORD}(?:[a-z]{{0,6}}(?: (?:number|no|me|us))?)[^\w\n+(]{{0,4}}"
        r"(?:(?:number|is|at|me at|us at|am|unter|nummer|numero|ist|lautet|es|est|au|al|no|号码|番号|是|は)[^\w\n+(]{0,3}){0,2}"
        rf"(?P<labelled>\+?\(?[0-9](?:[ ()./-]{{0,2}}[0-9]){{6,14}})(?![{_WORD}-])",
        re.IGNORECASE,
    ),
    # Unbroken, or in the groups that are embossed.
    "card": re.compile(
        rf"(?<![{_WORD}.,/+-])(?:[0-9]{{14,19}}"
        r"|[0-9]{4}([ .-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
        r"|[0-9]{4}([ .-])[0-9]{6}\2[0-9]{4,5}"
        rf")(?![{_WORD}-]|[ .,:/][0-9])"
    ),
    # OpenAI, Anthropic, GitHub, GitLab, AWS, Google, Slack, Stripe, Hugging Face, npm, PyPI,
    # SendGrid; JSON web tokens; private keys in PEM form.
    "secret": re.compile(
        r"(?<![\w-])(?:sk-[A-Za-z0-9_-]{20,}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"
        r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}"
        r"|pypi-[\w-]{40,}|SG\.[\w-]{16,}\.[\w-]{16,}|gsk_[A-Za-z0-9]{32,}|xai-[A-Za-z0-9]{40,}"
        r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|xox[abeprs]-[\w-]{10,}|hf_[A-Za-z0-9]{30,}"
        r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})(?![\w-])"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?=(?:\s|\\n)*[A-Za-z0-9+/]{4})"
        r"(?:[^-]|-(?!----END))*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    ),
}
_NUMBER_RUN = re.compile(r"[0-9+(][0-9+() ./-]{6,}")
LONGEST_LABEL = 64  # characters of "telephone number is at: " and the like
# A looser pattern per kind, for RE2 on folded text (text/folding.py): a text that it does not match
# contains nothing of that kind.
SCREEN: dict[Kind, str] = {
    "email": r"[^\s@]@[^\s@.]+\.",
    "phone": r"\+[1-9]|00[1-9][0-9]|[0-9]{2}\)?[ ./-]{1,2}[0-9]{2}|[0-9]\) ?[0-9]|[0-9]{7}",
    "card": r"[0-9]{4}[ .-][0-9]{4}[ .-]?[0-9]{2}|[0-9]{14}",
    "secret": r"sk[-_]|rk_|gh[pousr]_|github_|glpat-|npm_|pypi-|sg\.|gsk_|xai-|a[ks]ia[0-9a-z]{16}|aiza"
    r"|xox[abeprs]-|hf_|eyj|private key-",
}
# (first prefix, last prefix, lengths): ISO/IEC 7812 numbers as the networks publish them.
ISSUERS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (4, 4, (16, 19)),  # Visa
    (51, 55, (16,)), (2221, 2720, (16,)),  # Mastercard
    (34, 34, (15,)), (37, 37, (15,)),  # American Express
    (300, 305, (14, 16)), (3095, 3095, (14, 16)), (36, 36, (14, 16)), (38, 39, (14, 16)),  # Diners Club
    (6011, 6011, (16, 19)), (644, 649, (16, 19)), (65, 65, (16, 19)),  # Discover
    (3528, 3589, (16, 19)),  # JCB
    (62, 62, (16, 17, 18, 19)), (81, 81, (16,)),  # UnionPay
    (5018, 5018, (16, 19)), (5020, 5020, (16, 19)), (5038, 5038, (16, 19)), (5893, 5893, (16, 19)),
    (6304, 6304, (16, 19)), (6759, 6759, (16, 19)), (6761, 6763, (16, 19)),  # Maestro
    (2200, 2204, (16,)),  # Mir
    (60, 60, (16,)), (508, 508, (16,)),  # RuPay
)  # fmt: skip
GROUPS = {14: ("4-6-4",), 15: ("4-6-5",), 16: ("4-4-4-4",), 19: ("4-4-4-4-3",)}
IBAN_BEFORE = re.compile(r"\b[A-Z]{2}[0-9]{2} ?(?:[0-9A-Z]{4} ?)*$")
PICTURES = ("png", "jpg", "jpeg", "gif", "svg", "webp")  # "icon@2x.png"
PLACEHOLDER = re.compile(r"x{4,}|your|example|placeholder|dummy|redacted|[-_]here|\.{3}|<|changeme", re.I)
LOCAL_DIGITS = (7, 15)  # of a telephone number after a word
WORLD_DIGITS = (8, 15)  # with a country code (E.164)
MOST_SINGLE_GROUPS = 2  # "+33 6 12 34 56 78": groups of one digit; more are a list of numbers


def find_spans(text: str, kind: Kind) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each match, in order."""
    plain, places = _narrow_text(text)
    for match in _find_phones(plain) if kind == "phone" else _PATTERNS[kind].finditer(plain):
        start, end = match.span("labelled" if kind == "phone" and match["labelled"] else 0)
        if _CONFIRM[kind](plain, start, end):
            yield (start, end) if places is None else (places[start], places[end - 1] + 1)


def _find_phones(text: str) -> Iterator[re.Match[str]]:
    # The pattern is slow, so it is tried only around runs of the characters of numbers.
    last = 0
    for run in _NUMBER_RUN.finditer(text):
        yield from _PATTERNS["phone"].finditer(text, max(last, run.start() - LONGEST_LABEL), run.end() + 2)
        last = run.end()


def redact_text(text: str, kinds: Collection[Kind]) -> str:
    """Replace each match by `[email]`, `[phone]`, ...; of overlapping matches the longest."""
    places = sorted((start, -end, kind) for kind in kinds for start, end in find_spans(text, kind))
    parts, last = [], 0
    for start, end, kind in ((start, -end, kind) for start, end, kind in places):
        if start >= last:
            parts += [text[last:start], f"[{kind}]"]
            last = end
    return "".join([*parts, text[last:]])


def passes_luhn(number: str) -> bool:
    """Whether the digits in `number` satisfy the Luhn check (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in reversed(number) if c.isdecimal()]
    # The sum of the digits of 2 * d.
    doubled = (2 * d - 9 * (d > 4) for d in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _narrow_text(text: str) -> tuple[str, list[int] | None]:
    """Digits, hyphens and full-width characters as ASCII, and the source position of each."""
    if text.isascii() or all(_narrow_character(char) == char for char in set(text)):
        return text, None
    plain = [(_narrow_character(char), place) for place, char in enumerate(text)]
    kept = [(char, place) for char, place in plain if char]
    return "".join(char for char, _ in kept), [place for _, place in kept]


@lru_cache(maxsize=4096)
def _narrow_character(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category in ("Pd", "Zs", "Cf"):
        return {"Pd": "-", "Zs": " ", "Cf": ""}[category]
    narrow = unicodedata.normalize("NFKC", char)
    return narrow if len(narrow) == 1 and narrow.isascii() else char


def _is_address(text: str, start: int, end: int) -> bool:
    """Exclude file names of pictures, logins in URLs ("https://me:pass@host") and SSH remotes."""
    local, _, domain = text[start:end].partition("@")
    remote = local == "git" and text[end : end + 1] in (":", "/")
    in_url = re.search(r"\w://[^\s/]*$", text[max(0, start - 80) : start])
    return not (remote or in_url or domain.rpartition(".")[2].lower() in PICTURES)


def _is_phone(text: str, start: int, end: int) -> bool:
    number = text[start:end]
    groups = re.findall(r"[0-9]+", number)
    least, most = WORLD_DIGITS if number.startswith("+") else LOCAL_DIGITS
    decimal = number.startswith("+") and len(groups) == 2 and "." in number
    singles = sum(len(group) == 1 for group in groups)
    date = re.search(r"\b(?:19|20)[0-9]{2}[-/.][0-1]?[0-9][-/.][0-3]?[0-9]\b", number)
    is_card = bool(re.fullmatch(r"[0-9]{4}([ -])(?:[0-9]{4}\1){2}[0-9]{4}", number))
    listed = re.search(r"[0-9] $", text[max(0, start - 2) : start])  # part of a list of numbers
    enough = least <= sum(map(len, groups)) <= most
    return enough and not listed and not decimal and not date and not is_card and singles <= MOST_SINGLE_GROUPS


def _is_card(text: str, start: int, end: int) -> bool:
    """Issuer, length, grouping and check digit; no sequence of evenly spaced or round numbers."""
    number = text[start:end]
    groups = re.split(r"[ .-]", number)
    digits = "".join(groups)
    shape = "-".join(str(len(group)) for group in groups)
    if len(groups) > 1 and shape not in GROUPS.get(len(digits), ()):
        return False
    if IBAN_BEFORE.search(text[max(0, start - 30) : start]) or re.search(r"[0-9] $", text[:start]):
        return False
    values = [int(group) for group in groups]
    steps = {b - a for a, b in pairwise(values)}
    # 1000 2000 3000 4000 is a series of numbers.
    counted = len(values) > 1 and ((len(steps) == 1 and steps != {0}) or all(value % 10 == 0 for value in values))
    return _has_issuer(digits) and passes_luhn(digits) and not counted


def _has_issuer(digits: str) -> bool:
    return any(
        len(digits) in lengths and first <= int(digits[: len(str(first))]) <= last for first, last, lengths in ISSUERS
    )


def _is_secret(text: str, start: int, end: int) -> bool:
    # "sk-your-key-here" and AWS's AKIAIOSFODNN7EXAMPLE are placeholders; a private key never is.
    token = text[start:end]
    return token.startswith("-----") or not PLACEHOLDER.search(token)


_CONFIRM = {"email": _is_address, "phone": _is_phone, "card": _is_card, "secret": _is_secret}
