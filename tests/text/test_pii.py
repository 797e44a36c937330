"""Personal data and secrets: what is found, what is not, and what is left when it is redacted."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nexa_distill.text.pii import SCREEN, Kind, find_spans, passes_luhn, redact_text

FOUND: list[tuple[Kind, str]] = [
    ("email", "jane.doe+lab@example.co.uk"),
    ("email", "x_1@a-b.org"),
    ("phone", "+44 20 7946 0958"),
    ("phone", "+14155550132"),
    ("phone", "(415) 555-0132"),
    ("phone", "415-555-0132"),
    ("phone", "415.555.0132"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("secret", "sk-" + "a1B2" * 8),
    ("secret", "ghp_" + "a" * 36),
    ("secret", "AKIA" + "Z" * 16),
    ("secret", "xoxb-1234567890-abc"),
    ("secret", "eyJhbGciOiJ9.eyJzdWIiOiIx.c2lnbmF0dXJl"),
    ("secret", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"),
]
NOT_FOUND: list[tuple[Kind, str]] = [
    ("email", "user@localhost"),
    ("email", "a @ b.com"),
    ("phone", "2019-2020"),
    ("phone", "between 100 and 200 mg"),
    ("phone", "NCT 555-0132"),
    ("phone", "1.234.567.8901"),
    ("card", "4111 1111 1111 1112"),
    ("card", "1234567890123"),
    ("card", "0.4111111111111111"),
    ("secret", "sk-learn"),
    ("secret", "task-aaaaaaaaaaaaaaaaaaaaaaaa"),
    ("secret", "the private key is kept safe"),
]


@pytest.mark.parametrize(("kind", "text"), FOUND)
def test_it_is_found_whole_and_passes_the_screen(kind: Kind, text: str) -> None:
    said = f"Write to {text}, please."
    assert [said[start:end] for start, end in find_spans(said, kind)] == [text]
    assert redact_text(said, [kind]) == f"Write to [{kind}], please."
    assert pc.match_substring_regex(pa.array([said.lower()]), SCREEN[kind]).to_pylist() == [True]


@pytest.mark.parametrize(("kind", "text"), NOT_FOUND)
def test_what_only_looks_like_it_is_left_alone(kind: Kind, text: str) -> None:
    assert not list(find_spans(f"see {text} there", kind))


def test_of_two_that_overlap_the_longer_is_redacted_and_nothing_is_left_of_it() -> None:
    both = "sk-" + "a" * 24 + "@example.org"
    assert redact_text(f"{both} and c@d.org", ["email", "secret"]) == "[email] and [email]"
    assert redact_text(both, []) == both


def test_luhn() -> None:
    assert passes_luhn("79927398713")
    assert not passes_luhn("79927398710")
