"""Rules on texts: folding before matching, scope, language, and where the evidence points."""

from typing import Any

import pyarrow as pa
import pytest

from nexa_distill.contracts import REASONS
from nexa_distill.errors import InputError
from nexa_distill.gating.rules import RuleResult, Rules
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.text.language import identify_language, identify_prose
from tests.support.answers import REPOSITORY

FILTERS = REPOSITORY / "configs/filters.yaml"


def measure(texts: list[str], filters: str = "filters.yaml", **changes: Any) -> dict[str, RuleResult]:
    config = load_yaml(REPOSITORY / "configs" / filters, FilterConfig, changes)
    rows = pa.table(
        {
            "teacher_output": pa.array(texts, pa.string()),
            "finish_reason": ["stop"] * len(texts),
            "template_name": ["qa"] * len(texts),
            "answer_flag": pa.array([None] * len(texts), pa.string()),
        }
    )
    return {m.check: m for m in Rules(config).measure_batch(rows)}


def passes(check: str, text: str, **changes: Any) -> bool:
    return bool(measure([text], **changes)[check].passed_rows[0])


@pytest.mark.parametrize("quote", ["'", "’", "‘", "ʼ", "＇", "´"])
def test_d04_a_refusal_is_one_with_any_apostrophe(quote: str) -> None:
    said = "I'm sorry, but I can't help with that request.".replace("'", quote)
    assert not passes("rules.refusal", said)


def test_the_evidence_is_quoted_from_the_text_as_it_was_written() -> None:
    text = "Ünïcode “first”: \u00adso — see [12] ﬁnally."
    found = measure([text, "é" * 9 + " <|im_end|>"])
    assert found["rules.citations"].detail[0] == "[12] ﬁnally."
    assert found["rules.template_leftovers"].detail[1] == "<|im_end|>"


@pytest.mark.parametrize(
    "text",
    [
        'Customer reply: "Hello, I\'m sorry that your parcel is late. We sent it again."',
        'The captain said: "I cannot give up the ship"',
        "Working as an AI engineer, she writes tests before she writes code.",
    ],
)
def test_d05_words_of_a_refusal_in_a_quotation_or_a_story_are_none(text: str) -> None:
    assert passes("rules.refusal", text)


@pytest.mark.parametrize("text", ["Read a[0] first.", "In the range [0, 1].", "Spring (march 2019)."])
def test_d05_an_index_a_range_and_a_date_are_no_citations(text: str) -> None:
    assert passes("rules.citations", text)


def test_d05_a_citation_behind_something_that_only_looks_like_one_is_found() -> None:
    text = "In the range [0, 1] the rate a[3] grows (March 2019), as shown before [12]."
    assert measure([text])["rules.citations"].detail[0] == "[12]."


@pytest.mark.parametrize("text", [r"So \boxed{\frac{3}{4}}.", r"\frac{1}{\sqrt{2}}", "#### 15"])
def test_d03_the_recipe_of_maths_keeps_latex(text: str) -> None:
    found = measure([f"The sum of both parts is what we look for. {text}"], "math_filters.yaml")
    assert [m.check for m in found.values() if not m.passed_rows[0]] == []


def test_d03_the_instruction_of_a_repair_does_not_forbid_braces() -> None:
    instruction = str(REASONS["template_leftover"].instruction)
    assert "no braces" not in instruction
    assert "Formulas and code stay" in instruction


def test_d06_a_card_is_flagged_and_lists_of_numbers_are_none() -> None:
    heights = "The heights were 25 30 41 52 60 75 83 in the years 2000 2005 2010 2015."
    found = measure([heights, "Pay by 4111 1111 1111 1111."])["safety.pii_card"]
    assert found.value is not None
    assert found.value.tolist() == [0, 1]
    assert found.passed_rows.all()
    rejected = measure(["Pay by 4111 1111 1111 1111."], pii={"card": "reject"})
    assert not rejected["safety.pii_card"].passed_rows[0]


