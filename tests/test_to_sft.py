"""Packaging: the samples, their files, and when there is nothing to train on."""

import json
import subprocess
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from nexa_distill import filter_pairs, sample_gate, to_sft
from nexa_distill.contracts import TABLES
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.settings.pipeline import DistillConfig, Packaging
from nexa_distill.storage.tables import read_table
from nexa_distill.text.reasoning import split_reasoning
from tests import warm
from tests.support.answers import GOOD, REPOSITORY, answer, collect, project, write_answers

SYSTEM = (REPOSITORY / "nexa_distill/prompts/system_toolproto.txt").read_text().strip()
SPLIT = ["train", "train", "val", "test"]
HOSTILE = "NUL \x00, lines \u2028\u2029\x85\x0b\x1c, BOM \ufeff, rtl \u202e, \U0001d4b3, \r\n"


def gated(folder: Path, rows: list[dict[str, Any]] | None = None) -> DistillConfig:
    """A project whose answers went through the rules and SampleGate."""
    config = project(folder)
    collect(config, rows or [answer(n, split=SPLIT[n % 4]) for n in range(8)])
    filter_pairs.run(config)
    sample_gate.run(config)
    return config


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_a_sample_is_what_the_teacher_was_asked_and_what_it_said(tmp_path: Path) -> None:
    config = gated(tmp_path, [answer(0, system_prompt="Be brief."), answer(1)])
    to_sft.run(config)
    samples = read_table(config.storage.path_of("sft_parquet"), TABLES["sft_parquet"]).to_pylist()
    asked = [[(m["role"], m["content"]) for m in s["messages"]] for s in samples]
    assert asked == [
        [("system", "Be brief."), ("user", "Propose hypothesis 0."), ("assistant", GOOD)],
        [("system", SYSTEM), ("user", "Propose hypothesis 1."), ("assistant", GOOD)],
    ]
    assert samples[0]["sample_id"] == answer(0)["sample_id"]


def test_without_any_system_prompt_there_is_no_system_message() -> None:
    roles = [m["role"] for m in to_sft.build_record(answer(0), None)["messages"]]
    assert roles == ["user", "assistant"]
    with pytest.raises(InputError, match="no answer to train on"):
        to_sft.build_record(answer(0, None), None)


def test_datasets_opens_every_file_and_sees_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    config = gated(tmp_path)
    counts = to_sft.run(config)
    assert counts == {"train": 4, "val": 2, "test": 2}
    splits = config.storage.path_of("splits")
    files = {name: str(splits / f"{name}.jsonl") for name in counts}
    cache = str(tmp_path / "cache")
    by_split = datasets.load_dataset("json", data_files=files, cache_dir=cache)
    assert {name: len(rows) for name, rows in by_split.items()} == counts
    table = str(config.storage.path_of("sft_parquet"))
    whole = datasets.load_dataset("parquet", data_files=table, cache_dir=cache)["train"]
    assert whole.column_names == TABLES["sft_parquet"].schema.names
    trained = [row for row in whole if row["split"] == "train"]
    assert [r["messages"] for r in by_split["train"]] == [r["messages"] for r in trained]


def test_splits_hold_exactly_the_lines_of_the_whole_file(tmp_path: Path) -> None:
    config = gated(tmp_path)
    to_sft.run(config)
    whole = lines(config.storage.path_of("sft_jsonl"))
    for name in to_sft.SPLITS:
        expected = [line for line in whole if json.loads(line)["split"] == name]
        assert lines(config.storage.path_of("splits") / f"{name}.jsonl") == expected


def test_f25_hostile_text_survives_and_stays_one_line(tmp_path: Path) -> None:
    config = gated(tmp_path, [answer(0, GOOD + HOSTILE), answer(1, GOOD, user_prompt=HOSTILE)])
    to_sft.run(config)
    path = config.storage.path_of("sft_jsonl")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2, "in every reader's opinion"
    samples = [json.loads(line) for line in lines(path)]
    assert samples[0]["messages"][2]["content"] == (GOOD + HOSTILE).strip()  # the ends only
    assert samples[1]["messages"][1]["content"] == HOSTILE
    stored = read_table(config.storage.path_of("sft_parquet"), TABLES["sft_parquet"]).to_pylist()
    assert [to_sft.without_nulls(row) for row in stored] == samples


