"""Folding: one spelling for what patterns read, and the way back to the text as written."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_distill.text.folding import fold_pattern, fold_texts


def fold_text(text: str) -> str:
    folded: str = fold_texts(pa.array([text], pa.string())).texts[0].as_py()
    return folded


@pytest.mark.parametrize(
    ("written", "folded"),
    [
        ("I’m, I‘m, Iʼm, I＇m", "i'm, i'm, i'm, i'm"),
        ("“a” „b“ «c» 「d」", '"a" "b" "c" "d"'),
        ("a–b—c‑d−e", "a-b-c-d-e"),
        ("Ｃａｎｎｏｔ ｈｅｌｐ", "cannot help"),
        ("re\u00adfuse zero\u200bwidth \ufeffmark", "refuse zerowidth mark"),
        ("Désolé, ÜBER, Ёж, naïve", "desole, uber, еж, naive"),
        ("de\u0301sole\u0301", "desole"),
        ("٣٤ ४५ ６", "34 45 6"),
        ("𝐈 𝗰𝗮𝗻𝗻𝗼𝘁 ﬁnd", "i cannot find"),
        ("क़ क़", "क क"),
        ("한국어 漢字 かな 🙂 ½", "한국어 漢字 かな 🙂 ½"),
        ("\u212aelvin İ ſ", "kelvin i s"),
        ("a\u00a0b\u3000c", "a b c"),
    ],
)
def test_characters_are_read_in_one_spelling(written: str, folded: str) -> None:
    assert fold_text(written) == folded


def test_the_syntax_of_a_pattern_is_kept() -> None:
    assert fold_pattern(r"\bDésolé\W[à-ü]") == r"\bDesole\W[a-u]"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("aZ é’“ｘ\u00ad\u200bﬁ🙂漢İ\n"), max_size=20), max_size=5))
def test_each_byte_leads_back_to_the_character_that_it_comes_from(texts: list[str]) -> None:
    folded = fold_texts(pa.array(texts, pa.string()))
    for row, text in enumerate(texts):
        data = folded.texts[row].as_py().encode()
        assert data.decode() == "".join(map(fold_text, text))
        begins, position = [], 0
        for char in text:
            begins += [(position, fold_text(char).encode())] if fold_text(char) else []
            position += len(char.encode())
        at = 0
        for source, piece in begins:
            assert folded.find_source_position(row, at) == source
            at += len(piece)