@pytest.mark.parametrize(
    "text",
    [
        "[THINK]The user wants four.[/THINK] Four.",
        "Four. <thinking>Was it four?</thinking>",
        "Hm. <seed:think>Count.</seed:think> Four.",
        "<inner_thoughts>Count.</inner_thoughts> Four.",
        "<reason>Count.</reason> Four.",
        "<unused94>thought\nCount.<unused95>Four.",
        "Count.assistantfinalFour.",
        "[gMASK]<sop>Four.",
        "Four.<end_of_utterance>",
    ],
)
def test_d11_marks_of_reasoning_inside_an_answer_are_leftovers(text: str) -> None:
    assert not passes("rules.template_leftovers", text)


LANGUAGES = {
    "hi": "नदी तलछट को दूर समुद्र तक ले जाती है और किनारों पर उपजाऊ मिट्टी छोड़ती है।",
    "zh": "河流把泥沙带到遥远的大海，并在两岸留下肥沃的土壤。",
    "ru": "Река несёт осадки к далёкому морю и оставляет на берегах плодородную почву.",
    "ar": "يحمل النهر الرواسب إلى البحر البعيد ويترك تربة خصبة على الضفتين.",
    "de": "Der Fluss trägt Sedimente zum fernen Meer und lässt an den Ufern fruchtbaren Boden zurück.",
    "fi": "Joki kuljettaa sedimenttiä kaukaiseen mereen ja jättää rannoille hedelmällistä maata.",
}


@pytest.mark.parametrize(("language", "text"), LANGUAGES.items())
def test_d23_english_verbs_are_not_asked_of_other_languages(language: str, text: str) -> None:
    verb = measure([text])["rules.action_verb"]
    assert verb.passed_rows[0]
    assert not verb.known[0]
    assert verb.not_applied == {0: language}


def test_d23_a_language_without_a_list_of_refusals_is_said_not_passed() -> None:
    refusal = measure([LANGUAGES["fi"], LANGUAGES["de"]])["rules.refusal"]
    assert refusal.not_applied == {0: "fi"}
    assert refusal.known.tolist() == [False, True]


def test_d23_a_list_per_language_is_applied_to_that_language_only() -> None:
    verbs = {"de": ["mess*", "vergleich*"], "zh": ["测量"]}
    texts = [
        "Wir messen die Rate und vergleichen sie mit der Rate der anderen Gruppe.",
        "Der Himmel ist blau und das Gras ist grün, weil das Licht gestreut wird.",
        "我们测量速率。", "天空是蓝色的。", "The sky is blue and the grass is green in June.",
    ]  # fmt: skip
    found = measure(texts, allowed_action_verbs=verbs)["rules.action_verb"]
    assert found.passed_rows.tolist() == [True, False, True, False, False]
    assert not found.not_applied


def test_d23_a_plain_list_of_an_older_file_is_english() -> None:
    changes: dict[str, Any] = {"refusal_patterns": [r"\bi shall not\b"], "allowed_action_verbs": ["measure"]}
    texts = ["I shall not say what it is that you have there.", LANGUAGES["zh"]]
    refusal = measure(texts, **changes)["rules.refusal"]
    assert refusal.passed_rows.tolist() == [False, True]
    assert refusal.not_applied == {1: "zh"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [({"english": ["x"]}, r"english.*no language that can be told apart"),
     ({"de": ["X"]}, "lower case"), ({"de": [""]}, "matches every answer")],
)  # fmt: skip
def test_a_wrong_list_by_language_names_its_key(patterns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(["x"], refusal_patterns=patterns)


def test_norwegian_is_no_false() -> None:
    """YAML 1.1 reads the key `no` as false."""
    assert passes("rules.refusal", "Elva er lang.", refusal_patterns={False: ["kan ikke hjelpe"]})


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("```python\ndef f(x):\n    return x\n```", "zxx"),
        ("$$\\int_0^1 x\\,dx = \\frac{1}{2}$$", "zxx"),
        ("12 + 30 = 42", "zxx"),
        ("這是繁體中文的句子。", "zh"),
        ("漢字だけではない日本語の文です。", "ja"),
        ("한국어 문장입니다.", "ko"),
        ("นี่คือประโยคภาษาไทย", "th"),
        ("Це українське речення про річку та море.", "uk"),
        ("این یک جمله فارسی درباره رودخانه است.", "fa"),
    ],
)
def test_languages_are_told_apart(text: str, language: str) -> None:
    assert identify_prose(text) == language


def test_the_language_is_the_same_from_several_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(identify_language, [*LANGUAGES.values()] * 20))
    assert found == [*LANGUAGES] * 20