@given(st.text(st.characters(), max_size=40))
def test_f25_any_text_goes_through_one_line_of_json(text: str) -> None:
    line = to_sft.json_line({"content": text})
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"content": text}
    line.encode()


def test_f25_a_lone_surrogate_goes_through_one_line_of_json() -> None:
    line = to_sft.json_line(to_sft.build_record(answer(0, "\ud800 alone"), None))
    assert json.loads(line.encode())["messages"][-1]["content"] == "\ud800 alone"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("input_output", {"input": f"{SYSTEM}\n\nPropose hypothesis 0.", "output": GOOD}),
        ("alpaca", {"instruction": SYSTEM, "input": "Propose hypothesis 0.", "output": GOOD}),
        ("sharegpt", {"id": answer(0)["sample_id"], "conversations": [
            {"from": "system", "value": SYSTEM},
            {"from": "human", "value": "Propose hypothesis 0."},
            {"from": "gpt", "value": GOOD}]}),
    ],
)  # fmt: skip
def test_other_forms_stand_beside_the_samples(form: str, expected: dict[str, Any], tmp_path: Path) -> None:
    config = gated(tmp_path, [answer(0)])
    to_sft.run(config)
    to_sft.run(config, form=form)
    path = config.storage.path_of("sft_jsonl").with_name(f"sft_dataset.{form}.jsonl")
    assert [json.loads(line) for line in lines(path)] == [expected]
    assert to_sft.run(config, form=form) is None


def test_the_same_answers_give_the_same_bytes_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    first, second = (gated(_folder(tmp_path, name)) for name in ("a", "b"))
    to_sft.run(first)
    to_sft.run(second)
    for key in ("sft_parquet", "sft_jsonl"):
        assert first.storage.path_of(key).read_bytes() == second.storage.path_of(key).read_bytes()
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}
    assert to_sft.run(first) is None
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files} == before


def _folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_f34_packaging_refuses_a_stale_or_changed_table(tmp_path: Path) -> None:
    config = gated(tmp_path)
    to_sft.run(config)
    collect(config, [answer(n) for n in range(9)])
    with pytest.raises(InputMissing, match=r"earlier .*teacher_outputs_v1.*sample_gate"):
        to_sft.run(config)
    filter_pairs.run(config)
    with pytest.raises(InputMissing, match="earlier"):
        to_sft.run(config)
    sample_gate.run(config)
    assert to_sft.run(config) == {"train": 9}
    assert not (config.storage.path_of("splits") / "val.jsonl").exists()
    kept = config.storage.path_of("filtered_dataset")
    kept.write_bytes(kept.read_bytes() + b"x")
    with pytest.raises(InputMissing, match=r"is not the file that .* seals"):
        to_sft.run(config)


def test_nothing_kept_names_the_thresholds_that_rejected_most(tmp_path: Path) -> None:
    rows = [answer(n, "no") for n in range(3)] + [answer(3, finish_reason="length")]
    config = gated(tmp_path, rows)
    with pytest.raises(InputError, match=r"3 too_short .*min_char_length.*1 truncated") as error:
        to_sft.run(config)
    assert "rejections.parquet" in str(error.value)
    assert not config.storage.path_of("sft_jsonl").exists()


def test_an_empty_train_split_is_refused_with_the_counts(tmp_path: Path) -> None:
    config = gated(tmp_path, [answer(0, split="val"), answer(1, split="test")])
    with pytest.raises(InputError, match="0 train, 1 val, 1 test"):
        to_sft.run(config)


def test_a_split_that_is_none_is_refused(tmp_path: Path) -> None:
    src = write_answers(tmp_path / "kept.parquet", [answer(0, split="../elsewhere")])
    with pytest.raises(InputError, match="elsewhere"):
        to_sft.run(project(tmp_path), src=src)


