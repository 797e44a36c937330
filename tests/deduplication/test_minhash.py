"""Near-duplicates: against brute force, against datasketch, and what dedup does with them."""

import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_distill.deduplication.assignment import own_texts
from nexa_distill.deduplication.minhash import PairSimilarity, cluster_texts
from nexa_distill.deduplication.minhash_store import MinHashSettings, SketchStore, compute_signatures, sketch_batch
from nexa_distill.text.ngrams import hash_ngrams, hash_words, words_of
from tests.support.near_texts import deduped, jaccard, kept, rejected, rows_of, shingles, text

HOW = MinHashSettings(0.8, 3, 128)


def filled(folder: Path, texts: list[str], how: MinHashSettings = HOW) -> SketchStore:
    made = SketchStore(folder / "sketches", how)
    for start in range(0, len(texts), 64):
        made.add(sketch_batch(pa.array(texts[start : start + 64], pa.string()), how))
    made.close()
    return made


def labels(folder: Path, texts: list[str], how: MinHashSettings = HOW) -> list[int]:
    made = filled(folder, texts, how)
    count = len(made)
    found = cluster_texts(made, np.arange(count), np.zeros(count, np.uint64), how)
    return [int(label) for label in found]


def planted(count: int, seed: int = 5) -> list[str]:
    """Texts of which every second has a copy with 1 to 9 of 120 words replaced: 0.6 to 0.98."""
    draw, made = random.Random(seed), list[str]()
    for number in range(count):
        words = text(1000 + number, words=120).split()
        made.append(" ".join(words))
        if number % 2:
            for place in draw.sample(range(120), draw.randint(1, 9)):
                words[place] = f"new{draw.randrange(10**6)}"
            made.append(" ".join(words))
    return draw.sample(made, len(made))


def test_recall_at_the_threshold_is_what_the_formula_says() -> None:
    assert (HOW.rows_per_band, HOW.band_count) == (7, 18)
    assert HOW.recall_with(7) == pytest.approx(1 - (1 - 0.8**7) ** 18)
    assert HOW.recall_with(7) >= 0.98 > HOW.recall_with(8)


def test_pairs_found_are_those_of_brute_force(tmp_path: Path) -> None:
    texts = planted(420)
    found = labels(tmp_path, texts)
    pairs = list(itertools.combinations(range(len(texts)), 2))
    true = {(a, b) for a, b in pairs if jaccard(texts[a], texts[b]) >= 0.8}
    joined = {(a, b) for a, b in pairs if found[a] == found[b]}
    assert len(true) > 90
    assert joined <= true  # here no chain is longer than a pair
    assert len(joined & true) / len(true) >= 0.95


def test_similarity_agrees_with_datasketch_and_with_plain_sets(tmp_path: Path) -> None:
    texts = [text(1, variant) for variant in range(7)]
    made = filled(tmp_path, texts)
    likeness = PairSimilarity(made, HOW)
    oracle = []
    for each in texts:
        oracle.append(MinHash(num_perm=512))
        oracle[-1].update_batch([" ".join(gram).encode() for gram in shingles(each)])
    for a, b in itertools.combinations(range(7), 2):
        found = likeness.jaccard_similarity(np.array([a]), np.array([b]))[0]
        assert found == pytest.approx(jaccard(texts[a], texts[b]))
        assert found == pytest.approx(oracle[a].jaccard(oracle[b]), abs=0.08)


def test_families_are_named_by_their_lowest_text_and_chains_are_one(tmp_path: Path) -> None:
    texts = [text(1, 1), text(2), text(1, 3), text(1), text(2)]
    assert labels(tmp_path, texts) == [0, 1, 0, 0]  # equal texts of a batch are one text


def test_a_great_bucket_of_equal_and_of_similar_texts_is_one_family(tmp_path: Path) -> None:
    texts = [f"{text(3)} {number}" for number in range(700)]
    assert set(labels(tmp_path, [*texts, *texts])) == {0}


@settings(deadline=None)  # the first call builds a table
@given(st.lists(st.text(max_size=30), min_size=1, max_size=8), st.integers(1, 14))
def test_ngrams_of_a_batch_are_those_of_each_text(texts: list[str], n: int) -> None:
    together = hash_words(pa.array(texts, pa.string()))
    hashes, starts, _ = hash_ngrams(together, n)
    for number, each in enumerate(texts):
        words = words_of(each)
        assert together.starts[number + 1] - together.starts[number] == len(words)
        alone, _, _ = hash_ngrams(hash_words(pa.array([each], pa.string())), n)
        assert hashes[starts[number] : starts[number + 1]].tolist() == alone.tolist()
        assert len(alone) >= max(len(words) - 6 * n + 1, 1)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("What is the City?", "what is  the “city”", True),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("Straße nach ﬁne", "STRASSE NACH FINE", True),
        ("漢字の違い", "漢字 の 違い。", True),
        ("漢字の違い", "漢字の同じ", False),
        ("a b", "b a", False),
        ("", " ", True),
        ("Où est-ce ?", "où est-ce?", True),
    ],
)
def test_what_counts_as_the_same_words(a: str, b: str, same: bool) -> None:
    first, second = (hash_words(pa.array([each])).words.tolist() for each in (a, b))
    assert (first == second) == same


