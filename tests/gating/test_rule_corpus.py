"""Every text rule on texts that were written for it: precision, recall, and the table of them."""

from functools import cache

import pytest

from tests import rule_corpus
from tests.rule_corpus import CHECKS, Figures

LEAST_TEXTS, LEAST_LANGUAGES = 25, 6
FLOOR = 0.9
# English verbs are looked for in English only; other languages are in its sound texts.
ONE_LANGUAGE_OF_FAULTS = {"rules.action_verb"}


@cache
def figures(check: str) -> Figures:
    return rule_corpus.measure(check)


@pytest.mark.parametrize("check", CHECKS)
def test_a_rule_stops_what_it_must_and_little_else(check: str) -> None:
    found = figures(check)
    assert found.precision >= FLOOR, found.false_alarms
    assert found.recall >= FLOOR, found.missed


@pytest.mark.parametrize("check", CHECKS)
def test_the_corpus_is_large_enough_and_in_several_languages(check: str) -> None:
    for passes in (True, False):
        texts = [text for text in figures(check).texts if text.passes is passes]
        assert len(texts) >= LEAST_TEXTS
        assert len({text.text for text in texts}) == len(texts)
        languages = {text.language for text in texts}
        if passes or check not in ONE_LANGUAGE_OF_FAULTS:
            assert len(languages) >= LEAST_LANGUAGES


def test_the_table_in_the_baseline_is_that_of_today() -> None:
    assert rule_corpus.committed_table() == rule_corpus.table(), (
        "the rules or the corpus changed: run `python -m tests.rule_corpus`"
    )
