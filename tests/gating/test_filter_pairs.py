"""The rules: one line per reason, the plain-Python reference, and the stage on real files."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.filtering.reference import Reference, repeated_share, spaced, token_count, window_starts
from nexa_distill import filter_pairs
from nexa_distill.contracts import ANSWER_FLAGS, CHECKS, OUTPUTS, TABLES
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.gating.text_rules import loosen_repeats
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.tables import read_table, table_writer
from nexa_distill.text.repetition import _character_code, measure_tokens
from tests import warm
from tests.support.answers import GOOD, REPOSITORY, answer, collect, project, write_answers

FILTERS = REPOSITORY / "configs/filters.yaml"
LOOP = "the cell measures the cell and then " * 20
FENCED = f"{GOOD}\n```python\nprint(1)\n"


def shipped(**changes: Any) -> FilterConfig:
    return load_yaml(FILTERS, FilterConfig, changes)


def reasons_of(row: dict[str, Any], config: FilterConfig, tmp_path: Path) -> list[str]:
    """All reasons that the rules have against one answer, from the checks table."""
    src = write_answers(tmp_path / "answers.parquet", [row])
    checks = tmp_path / "checks.parquet"
    filter_pairs.run(
        project(tmp_path), filters=config, src=[src], dst=tmp_path / "kept.parquet",
        checks=checks, report=tmp_path / "report.json",
    )  # fmt: skip
    table = read_table(checks, TABLES["rules_checks"]).to_pylist()
    return [check["reason"] for check in table if check["ok"] is not True]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (answer(output="Too short to measure."), "too_short"),
        (answer(output="measure " * 1100 + "x" * 200), "too_long"),
        (answer(output=GOOD[:140]), "too_few_tokens"),
        (answer(output=" ".join(f"measure {i}" for i in range(1100))), "too_many_tokens"),
        (answer(output=" \n\t "), "empty_output"),
        (answer(finish_reason="length"), "truncated"),
        (answer(finish_reason="content_filter"), "truncated"),
        (answer(finish_reason=None), "check_missing"),
        (answer(output=" ".join(f"word{i}" for i in range(120))), "no_action_verb"),
        (answer(output=f"{GOOD} As shown [3, 12]."), "banned_citation"),
        (answer(output=f"{GOOD} As Smith et al. say."), "banned_citation"),
        (answer(output=f"{GOOD} So it is (Smith and Lee, 2019)."), "banned_citation"),
        (answer(output=f"{GOOD} See DOI: 10.1000/1."), "banned_citation"),
        (answer(output=f"{GOOD} Lorem ipsum."), "forbidden_pattern"),
        (answer(output=FENCED), "unbalanced_code_fence"),
        (answer(output=f"{GOOD} <|im_end|>"), "template_leftover"),
        (answer(output=f"{GOOD} {{context}}"), "template_leftover"),
        (answer(output=f"As an AI, I may err. {GOOD}"), "refusal"),
        (answer(output=f"I cannot provide this. {GOOD}"), "refusal"),
        (answer(output=f"I'm sorry. {GOOD}"), "refusal"),
        (answer(output=LOOP), "repetition"),
        (answer(output=f"{GOOD} Call 123-45-6789."), "safety_flag"),
        (answer(output=f"{GOOD} Key: sk-aaaaaaaaaaaaaaaaaaaaaaaa."), "secret"),
        (answer(answer_flag="malformed"), "malformed_response"),
        (answer(answer_flag="content_filter"), "content_filter"),
        (answer(answer_flag="refused"), "refusal"),
        (answer(answer_flag="schema_mismatch"), "schema_mismatch"),
    ],
)
def test_each_fault_of_an_answer_has_its_reason(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reason in reasons_of(row, shipped(), tmp_path)


@pytest.mark.parametrize(
    "output",
    [
        GOOD,
        f"{GOOD}\n```python\nprint(1)\n```",
        GOOD.replace("measure", "Measured"),
        f"{GOOD} A cannot-link constraint holds; the mission is an aim (see above), x[i] < y.",
        f"{GOOD} |---|---|---|---| ===================================",
        f"{GOOD} naïve Ünïcode — “quoted” 細胞 \x00 \u2028 done",
    ],
)
def test_a_sound_answer_has_no_reason_against_it(output: str, tmp_path: Path) -> None:
    assert reasons_of(answer(output=output), shipped(), tmp_path) == []


def test_flagged_personal_data_is_counted_and_passes_without_being_repeated(tmp_path: Path) -> None:
    row = answer(output=f"{GOOD} Write to a@b.org or c@d.org.")
    assert reasons_of(row, shipped(), tmp_path) == []
    checks = read_table(tmp_path / "checks.parquet", TABLES["rules_checks"]).to_pylist()
    (found,) = [check for check in checks if check["check"] == "safety.pii_email"]
    assert (found["ok"], found["value"]) == (True, 2.0)
    assert "a@b.org" not in str(checks)


def test_an_answer_of_null_is_empty_and_its_other_checks_are_missing(tmp_path: Path) -> None:
    reasons = reasons_of(answer(output=None), shipped(), tmp_path)
    assert reasons[0] == "empty_output"
    assert set(reasons[1:]) == {"check_missing"}


@pytest.mark.parametrize(
    ("flag", "columns", "reason"),
    [
        ("malformed", {"finish_reason": None}, "malformed_response"),
        ("refused", {}, "refusal"),
        ("content_filter", {"finish_reason": "content_filter"}, "content_filter"),
        ("tool_calls", {"finish_reason": "tool_calls"}, "empty_output"),
        ("no_text", {}, "empty_output"),
    ],
)
def test_the_first_reason_against_an_answer_without_text_is_why_there_is_none(
    flag: str, columns: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    row = answer(output=None, answer_flag=flag, **columns)
    assert reasons_of(row, shipped(), tmp_path)[0] == reason


@pytest.mark.parametrize("flag", ["truncated", "tool_calls", "no_text", None])
def test_a_flag_that_is_not_rejected_is_no_reason(flag: str | None, tmp_path: Path) -> None:
    assert reasons_of(answer(answer_flag=flag), shipped(), tmp_path) == []


def test_the_rule_of_flags_can_be_turned_off(tmp_path: Path) -> None:
    row = answer(answer_flag="refused")
    assert reasons_of(row, shipped(reject_flags=["malformed"]), tmp_path) == []
    assert reasons_of(row, shipped(reject_flags=[]), tmp_path) == []


def test_each_flag_is_counted_under_its_own_reason(tmp_path: Path) -> None:
    config = project(tmp_path)
    flags = ["malformed", None, "refused", "malformed", "schema_mismatch", None]
    collect(config, [answer(i, answer_flag=flag) for i, flag in enumerate(flags)])
    summary = filter_pairs.run(config)
    assert summary is not None
    assert summary.reasons == {"malformed_response": 2, "refusal": 1, "schema_mismatch": 1}
    checks = read_table(config.storage.path_of("rules_checks"), TABLES["rules_checks"]).to_pylist()
    found = [c["reason"] for c in checks if c["check"] == "rules.answer_flag"]
    expected = ["malformed_response", None, "refusal", "malformed_response", "schema_mismatch"]
    assert found == [*expected, None]


@pytest.mark.parametrize("text", ["{", "NaN", "[" * 100_000, '{"a": 1} done'])
def test_json_is_checked_where_the_task_asks_for_it(text: str, tmp_path: Path) -> None:
    config = shipped(
        require_json_for=["text2sql"], min_char_length=None, min_token_length=None,
        require_action_verb=False, max_char_length=None, max_token_length=None,
    )  # fmt: skip
    asked = answer(output=text, template_name="text2sql")
    assert reasons_of(asked, config, tmp_path) == ["invalid_json"]
    assert reasons_of(answer(output=text), config, tmp_path) == []
    fine = answer(output=' {"a": [1, null]}\n', template_name="text2sql")
    assert reasons_of(fine, config, tmp_path) == []


@pytest.mark.parametrize("form", ["measure", "measures", "measured", "measuring", "planned",
                                  "studies", "testing", "BUILT"])  # fmt: skip
def test_an_inflected_verb_counts_as_an_action_verb(form: str, tmp_path: Path) -> None:
    config = shipped(allowed_action_verbs=["measure", "plan", "study", "test", "built"])
    words = " ".join(f"word{i}" for i in range(120))
    assert reasons_of(answer(output=f"{words} {form}."), config, tmp_path) == []
    assert reasons_of(answer(output=f"{words} un{form}ly."), config, tmp_path) == ["no_action_verb"]


PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["measure ", "Testing the cell ", "the cell and then the cell and then ", "[12]", "```",
         "et al", "As an AI", "I can't help", "{context}", "<|im_end|>", "\u212aelvin ", "\u017f",
         "細胞", "\v", "\x00", "\u2028", "é", "123-45-6789", "(smith, 2019)", "lorem ipsum", "İ"]
    ),
)  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "teacher_output": st.none() | st.lists(PIECES, max_size=30).map("".join),
            "finish_reason": st.sampled_from(["stop", "stop", "stop", "length", None]),
            "template_name": st.sampled_from(["hypothesis", "json"]),
            "answer_flag": st.sampled_from([None, None, None, *ANSWER_FLAGS]),
        }
    ),
    max_size=12,
)


BASE = shipped()  # read once: it takes longer than checking


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, limits=st.tuples(st.integers(1, 40), st.integers(1, 8), st.floats(0, 1)))
def test_the_fast_rules_keep_exactly_what_the_plain_reference_keeps(
    rows: list[dict[str, Any]], limits: tuple[int, int, float]
) -> None:
    config = BASE.model_copy(
        update={
            "min_char_length": limits[0], "min_token_length": limits[1],
            "max_repetition": limits[2], "max_char_length": 300, "max_token_length": 60,
            "require_json_for": ["json"], "require_action_verb": limits[1] % 2 == 0,
        }
    )  # fmt: skip
    columns = ["teacher_output", "finish_reason", "template_name", "answer_flag"]
    frame = pd.DataFrame(rows, columns=columns)
    kept = filter_pairs.apply_filters(frame, config)
    reference = Reference(config)
    assert list(kept.index) == [i for i, row in enumerate(rows) if reference.keeps(row)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=12).map(lambda parts: "".join(parts) * 2), max_size=300))
def test_tokens_and_repetition_are_measured_as_the_reference_measures_them(texts: list[str]) -> None:
    tokens = measure_tokens(pa.array(texts, pa.string()))
    expected = [window_starts(spaced(text)) for text in texts]
    assert tokens.counts.tolist() == [token_count(text) for text in texts]
    assert tokens.words.tolist() == [len(starts) for starts in expected]
    shares = [repeated_share(spaced(text), starts) for text, starts in zip(texts, expected, strict=True)]
    # Beyond ASCII 63 characters of a kind have a byte each; those that share one count as equal.
    others = {char for text in texts for char in text if not char.isascii()}
    if len({_character_code(char) for char in others}) == len(others):
        assert tokens.shares.tolist() == shares


def test_apply_filters_keeps_index_and_columns_and_names_a_missing_column() -> None:
    frame = pd.DataFrame([answer(0), answer(1, "no"), answer(2)], index=[7, 8, 9])
    kept = filter_pairs.apply_filters(frame, shipped())
    assert list(kept.index) == [7, 9]
    assert list(kept.columns) == OUTPUTS.names
    assert list(filter_pairs.apply_filters(frame.drop(columns="answer_flag"), shipped()).index) == [
        7, 9,
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"teacher_output is missing.*teacher_outputs"):
        filter_pairs.apply_filters(frame.rename(columns={"teacher_output": "teacher_outputs"}), shipped())


def test_rows_are_conserved_and_every_answer_has_one_row_per_rule(tmp_path: Path) -> None:
    config = project(tmp_path)
    rows = [answer(i, GOOD if i % 3 else "no") for i in range(20_000)]
    collect(config, rows)
    summary = filter_pairs.run(config)
    assert summary is not None
    assert (summary.total, summary.kept) == (20_000, sum(bool(i % 3) for i in range(20_000)))
    assert summary.kept + summary.reasons.total() == summary.total
    kept = read_table(config.storage.path_of("rule_filtered"), TABLES["rule_filtered"])
    assert kept.to_pylist()[:3] == [r for r in rows if r["teacher_output"] == GOOD][:3]
    checks = read_table(config.storage.path_of("rules_checks"), TABLES["rules_checks"])
    assert checks.schema.equals(CHECKS)
    names = checks["check"].unique().to_pylist()
    assert checks["check"].to_pylist() == names * 20_000
    assert checks["sample_id"].to_pylist()[:: len(names)] == [r["sample_id"] for r in rows]


def test_repaired_answers_are_checked_with_the_first_ones(tmp_path: Path) -> None:
    config = project(tmp_path)
    collect(config, [answer(0, "no")])
    collect(config, [answer(0, attempt=1)], "regen_dataset")
    summary = filter_pairs.run(config)
    assert summary is not None
    assert (summary.total, summary.kept) == (2, 1)


def test_a_second_run_changes_no_byte_and_a_new_threshold_runs_again(tmp_path: Path) -> None:
    config = project(tmp_path)
    collect(config, [answer(0), answer(1, "no")])
    filter_pairs.run(config)
    files = [p for p in (tmp_path / "processed").rglob("*") if p.is_file()]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}
    assert filter_pairs.run(config) is None
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files} == before
    assert filter_pairs.run(config, filters=shipped(max_repetition=0.5)) is not None
    again = filter_pairs.run(config, filters=shipped(max_repetition=0.5, sample_gate={"judge_f_threshold": 0.9}))
    assert again is None, "SampleGate's thresholds decide no check"


def test_f28_a_torn_or_wrong_table_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config, src = project(tmp_path), tmp_path / "a.parquet"
    out: dict[str, Any] = {"dst": tmp_path / "k.parquet", "checks": tmp_path / "c.parquet"}
    write_answers(src, [])
    with pytest.raises(InputError, match="0 answers"):
        filter_pairs.run(config, src=[src], **out)
    with pytest.raises(InputMissing, match="no such file"):
        filter_pairs.run(config, src=[tmp_path / "absent.parquet"], **out)
    renamed = pa.Table.from_pylist([answer(0)], schema=OUTPUTS).rename_columns(
        ["teacher_outputs" if n == "teacher_output" else n for n in OUTPUTS.names]
    )
    pq.write_table(renamed, src)
    with pytest.raises(InputError, match=r"teacher_output is missing"):
        filter_pairs.run(config, src=[src], **out)
    whole = write_answers(src, [answer(i) for i in range(50)]).read_bytes()
    for end in range(0, len(whole), 997):
        src.write_bytes(whole[:end])
        with pytest.raises(InputError, match=str(src)):
            filter_pairs.run(config, src=[src], **out)
    write_answers(src, [answer(0), answer(0)])
    with pytest.raises(InputError, match="occurs twice"):
        filter_pairs.run(config, src=[src], **out)
    assert not any(path.exists() for path in out.values())


def test_f25_text_that_is_not_utf8_is_refused_with_the_sample(tmp_path: Path) -> None:
    row = pa.Table.from_pylist([answer(0)], schema=OUTPUTS)
    broken = pa.array([b"lone surrogate \xed\xa0\x80"]).view(pa.string())
    place = OUTPUTS.names.index("teacher_output")
    with table_writer(tmp_path / "a.parquet", OUTPUTS) as out:
        out.write(row.set_column(place, OUTPUTS.field("teacher_output"), broken))
    with pytest.raises(InputError, match=f"sample_id {answer(0)['sample_id']}.*not UTF-8"):
        filter_pairs.run(project(tmp_path), src=[tmp_path / "a.parquet"], dst=tmp_path / "k.parquet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_gate": {"judge_f_threshold": 70}},
         "judge_f_threshold is 70: scores are 0..1, write 0.70"),
        ({"max_repetition": 30}, "max_repetition is 30: scores are 0..1, write 0.30"),
        ({"forbidden_patterns": ["(?=a)"]}, r"forbidden_patterns.0 is .*RE2 cannot compile"),
        ({"forbidden_patterns": ["TODO"]}, r"forbidden_patterns.0 .*lower case"),
        ({"refusal_patterns": [""]}, r"refusal_patterns.en.0 .*matches every answer"),
        ({"min_char_lenght": 3}, 'unknown key min_char_lenght .did you mean "min_char_length"'),
        ({"max_char_length": 50}, "max_char_length is 50: below min_char_length"),
        ({"allowed_action_verbs": []}, "no verb is allowed"),
        ({"reject_flags": ["malform"]}, 'reject_flags.0 is .malform.: .*did you mean "malformed"'),
        ({"reject_flags": ["truncated"]}, "reject_flags.0 is .truncated.: no answer_flag that"),
    ],
)  # fmt: skip
def test_a_wrong_setting_names_its_key_and_says_what_to_write(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shipped(**changes)


@pytest.mark.parametrize("pattern", [r"\bfoo\S", r"\p{Lu}x", r"a\.B".lower(), r"\x41"])
def test_upper_case_in_an_escape_is_no_upper_case(pattern: str) -> None:
    assert shipped(forbidden_patterns=[pattern]).forbidden_patterns == [pattern]


def test_the_documented_command_takes_the_filters_file(tmp_path: Path) -> None:
    config = project(tmp_path)
    collect(config, [answer(0), answer(1, "no")])
    command = [warm.python(), "-m", "nexa_distill.filter_pairs", "--config", str(FILTERS),
               "--pipeline-config", str(tmp_path / "config.yaml")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stdout[:26]) == (0, "rules: 1 of 2 answers pass")
    report = json.loads((config.storage.path_of("reports") / "rules/quality_report.json").read_text())
    assert report["reject_reason_counts"] == {"too_short": 1}


@pytest.mark.parametrize(
    ("pattern", "loose"),
    [
        ("a{2,80}b{0,40}c{1,99}?", "a{2,}b*c+?"),
        (r"[{1,20}]\{1,30}\\{0,40}", r"[{1,20}]\{1,30}\\*"),
        (r"[0-9]{1,3}\x{80}{4}", r"[0-9]{1,3}\x{80}{4}"),
    ],
)
def test_a_screen_has_no_long_repetitions(pattern: str, loose: str) -> None:
    """Classes and escaped braces stay; short repetitions too."""
    assert loosen_repeats(pattern) == loose
