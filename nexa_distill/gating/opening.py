"""Find the opening of an answer: its first sentences in its own voice. Pure.

"I'm sorry, but I cannot help" is a refusal if the answer opens with it, but not in a requested
letter, a line of dialogue, a quotation, or further down. The functions read folded text
(text/folding.py) and overwrite everything else by spaces.
"""

import re
from itertools import islice

from nexa_distill.gating.word_lists import any_of
from nexa_distill.text.regions import blank_code, blank_quotations

SHORT_ANSWER = 300  # characters; in such an answer every sentence counts
SHORT_WIDE_ANSWER = 100  # the same if a character is a syllable or a word (Chinese, Japanese)
OPENING_SENTENCES = 3
LONGEST_OPENING = 700  # characters; later text is never examined
WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# One class first, so that the search skips to it, then the condition for each of its characters.
SENTENCE_END = re.compile(
    r"[.!?\u3002\uff01\uff1f\u0964\u061f\u06d4\n](?:"
    r"(?<=[.!?])(?<!\b[a-z].)[.!?]*[\"')\]*]*(?=\s|$)"
    r"|(?<=[\u3002\uff01\uff1f\u0964\u061f\u06d4])[\u3002\uff01\uff1f\u0964\u061f\u06d4]*"
    r"|(?<=!)(?=[\u3040-\u9fff])|(?<=\n)\s*\n)"
)
# A line that announces a text ("Here is a draft reply:"), or the speaker of one ("Anna: ...").
LABEL = re.compile(r"^[ \t>*_#-]*(?P<label>[^\n:.!?]{1,80}?)[*_]*:[*_]*(?P<rest>[^\n]*)", re.MULTILINE)
MOST_SPEAKER_WORDS = 4
# Labels after which the answer still speaks in its own voice.
OWN_LABEL = re.compile(rf"(?:(?:the|my|short|final|direct) )?(?:{any_of('own_labels')})")
# Words at the end of a label that announce text of another speaker on the same line.
ANNOUNCEMENT = re.compile(rf"(?:\b(?:{any_of('announcements')})|{any_of('announcements_unspaced')})$")
# "Hello! I'm sorry" greets the user; a salutation alone on its line begins a letter.
SALUTATION = re.compile(
    rf"^[ \t*_]*(?:(?:{any_of('salutations')})\b[^\n.?;]{{0,60}}"
    rf"|(?:{any_of('greetings')})(?! there| everyone)\b[^\n.!?;:]{{0,40}},"
    rf"|(?:{any_of('subject_labels')})[ \t]*:[^\n]*|(?:{any_of('salutations_unspaced')})[^\n。]{{0,60}})[ \t*_]*$",
    re.MULTILINE,
)


def blank_all_but_opening(text: str) -> str:
    """The first sentences in the answer's own voice; every sentence of a short answer."""
    head = _own_voice(text[:LONGEST_OPENING])
    wide = len(WIDE.findall(head)) * 3 > len(head.strip())
    if len(text.strip()) > (SHORT_WIDE_ANSWER if wide else SHORT_ANSWER):
        head = head[: _opening_end(head)]
    return head


def _own_voice(text: str) -> str:
    """Blank code, quotations and lines of speakers; end at an announcement or salutation."""
    unquoted = _unquote_whole(text)
    spoken = blank_quotations(blank_code(unquoted))
    if letter := SALUTATION.search(spoken):
        spoken = spoken[: letter.start()]
    for match in LABEL.finditer(spoken):
        label = match["label"].strip(" *_#->")
        if OWN_LABEL.fullmatch(label):
            continue
        if not match["rest"].strip() or ANNOUNCEMENT.search(label):
            return spoken[: match.start("rest")]
        # "I'm sorry: ..." is a sentence, not a speaker.
        if len(label.split()) <= MOST_SPEAKER_WORDS and not re.search(r"\bi\b|'", label):
            return spoken[: match.start()]
    return spoken


def _unquote_whole(text: str) -> str:
    # An answer that is one quotation as a whole is in its own voice.
    stripped = text.strip()
    whole = len(stripped) > 2 and stripped[0] == stripped[-1] == '"' and stripped.count('"') == 2
    return text.replace('"', " ") if whole else text


def _opening_end(text: str) -> int:
    # An end before the first word (an empty line) is none.
    ends = (match.end() for match in SENTENCE_END.finditer(text) if text[: match.start()].strip())
    return next(islice(ends, OPENING_SENTENCES - 1, None), len(text))
