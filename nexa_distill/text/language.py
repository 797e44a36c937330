"""Identify the language of a text, so that a rule for one language is not applied to another.

`identify_language(text)` returns an ISO 639-1 code, `und` if it is unknown, or `zxx` for a text
without words (ISO 639-2: no linguistic content). A script that only one language uses decides;
Latin, Cyrillic, Arabic and Devanagari letters are left to py3langid.

Not covered: texts of two languages (the more frequent script decides), and very short ones.
"""

import re
import threading
from functools import cache
from typing import TYPE_CHECKING

from nexa_distill.text.regions import blank_code, blank_math

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

ANY, UNKNOWN, NO_WORDS = "any", "und", "zxx"
# Every code that can be returned (ISO 639-1).
LANGUAGES = frozenset(
    "af am an ar as az ba be bg bn bo br bs ca cs cy da de el en eo es et eu fa fi fo fr fy ga gl gu ha he hi "
    "hr ht hu hy id ig is it ja jv ka kk km kn ko ku ky la lb ln lo lt lv mg mk ml mn mr ms mt my ne nl nn no "
    "oc om or pa pl ps pt qu ro ru rw sa si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz vi "
    "vo wa xh yo zh zu".split()
)
LOOK_AT = 140  # characters; py3langid takes time linear in them
LEAST_PROBABILITY = 0.6  # of py3langid; below it a text is `und`
FEW_WORDS = 8  # an answer with code, and fewer words around it, is `zxx`
# Three different ones near the start are English; no other language of Latin script has them.
ENGLISH = re.compile(
    r"\b(?:the|this|that|with|which|you|your|from|would|should|are|have|when|and|because|we|"
    r"i'm|can't|cannot|what|there|how|of)\b"
)
ENOUGH_ENGLISH = 3
# The languages that a short text is easily mistaken for.
SIMILAR = {
    "es": {"gl", "ca", "an", "oc", "ext", "pt", "eu"}, "pt": {"gl", "es", "ext"}, "de": {"lb", "nl", "af"},
    "fr": {"oc", "wa", "ca", "gcf", "gcr", "ht"}, "it": {"lij", "vec", "la", "co", "es", "pt", "ro"},
}  # fmt: skip
KANA_SHARE = 0.1  # of Japanese among kana and ideographs
# A letter of these is a syllable or a word, so fewer of them are as much text.
WEIGHTS = {"zh": 3, "ja": 3, "ko": 2}
SCRIPTS = {
    "ja": "\u3040-\u30ff\uff66-\uff9f", "zh": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "ko": "\u1100-\u11ff\uac00-\ud7af", "th": "\u0e00-\u0e7f", "lo": "\u0e80-\u0eff",
    "km": "\u1780-\u17ff", "my": "\u1000-\u109f", "bo": "\u0f00-\u0fff", "ka": "\u10a0-\u10ff",
    "hy": "\u0530-\u058f", "el": "\u0370-\u03ff", "he": "\u0590-\u05ff", "ta": "\u0b80-\u0bff",
    "te": "\u0c00-\u0c7f", "kn": "\u0c80-\u0cff", "ml": "\u0d00-\u0d7f", "gu": "\u0a80-\u0aff",
    "pa": "\u0a00-\u0a7f", "bn": "\u0980-\u09ff", "or": "\u0b00-\u0b7f", "si": "\u0d80-\u0dff",
    "am": "\u1200-\u137f",
}  # fmt: skip
# A (folded) text without these letters is in none of these languages.
LETTERS = {
    **{code: f"[{letters}]" for code, letters in SCRIPTS.items()},
    **dict.fromkeys(("ru", "uk", "bg", "be", "mk", "sr", "kk", "ky"), "[\u0400-\u052f]"),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ug"), "[\u0600-\u06ff]"),
    **dict.fromkeys(("hi", "mr", "ne"), "[\u0900-\u097f]"),
}
SHARED_SCRIPTS = "A-Za-z\u00c0-\u024f\u1e00-\u1eff\u0400-\u052f\u0600-\u06ff\u0900-\u097f"
_RUNS = re.compile("|".join(f"([{letters}]+)" for letters in (*SCRIPTS.values(), SHARED_SCRIPTS)))
_loading = threading.Lock()


def identify_language(text: str) -> str:
    """The language of most of the first LOOK_AT characters; see the module for the codes."""
    start = text[:LOOK_AT]
    # A few common words settle English without the model.
    mostly_ascii = len(start.encode("utf-8", "replace")) < 1.1 * len(start)
    if mostly_ascii and len(set(ENGLISH.findall(start.lower()))) >= ENOUGH_ENGLISH:
        return "en"
    script = _frequent_script(start)
    return script if script is not None else _classify_shared_script(start)


def identify_prose(text: str) -> str:
    """The language of the prose around code and formulas; `zxx` if there are few words."""
    prose = blank_math(blank_code(text))
    words = prose.split()
    if prose != text and len(words) < FEW_WORDS and _frequent_script(prose) in (None, NO_WORDS):
        return NO_WORDS
    # A word has at least one character: further words would not be looked at.
    return identify_language(" ".join(words[:LOOK_AT]))


def may_be_language(written: str, language: str) -> bool:
    """Whether a text that was identified as `written` may still be in `language`."""
    return written in (language, UNKNOWN) or written in SIMILAR.get(language, ())


def _frequent_script(text: str) -> str | None:
    """The language that alone uses the script, `zxx` without letters, None for a shared script."""
    if text.isascii():
        return None if any(char.isalpha() for char in text) else NO_WORDS
    codes = [*SCRIPTS, None]
    counts = dict.fromkeys(codes, 0)
    for match in _RUNS.finditer(text):
        code = codes[(match.lastindex or 1) - 1]
        counts[code] += len(match[0]) * WEIGHTS.get(code or "", 1)
    if not any(counts.values()):
        return NO_WORDS if not any(char.isalpha() for char in text) else UNKNOWN
    best = max(codes, key=lambda code: counts[code])
    ideographs = counts["ja"] + counts["zh"]
    if best in ("ja", "zh"):
        return "ja" if counts["ja"] >= KANA_SHARE * ideographs else "zh"
    # Japanese may have more ideographs than kana, and both together be the most.
    return best if counts[best] >= ideographs else "ja" if counts["ja"] else "zh"


def _classify_shared_script(text: str) -> str:
    with _loading:  # two threads of the filter may need it first
        identifier = _load_identifier()
    language, probability = identifier.classify(text)
    return str(language) if probability >= LEAST_PROBABILITY else UNKNOWN


@cache
def _load_identifier() -> "LanguageIdentifier":
    # BSD-3-Clause, 97 languages; the naive Bayes model is in the wheel, so nothing is downloaded
    # and the answer is the same on every machine. Imported when the first such text comes.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