def test_sketches_are_the_same_in_every_run_and_batch() -> None:
    one = compute_signatures(hash_words(pa.array([text(1), text(2)])), HOW)
    other = compute_signatures(hash_words(pa.array([text(2)])), HOW)
    assert one[1][1].tolist() == other[1][0].tolist()
    assert other[1][0][0] == BAND_OF_TEXT_2


BAND_OF_TEXT_2 = 16325142296788430337


def row(prompt: str, context: str | None = None, schema: str | None = None) -> dict[str, str | None]:
    return {"user_prompt": prompt, "context": context, "schema": schema}


@pytest.mark.parametrize(
    ("given_row", "subject", "question"),
    [
        (row("Why?"), "Why?", ""),
        (row("Passage:\nA b c.\n\nWrite.", "A b c."), "A b c.", "Passage:\n \n\nWrite."),
        (row("Tables: CREATE x. How many?", None, "CREATE x."), "Tables:   How many?", ""),
        (row("How many?", "CREATE x.", "CREATE x."), "How many?", ""),
        (row("How many?", ""), "How many?", ""),
    ],
)
def test_what_of_a_row_is_compared(given_row: dict[str, str | None], subject: str, question: str) -> None:
    assert own_texts(given_row) == (subject, question)


def test_one_of_near_duplicates_is_kept_per_task_type(tmp_path: Path) -> None:
    made, rows = deduped(
        tmp_path, rows_of([(1, 1), (1, 0), (2, 0)]),
        defaults={"tasks": ["hypothesis", "methodology"]},
    )  # fmt: skip
    assert sorted(row["task_id"] for row in rows.values()) == [
        "f1v1:hypothesis", "f1v1:methodology", "f2v0:hypothesis", "f2v0:methodology",
    ]  # fmt: skip
    row = rejected(made)["f1v0"]
    assert row["rejection_reason"] == "near_duplicate"
    assert rows[row["matched"]]["task_id"].startswith("f1v1")


def test_one_prompt_for_two_task_types_is_kept_for_both(tmp_path: Path) -> None:
    rows = [
        {"id": task, "user_prompt": text(1, variant), "template_name": task}
        for variant, task in enumerate(("math", "cot"))
    ]
    _, found = deduped(tmp_path, rows)
    assert len(found) == 2
    assert len({row["cluster_id"] for row in found.values()}) == 1


def test_planted_near_duplicates_are_one_cluster_on_one_side(tmp_path: Path) -> None:
    docs = [(family, variant) for family in range(12) for variant in range(4)]
    made, rows = deduped(tmp_path, rows_of(docs), dedup={"jaccard": 0.8})
    assert len(rows) == 12
    assert len({row["cluster_id"] for row in rows.values()}) == 12
    assert len(rejected(made)) == 36


def test_questions_about_one_text_are_compared_by_their_words(tmp_path: Path) -> None:
    asked = ["What is measured in the cell?", "what is measured in the  CELL", "Who was it?"]
    rows = [{"id": str(n), "user_prompt": q, "context": text(1)} for n, q in enumerate(asked)]
    rows.append({"id": "3", "user_prompt": "Who was it?", "context": text(1, 2)})
    made, found = deduped(tmp_path, rows)
    assert {row["task_id"] for row in found.values()} == {"0", "2"}
    assert set(rejected(made)) == {"1", "3"}
    assert len({row["cluster_id"] for row in found.values()}) == 1


def test_a_schema_in_every_prompt_makes_no_near_duplicates(tmp_path: Path) -> None:
    schema = "CREATE TABLE t (" + ", ".join(f"column_{n} int" for n in range(80)) + ");"
    asked = ["How many rivers are in Texas?", "Name the largest city of all.", "Who?"]
    rows = [{"id": str(n), "schema": schema, "user_prompt": f"{schema}\n\nQuestion: {q}"} for n, q in enumerate(asked)]
    assert len(deduped(tmp_path, rows)[1]) == 3


def test_without_a_jaccard_only_equal_rows_go(tmp_path: Path) -> None:
    rows = [*rows_of([(1, 0), (1, 1)]), {"id": "again", "text": text(1)}]
    made, found = deduped(tmp_path, rows, dedup={"jaccard": None})
    assert len(found) == 2
    assert rejected(made)["again"]["rejection_reason"] == "duplicate"
    assert kept(made)[rejected(made)["again"]["matched"]]["task_id"] == "f1v0:hypothesis"
