"""The founding documents' steps and settings as their reader types them (numbers: worst first)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from nexa_distill import canonicalize, collect_teacher, dedup, filter_pairs, gates, regenerate_bad, sample_gate, to_sft
from nexa_distill.collection.requests.endpoint import open_endpoint
from nexa_distill.collection.requests.retry_policy import provider_message
from nexa_distill.errors import InputError, InputMissing, ProviderUnusable
from nexa_distill.journal.journal import Outcome
from nexa_distill.orchestration.planning import Request, make_plan
from nexa_distill.pipeline import DistillationPipeline
from nexa_distill.settings.pipeline import load_config
from nexa_distill.storage.atomic import write_json
from nexa_distill.storage.manifests import StageRun
from nexa_distill.text.secrets import is_variable_name, mask_secrets
from tests.repair.test_regenerate_bad import SAYS, collected, decide, rows
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.faults import files, prompts, put
from tests.teacher.ledger_teacher import ledger_teacher

SHIPPED = ROOT / "configs/distill_config.yaml"
SECRET = "sk-proj-0123456789abcdefSECRET"  # noqa: S105 - no key of anybody
# The settings that the distillation guide shows.
DOCUMENTED: dict[str, Any] = {
    "collection": {"teacher_model": "gpt-4o-mini", "regen_teacher_model": "o3-mini"},
    "storage": {
        "regen_dataset": "data/processed/distillation/filtered/teacher_regenerated_v1.parquet",
        "sft_jsonl": "data/processed/training/sft_v1.jsonl",
    },
}


def pasted(folder: Path, **changes: Any) -> Path:
    """A file with the documented settings, and nothing else."""
    file = folder / "pasted.yaml"
    file.write_text(yaml.safe_dump(DOCUMENTED | changes))
    return file


# 2. Answers have the name of the model that gave them.


def test_i02_a_model_that_the_started_server_has_not_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    made = workspace(tmp_path, provider="embedded", collection={"teacher_model": "gpt-4o-mini"})
    done = made.run("scripts/python/data_processing/run_full_data_gen.py", code=65)
    assert "`provider: openai`" in done.stderr
    assert "SmolLM2-135M-Instruct" in done.stderr
    assert not made.path("canonical").exists()
    with pytest.raises(InputError, match="`provider: openai`"):
        make_plan(Request(made.config), tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"collection": {"regen_teacher_model": "o3-mini"}},
        {"regeneration": {"models": ["SmolLM2-135M-Instruct", "o3-mini"]}},
    ],
)
def test_i02_the_models_of_repairs_too(tmp_path: Path, change: dict[str, Any]) -> None:
    made = workspace(tmp_path, provider="embedded", **change)
    with pytest.raises(InputError, match="o3-mini"):
        made.load().refuse_models_not_served()
    made.change(answers={"path": "answers.jsonl"})
    made.load().refuse_models_not_served()


def test_i02_no_request_reaches_a_server_that_has_another_model(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        file = tmp_path / "endpoint.json"
        write_json(file, {"base_url": teacher.base_url, "model": "small", "pid": 1})
        provider = load_config(SHIPPED).providers["embedded"].model_copy(update={"endpoint_file": str(file)})
        with pytest.raises(ProviderUnusable, match="has small"), open_endpoint("embedded", provider, "gpt-4o-mini"):
            pass
        with open_endpoint("embedded", provider, "small") as endpoint:
            assert endpoint.model == "small"


# 3. What a person rejected is not packaged by the documented steps.


def gated(folder: Path, base_url: str) -> Workspace:
    made = collected(workspace(folder, base_url, regeneration={"rounds": 0}))
    gates.run_gates(made.load())
    to_sft.run(made.load())
    return made


def test_i03_packaging_by_hand_refuses_while_a_decision_is_not_applied(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path, teacher.base_url)
        assert "s0004" in {row["sample_id"] for row in rows(made, "sft_parquet")}
        decide(made, "s0004", 0, "reject")
        before = files(made)
        done = made.run("nexa_distill.to_sft", code=66)
        assert "run_filtering.py" in done.stderr
        assert files(made) == before
        gates.run_gates(made.load())
        made.run("nexa_distill.to_sft")
    assert "s0004" not in {row["sample_id"] for row in rows(made, "sft_parquet")}


def test_i03_the_packaging_session_and_the_pipeline_object_apply_decisions_themselves(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path, teacher.base_url)
        decide(made, "s0004", 0, "reject")
        made.run("scripts/python/deployment/run_packaging.py")
        assert "s0004" not in {row["sample_id"] for row in rows(made, "sft_parquet")}
        decide(made, "s0005", 0, "reject")
        with pytest.raises(InputError, match="nothing to train on"):  # the last one was s0005
            DistillationPipeline(made.config).package_sft()


def test_i03_a_file_of_decisions_that_is_gone_is_not_taken_for_no_decisions(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path, teacher.base_url)
    labels = made.path("annotations")
    decide(made, "s0004", 0, "reject")
    gates.run_gates(made.load())
    labels.rename(tmp_path / "kept.jsonl")
    before = files(made)
    refused = [
        made.run("nexa_distill.to_sft", code=66).stderr,
        made.run("scripts/python/deployment/run_packaging.py", code=66).stderr,
    ]
    with pytest.raises(InputMissing) as by_object:
        DistillationPipeline(made.config).package_sft()
    for said in [*refused, str(by_object.value)]:
        assert f"{labels}: no such file" in said
        assert "run_filtering.py" in said
    assert files(made) == before
    (tmp_path / "kept.jsonl").rename(labels)
    made.run("nexa_distill.to_sft")
    labels.unlink()
    made.path("person_checks").unlink()
    (made.path("manifests") / "person" / "manifest.json").unlink()
    assert "person.parquet: no such" in made.run("nexa_distill.to_sft", code=66).stderr
    gates.run_gates(made.load())
    made.run("nexa_distill.to_sft")
    assert "s0004" in {row["sample_id"] for row in rows(made, "sft_parquet")}


def test_i03_the_gates_say_that_decisions_count_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path, teacher.base_url)
    decide(made, "s0004", 0, "reject")
    gates.run_gates(made.load())
    made.path("annotations").unlink()
    assert "is missing" not in capsys.readouterr().out
    gates.run_gates(made.load())
    assert f"{made.path('annotations')} is missing" in capsys.readouterr().out
    gates.run_gates(made.load())
    assert "is missing" not in capsys.readouterr().out


def test_i03_answers_asked_again_that_no_gate_has_seen_are_not_left_out_in_silence(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path, teacher.base_url)
        made.change(regeneration={"rounds": 1})
        regenerate_bad.run(made.load())
        assert "run_filtering.py" in made.run("nexa_distill.to_sft", code=66).stderr


# 4. No decisions yet, or a wrong path.


def test_i04_no_decisions_yet_or_a_wrong_path_is_one_line(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path, teacher.base_url)
    none = made.path("rejected_labels")
    done = made.run("nexa_distill.regenerate_bad", "--annotations", none, code=66)
    assert done.stderr.startswith(f"error: {none}: no such file")
    assert "ui_inspect.py" in done.stderr
    for path in (none, tmp_path):
        with pytest.raises(InputMissing, match="expected a JSONL file of decisions"):
            gates.run_repair_loop(made.load(), path)
    (tmp_path / "labels.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="not UTF-8"):
        regenerate_bad.run(made.load(), annotations=tmp_path / "labels.jsonl")


# 5. Answers that are added by --regen have passed the same gates.


def test_i05_answers_regenerated_elsewhere_are_not_packaged_without_the_gates(tmp_path: Path) -> None:
    seeds, dst = tmp_path / "seeds.jsonl", tmp_path / "regen.parquet"
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path, teacher.base_url)
        seeds.write_text('{"sample_id": "s0001", "action": "regenerate"}\n')
        regenerate_bad.run(made.load(), annotations=seeds, dst=dst)
    with pytest.raises(InputError, match="have not passed the gates"):
        to_sft.run(made.load(), regen=dst)
    with pytest.raises(InputError, match="have not passed the gates"):
        to_sft.run(made.load(), regen=made.path("rejections"))


# 6. Keys are not printed.


@pytest.mark.parametrize(
    "flags", [["--api-key", SECRET], [f"--api-key={SECRET}"], ["--api-key", "plain99"], ["--max-tok", "3"]]
)
def test_i06_flags_are_not_abbreviated_and_a_key_in_one_is_not_printed(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["collect_teacher", *flags])
    with pytest.raises(SystemExit, match="2"):
        collect_teacher.main()
    said = capsys.readouterr().err
    assert f"unrecognized arguments: {flags[0].partition('=')[0]}" in said
    assert not any(key in said for key in (SECRET, "plain99"))
    assert (".env" in said) == ("--api-key" in flags[0])


def test_i06_a_key_in_place_of_the_name_of_its_variable_is_not_printed(tmp_path: Path) -> None:
    done = workspace(tmp_path).run("nexa_distill.collect_teacher", "--api-key-env", SECRET, code=65)
    assert SECRET not in done.stderr + done.stdout
    assert "OPENAI_API_KEY" in done.stderr
    for key in ("0a1b2c3d4e5f60718293a4b5c6d7e8f9", "Ab3dEf6hIj9lMn2pQr5t", "a key"):
        with pytest.raises(InputError) as error:
            workspace(tmp_path, providers={"vllm": {"api_key_env": key}}).load()
        assert key not in str(error.value)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"provider said: bad key {SECRET}.", "provider said: bad key [secret]"),
        ("Authorization: Bearer abcdef123", "Authorization: Bearer [secret]"),
        ("api_key: 'abcdef123'", "api_key: '[secret]'"),
        ("--token-limit 256000", "--token-limit 256000"),
        ("write OPENAI_API_KEY=... into .env", "write OPENAI_API_KEY=... into .env"),
        ("sample_id sk_12345678, row 3", "sample_id sk_12345678, row 3"),
    ],
)
def test_i06_errors_mask_what_looks_like_a_key_and_nothing_else(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked
    assert is_variable_name("MY_KEY_2")


# 7. The documented settings as they are pasted.


def test_i07_documented_settings_need_no_extends_and_paths_are_not_doubled(tmp_path: Path) -> None:
    config = load_config(pasted(tmp_path))
    assert str(config.storage.path_of("sft_jsonl")) == "data/processed/training/sft_v1.jsonl"
    expected = load_config(SHIPPED).storage
    assert config.storage.path_of("regen_dataset") == expected.path_of("regen_dataset")
    assert config.storage.key_of(Path("data/processed/training/sft_v1.jsonl")) == "sft_jsonl"


def test_i07_two_keys_that_name_one_file_are_refused(tmp_path: Path) -> None:
    name = "data/processed/distillation/filtered/teacher_filtered_v1.parquet"
    for path in (name, "distillation/./filtered/../filtered/teacher_filtered_v1.parquet"):
        with pytest.raises(InputError, match="filtered_dataset and rule_filtered are one file"):
            load_config(pasted(tmp_path, storage={"filtered_dataset": path}))


# 9. A command whose result goes elsewhere leaves the pipeline's tables alone.


def test_i09_results_written_elsewhere_touch_no_table_of_the_pipeline(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path / "project", teacher.base_url)
    src, out = tmp_path / "mine.parquet", tmp_path / "out"
    pq.write_table(pq.read_table(made.path("collected_dataset")).slice(2, 3), src)
    out.mkdir()
    before = files(made)
    filter_pairs.run(made.load(), src=[src], dst=out / "passed.parquet")
    checks = [out / "passed.checks.parquet"]
    sample_gate.run(made.load(), src=[src], checks=checks, dst=out / "kept.parquet")
    to_sft.run(made.load(), src=out / "kept.parquet", dst_jsonl=out / "sft.jsonl")
    with pytest.raises(InputError, match="have not passed the gates"):
        to_sft.run(made.load(), regen=out / "kept.rejections.parquet")
    assert files(made) == before
    written = {path.name for path in out.iterdir() if not path.name.endswith("manifest.json")}
    assert written >= {
        "passed.parquet", "passed.checks.parquet", "passed.report.json", "kept.parquet",
        "kept.rejections.parquet", "kept.report.json", "sft.jsonl", "sft.parquet", "sft.splits",
        "sft.README.md",
    }  # fmt: skip


# The order of the work is one function, whoever calls it.


def test_the_pipeline_object_refuses_an_empty_side_before_it_pays(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        raw = tmp_path / "raw.jsonl"
        raw.write_text('{"user_prompt": "Question 0?"}\n')
        made = workspace(tmp_path, teacher.base_url, input={"path": str(raw)})
        with pytest.raises(InputError, match="no document falls into"):
            DistillationPipeline(made.config).collect_teacher()
        assert not teacher.billed()


def test_the_collector_by_hand_refuses_an_empty_side_and_takes_a_file_of_ones_own(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        src = put(made, [row | {"split": "train"} for row in prompts(3)])
        made.path("raw_dataset").parent.mkdir(parents=True)
        stage = StageRun("dedup", made.load().storage, inputs=[], settings={})
        shutil.copy(src, made.path("raw_dataset"))
        stage.seal_output(made.path("raw_dataset"), rows_in=3, rejected=0)
        done = made.run("nexa_distill.collect_teacher", code=65)
        assert "no document falls into test" in done.stderr
        assert not teacher.billed()
        made.run("nexa_distill.collect_teacher", "--src", src)
        assert sum(teacher.billed().values()) == 3


def test_dedup_with_a_result_elsewhere_leaves_the_pipelines_rejections_alone(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(f'{{"user_prompt": "Question {n}?"}}\n' for n in (1, 1, 2)))
    made = workspace(tmp_path / "project", input={"path": str(raw)})
    canonicalize.run(made.load())
    before = files(made)
    dedup.run(made.load(), dst=tmp_path / "unique.parquet")
    assert files(made) == before
    assert {"unique.parquet", "unique.rejected.parquet", "unique.reports"} <= {path.name for path in tmp_path.iterdir()}


def test_i06_a_key_that_the_provider_repeats_is_not_printed() -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}."}}).encode()
    outcome = Outcome("rejected", 401, body)
    assert provider_message(outcome) == '{"error": {"message": "Incorrect API key provided: [secret]"}}'


def test_i03_human_checks_that_were_removed_are_made_again_and_not_a_traceback(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path, says=SAYS) as teacher:
        made = gated(tmp_path, teacher.base_url)
    decide(made, "s0004", 0, "reject")
    gates.run_gates(made.load())
    made.path("person_checks").unlink()
    assert "run_filtering.py" in made.run("nexa_distill.to_sft", code=66).stderr