def test_regen_adds_gated_answers_and_refuses_ungated_ones(tmp_path: Path) -> None:
    config = gated(tmp_path, [answer(0), answer(1), answer(2, attempt=2)])
    rows = [answer(1, f"{GOOD} Better.", attempt=1), answer(2, attempt=1), answer(3, attempt=1)]
    more = write_answers(tmp_path / "more.parquet", rows)
    with pytest.raises(InputError, match="have not passed the gates"):
        to_sft.run(config, regen=more)
    filter_pairs.run(config, src=[more], dst=tmp_path / "passed.parquet")
    checks, passed = [tmp_path / "passed.checks.parquet"], tmp_path / "gated.parquet"
    sample_gate.run(config, src=[more], checks=checks, dst=passed)
    assert to_sft.run(config, regen=passed) == {"train": 4}
    samples = [json.loads(line) for line in lines(config.storage.path_of("sft_jsonl"))]
    keys = {(s["sample_id"], s["attempt"]) for s in samples}
    assert keys == {(answer(n)["sample_id"], a) for n, a in ((0, 0), (1, 1), (2, 2), (3, 1))}
    collect(config, rows, "regen_dataset")
    with pytest.raises(InputError, match="have not passed the gates"):
        to_sft.run(config, regen=config.storage.path_of("regen_dataset"))


def test_the_card_says_when_lengths_are_an_estimate_and_counts_with_a_tokenizer(tmp_path: Path) -> None:
    config = gated(tmp_path)
    to_sft.run(config)
    card = config.storage.path_of("sft_parquet").with_name("README.md")
    text = card.read_text()
    assert "estimated at 4 bytes" in text
    assert "| sample_gate | 8 | 8 | 0 |" in text
    assert "| val | 2 |" in text
    words = Tokenizer(models.WordLevel({"?": 0}, "?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = config.storage.path_of("models") / "bundled"
    folder.mkdir(parents=True)
    words.save(str(folder / "tokenizer.json"))
    card.unlink()
    to_sft.run(config)
    expected = len(SYSTEM.split()) + 3 + len(GOOD.split()) + 3 * 5
    assert f"| {expected} | {expected} | {expected} |" in card.read_text()
    assert f"counted with {folder / 'tokenizer.json'}" in card.read_text()


def test_names_from_data_are_no_markup_in_the_card(tmp_path: Path) -> None:
    config = gated(tmp_path, [answer(0, domain="a | b\n# <b>`c`"), answer(1), answer(2)])
    to_sft.run(config)
    text = config.storage.path_of("sft_parquet").with_name("README.md").read_text()
    assert "| `` a \\| b # <b>`c` `` | 1 |\n" in text


def test_the_packaging_script_runs_without_arguments_but_the_config(tmp_path: Path) -> None:
    gated(tmp_path)
    script = REPOSITORY / "scripts/python/deployment/run_packaging.py"
    command = [warm.python(), str(script), "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:20]) == (0, "packaging: 8 samples")
    refused = subprocess.run(
        [*command, "--src", str(tmp_path / "absent.parquet")], cwd=REPOSITORY,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 66


def test_t06_d12_reasoning_is_dropped_or_kept_in_the_target_as_the_settings_say(tmp_path: Path) -> None:
    broken = "It ends.\n</think>\nNo."
    rows = [answer(0, reasoning_output="Hm.\nSo."), answer(1), answer(2, reasoning_output=broken)]
    config = gated(tmp_path, rows)
    card = config.storage.path_of("sft_parquet").with_name("README.md")

    def targets() -> list[str]:
        found = map(json.loads, lines(config.storage.path_of("sft_jsonl")))
        return [sample["messages"][-1]["content"] for sample in found]

    to_sft.run(config)
    assert targets() == [GOOD, GOOD, GOOD]
    assert "`packaging.reasoning: drop`" in card.read_text()
    kept = config.model_copy(update={"packaging": Packaging(reasoning="keep")})
    assert to_sft.run(kept) is not None, "the settings are another"
    assert targets() == [f"<think>\nHm.\nSo.\n</think>\n\n{GOOD}", GOOD, GOOD]
    assert split_reasoning(targets()[0]) == ("Hm.\nSo.", GOOD)
    assert "in 1 of them" in card.read_text()
    assert to_sft.run(kept) is None
