# ruff: noqa: E501, RUF001
"""One idea of a word, in every script: chunks, lengths, repetition, duplicates, contamination."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill import canonicalize, dedup
from nexa_distill.canonicalize import split_chunks
from nexa_distill.deduplication.contamination import find_contamination
from nexa_distill.deduplication.minhash_store import SketchStore, sketch_batch
from nexa_distill.deduplication.warnings import require_both_sides
from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import Chunking
from nexa_distill.text.ngrams import hash_words, join_words, words_of
from nexa_distill.text.repetition import measure_tokens
from nexa_distill.text.words import word_spans
from tests.support.near_texts import deduped, rejected
from tests.support.workspace import Workspace, workspace
from tests.text.forty_questions import LANGUAGES, VIETNAMESE

SPLIT = {"val": 0.1, "test": 0.2, "seed": 7}
LOOK: dict[str, Any] = {"split": SPLIT, "dedup": {"contamination_words": 13}}


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


def texts_of(prompts: list[str]) -> list[dict[str, Any]]:
    return [{"id": f"q{number}", "user_prompt": text} for number, text in enumerate(prompts)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's the molar-mass (3.14).", ["It's", "the", "molar-mass", "(3.14)."]),
        ("कैसे बनता है?", ["कैसे", "बनता", "है?"]),
        ("설명해 주세요.", ["설명해", "주세요."]),
        ("他说：「你好！」使用Python3.5。", ["他", "说：", "「你好！」", "使用", "Python3.5。"]),
        ("中学生にもわかる", ["中学生", "に", "も", "わかる"]),
        ("น้ำขึ้นได้อย่างไร", ["น้ำ", "ขึ้น", "ได้", "อย่างไร"]),
        ("ກະລຸນາອະທິບາຍ", ["ກະລຸນາ", "ອະທິບາຍ"]),
        ("សូមពន្យល់ពីរបៀប", ["សូម", "ពន្យល់", "ពី", "របៀប"]),
        ("ရှင်းပြပါ", ["ရှင်း", "ပြ", "ပါ"]),
        ("བོད་སྐད་ཡིག", ["བོད་", "སྐད་", "ཡིག"]),
        (" \u3000", []),
    ],
)
def test_d23_a_word_is_a_word_in_every_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_d01_a_long_document_is_cut_into_chunks_of_comparable_length(language: str) -> None:
    """The same document in each language gives 9 to 14 chunks; English gives 11."""
    text = " ".join(LANGUAGES[language].questions() * 5)
    chunking = Chunking(max_tokens=400, overlap_tokens=40)
    pieces = split_chunks(text, chunking)
    assert 7 <= len(pieces) <= 15
    assert all(len(words(piece)) <= 400 for piece in pieces)
    assert "".join(pieces[0].split()) in "".join(text.split())
    assert all(a[-8:] in b for a, b in itertools.pairwise(pieces))


def test_d01_chinese_without_any_mark_is_cut_too() -> None:
    pieces = split_chunks("潮汐是怎样形成的" * 2600, Chunking(max_tokens=400, overlap_tokens=40))
    assert len(pieces) > 25
    assert max(map(len, pieces)) < 1200


@pytest.mark.parametrize("run", ["QUJDREVGR0hJ" * 3000, '{"a":1,"b":"x"},' * 2000, "🙂" * 30000])
def test_d01_what_no_space_cuts_is_cut_too(run: str) -> None:
    pieces = split_chunks(f"Decode this: {run} and say what it is.", Chunking(max_tokens=400, overlap_tokens=40))
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= 400 * 6 + 50
    assert pieces[0].startswith("Decode this: ")
    assert pieces[-1].endswith("and say what it is.")


def test_d01_a_long_address_is_a_word() -> None:
    address = "https://example.org/" + "a/" * 100
    assert len(split_chunks(f"{address} " * 390, Chunking(max_tokens=400, overlap_tokens=40))) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_d02_forty_questions_stay_forty_in_every_language(tmp_path: Path, language: str) -> None:
    _, rows = deduped(tmp_path, texts_of(LANGUAGES[language].questions()), **LOOK)
    assert len(rows) == 40
    assert Counter(row["split"] for row in rows.values())["train"] > 20


def test_d02_syllables_with_spaces_between_them_are_less_than_words(tmp_path: Path) -> None:
    _, rows = deduped(tmp_path, texts_of(VIETNAMESE.questions()), **LOOK)
    assert len(rows) == 40
    assert Counter(row["split"] for row in rows.values())["train"] > 20
    assert join_words(words_of("Thủy triều là gì?")) == "thủy triều là gì"


def test_d02_what_took_the_training_side_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = " ".join(f"word{number}" for number in range(20))
    prompts = [f"{run} {' '.join(f'own{n}and{k}' for k in range(30))}" for n in range(8)]
    made, rows = deduped(tmp_path, texts_of(prompts), **LOOK)
    assert {row["split"] for row in rows.values()} <= {"val", "test"}
    said = capsys.readouterr().out
    lost = len(rejected(made))
    assert f"{lost} of {lost} training rows (100%) are contaminated" in said
    with pytest.raises(InputError, match=rf"all {lost} training rows \(100 %\).*contamination_wo"):
        require_both_sides(made.load())


COPIES = {
    "zh": ("听众来信里有人问", "请用通俗易懂的语言向初中学生解释潮汐是怎样形成的", "我们下周再来回答大家吧"),
    "ja": ("先生はきのう", "中学生にもわかるやさしい言葉で潮の満ち引きがどのように起こるのかを説明して", "ほしいと言いました"),
    "th": ("ครูของเราบอกว่า", "โปรดอธิบายให้นักเรียนมัธยมต้นเข้าใจว่าน้ำขึ้นน้ำลงเกิดขึ้นได้อย่างไรในแต่ละวัน", "แล้วส่งพรุ่งนี้"),
    "km": ("គ្រូបាននិយាយថា", "សូមពន្យល់ដោយពាក្យងាយៗដល់សិស្សសាលាអំពីជំនោរសមុទ្រកើតឡើងយ៉ាងដូចម្តេចនៅរៀងរាល់ថ្ងៃ", "ហើយផ្ញើមក"),
    "hi": ("शिक्षक ने कहा कि", "कृपया स्कूल के बच्चों को सरल शब्दों में समझाइए कि ज्वार कैसे बनता है", "और कल भेज दीजिए"),
    "en": ("Our teacher wrote:", "EXPLAIN to a class of ten-year-olds, in plain words, how the tides of the sea come about", "and send it soon"),
}  # fmt: skip


@pytest.mark.parametrize("language", COPIES)
def test_d02_a_copy_inside_a_longer_text_is_found_in_every_script(tmp_path: Path, language: str) -> None:
    before, copy, after = COPIES[language]
    space = " " if language in ("en", "hi") else ""
    longer = f"{before}{space}{copy}{space}{after}"
    store = SketchStore(tmp_path / "s", None)
    store.add(sketch_batch(pa.array([copy.swapcase(), longer, f"{before}{space}{after}"]), None))
    store.close()
    found = find_contamination(store, np.array([1, 2]), np.array([0]), None, 13, 10)
    assert found.texts.tolist() == [1]
    span = words_of(longer)[found.starts[0] : found.starts[0] + found.lengths[0]]
    assert set(words_of(copy)) == set(span)


DIFFERENT = [
    ("What is 5!?", "What is 5?"),
    ("What is the molar mass of Co?", "What is the molar mass of CO?"),
    ("What is 3² + 1?", "What is 32 + 1?"),
    ("What does !x mean in C?", "What does x mean in C?"),
    ("What does the shell line echo $HOME print?", "What does the shell line echo $home print?"),
    ("Add 3 + 4", "Add 3 - 4"),
    ("请计算 5！", "请计算 5。"),
    ("What is -5 plus 2?", "What is 5 plus 2?"),
    ("Explain the type 'T' in Java.", "Explain the type 't' in Java."),
    ("What does {} mean in Python?", "What does [] mean in Python?"),
    ("Write 3½ as a decimal.", "Write 31⁄2 as a decimal."),
    ("Is .5 a number?", "Is 5 a number?"),
    ("Convert €5 to pounds.", "Convert $5 to pounds."),
    ("Which elements are not in the set ℝ?", "Which elements are not in the set R?"),
    ("Name the derivative f' of this.", "Name the derivative f of this."),
    ("Round ⌊x⌋ for me", "Round ⌈x⌉ for me"),
    ("Please tell me in one short sentence what the molar mass of the gas is: CO",
     "Please tell me in one short sentence what the molar mass of the gas is: Co"),
    ("小明有3个苹果又买了5个苹果现在一共有多少个苹果请列式计算", "小明有3个苹果又买了6个苹果现在一共有多少个苹果请列式计算"),
]  # fmt: skip
EQUAL = [
    ("Evaluate ½ of 12.", "Evaluate 1⁄2 of 12."),
    ("Compute |x - 3| for x = (2).", "Compute |x - 3| for x = 2."),
    ("请计算 5！", "请计算 5!"),
    ("What is the City?", "what is  the “city”"),
    ("WHAT IS THE CAPITAL OF FRANCE?", "What is the capital of France?"),
    ("What Is The Capital Of France?", "what is the capital of france"),
    ("Is the résumé here?", "is the re\u0301sume\u0301 here"),
    ("I don’t know −5.", "I don't know -5"),
    ("ｶﾞｽとは何ですか", "ガス とは何ですか？"),
    ("कैसे बनता है।", "कैसे बनता है"),
    ("漢字の違い", "漢字 の 違い。"),
]


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_d22_operators_case_of_symbols_and_superscripts_make_another_prompt(first: str, second: str) -> None:
    left, right = (hash_words(pa.array([text])) for text in (first, second))
    assert left.symbol_hashes().tolist() != right.symbol_hashes().tolist()
    assert left.words.tolist() != right.words.tolist()


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_d22_what_only_typing_changes_is_the_same_prompt(first: str, second: str) -> None:
    left, right = (hash_words(pa.array([text])) for text in (first, second))
    assert left.words.tolist() == right.words.tolist()


def test_d22_short_prompts_that_differ_in_a_symbol_are_all_kept(tmp_path: Path) -> None:
    prompts = list(dict.fromkeys(text for pair in DIFFERENT for text in pair))
    _, rows = deduped(tmp_path, texts_of(prompts), **LOOK)
    assert sorted(row["user_prompt"] for row in rows.values()) == sorted(prompts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_d23_lengths_and_repetition_mean_the_same_in_every_script(language: str) -> None:
    """Of 40 different questions little is said again; of the same ones twice, half."""
    text = " ".join(LANGUAGES[language].questions())
    found = measure_tokens(pa.array([text, f"{text} {text}", "x"]))
    english = len(" ".join(LANGUAGES["en"].questions()).split())
    assert 0.6 < found.counts[0] / english < 1.8
    once, twice, _ = found.shares
    assert once < 0.8
    assert twice > 0.5 + once / 2 - 0.02
    fresh = measure_tokens(pa.array([LANGUAGES[language].questions()[0]]))
    assert fresh.shares.tolist() == [0]


def one_side(made: Workspace) -> set[str]:
    return set(pq.read_table(made.path("raw_dataset"))["split"].to_pylist())


def test_da17_a_context_that_all_rows_have_is_no_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = "You are the assistant of a small library. Be kind and short."
    rows = [row | {"context": context} for row in texts_of(LANGUAGES["en"].questions())]
    made, kept = deduped(tmp_path, rows, **LOOK)
    assert len(kept) == 40
    assert one_side(made) == {"train", "val", "test"}
    assert f"40 of 40 prompts have a text in common ('{context}')" in capsys.readouterr().out
    others = [{"id": f"o{n}", "user_prompt": f"Who wrote book number {n}?",
               "context": f"Shelf {n} holds {n * n} books of {n + 7} kinds."}
              for n in range(100)]  # fmt: skip
    _, later = deduped(tmp_path, [*rows, *others])
    assert {key: later[key]["split"] for key in kept} == {key: row["split"] for key, row in kept.items()}


REVIEWS = ["The soup was cold.", "Lovely staff, great view.", "Fine, nothing special.",
           "I waited an hour.", "Best cake in town!", "Too loud for me.", "The fish smelled.",
           "We will come back.", "Overpriced but good."]  # fmt: skip
LONG_INSTRUCTION = (
    "Classify the sentiment of the review that follows as positive, negative or neutral. Think "
    "about irony, about what the writer expected, and about the verdict rather than single words. "
    "Give the label first, then one sentence that explains it. Do not add anything else."
)


@pytest.mark.parametrize("before", [True, False])
def test_da18_prompts_that_share_a_long_instruction_are_all_kept(tmp_path: Path, before: bool) -> None:
    parts = [f"Review: {review}" for review in REVIEWS]
    prompts = [f"{LONG_INSTRUCTION}\n{p}" if before else f"{p}\n{LONG_INSTRUCTION}" for p in parts]
    made, rows = deduped(tmp_path, texts_of([*prompts, prompts[0].lower()]), **LOOK)
    assert len(rows) == 9
    assert len(one_side(made)) > 1
    assert rejected(made)["q9"]["rejection_reason"] == "near_duplicate"


def test_da18_a_shared_passage_stays_on_one_side_and_its_questions_are_kept(tmp_path: Path) -> None:
    passages = [" ".join(f"word{n}of{k} is here" for k in range(25)) + "." for n in range(8)]
    asked = ["Who lived there?", "What was lost?", "When did it end?", "Where is it now?",
             "Why did they leave?"]  # fmt: skip
    prompts = [f"{passage}\n{question}" for passage in passages for question in asked]
    _, rows = deduped(tmp_path, texts_of(prompts), **LOOK)
    assert len(rows) == 40
    sides = {(row["user_prompt"].split(" ")[0], row["split"]) for row in rows.values()}
    assert len(sides) == 8
    more = [*prompts, *(f"{passages[0]}\n{question}" for question in ("Who ate it?", "Why?"))]
    _, later = deduped(tmp_path, texts_of(more))
    assert {key: later[key]["split"] for key in rows} == {k: r["split"] for k, r in rows.items()}
    assert len(later) == 42


def test_da18_a_passage_that_comes_later_moves_and_removes_no_row(tmp_path: Path) -> None:
    passage = " ".join(f"word{k} is here" for k in range(10)) + "."
    asked = [" ".join(f"{n}ask{k} for what" for k in range(12)) for n in range(12)]
    look = {"split": {"val": 0.3, "test": 0.3, "seed": 7}}
    prompts = [f"{passage}\n{question}" for question in asked]
    _, before = deduped(tmp_path, texts_of(prompts[:4]), **look)
    _, after = deduped(tmp_path, texts_of(prompts))
    assert len({row["split"] for row in before.values()}) > 1
    assert {key: after[key]["split"] for key in before} == {key: row["split"] for key, row in before.items()}


def test_da18_a_test_question_behind_the_shared_instruction_is_still_found(tmp_path: Path) -> None:
    prompts = [f"{LONG_INSTRUCTION}\nReview: {review}" for review in REVIEWS]
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": prompts[3].upper()[:60] +
                                                      prompts[3][60:]}) + "\n")  # fmt: skip
    look = {"contamination_words": 13, "eval_files": [str(tmp_path / "bench.jsonl")]}
    made, _ = deduped(tmp_path / "w", texts_of(prompts), dedup=look,
                      split={"val": 0.0, "test": 0.0, "seed": 7})  # fmt: skip
    assert set(rejected(made)) == {"q3"}


def test_a_new_idea_of_a_word_makes_old_work_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = workspace(tmp_path, input={"limit": 3})
    for stage in (canonicalize, dedup):
        stage.run(made.load())
        stage.run(made.load())
        assert "is up to date" in capsys.readouterr().out
        monkeypatch.setattr(stage, "VERSION", 0)
        stage.run(made.load())
        assert "is up to date" not in capsys.readouterr().out
