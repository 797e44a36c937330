"""Settings: every key is known, every value checked, every error names the file and the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_distill.errors import InputError, InputMissing, NexaError
from nexa_distill.settings.filters import FilterConfig
from nexa_distill.settings.pipeline import DistillConfig, load_config, with_flags
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from tests.support.workspace import ROOT, workspace

SHIPPED = ROOT / "configs/distill_config.yaml"


def test_the_shipped_configuration_loads_and_offers_five_providers() -> None:
    config = load_config(SHIPPED)
    assert list(config.providers) == ["embedded", "openai", "vllm", "ollama", "openrouter"]
    assert config.providers["openai"].model == "gpt-4o-mini"
    assert config.providers["openai"].regen_model == "o3-mini"
    assert config.chosen_provider()[0] == "embedded"


def test_a_provider_is_its_address_its_model_and_what_differs(tmp_path: Path) -> None:
    own = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    config = workspace(tmp_path, provider="own", providers={"own": own}).load()
    name, provider = config.chosen_provider()
    assert (name, provider.regen_model, provider.api_key_env, provider.start, provider.prices) == (
        "own",
        "m",
        None,
        None,
        {},
    )
    with pytest.raises(InputError, match=r"providers\.own\.model"):
        workspace(tmp_path, provider="own", providers={"own": {"base_url": own["base_url"]}}).load()


def test_another_model_is_repaired_by_itself_unless_the_file_names_a_model_for_that(tmp_path: Path) -> None:
    config = workspace(tmp_path, providers={"vllm": {"model": "other"}, "openai": {"model": "other"}}).load()
    assert config.providers["vllm"].regen_model == "other"
    assert config.providers["openai"].regen_model == "o3-mini"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colection": {}}, 'unknown key colection (did you mean "collection"?)'),
        ({"collection": {"temprature": 1}}, 'collection.temprature (did you mean "temperature"?)'),
        ({"collection": {"temperature": 3.5}}, "collection.temperature is 3.5"),
        ({"collection": {"concurrency": 0}}, "collection.concurrency is 0"),
        ({"collection": {"concurrency": "8"}}, "collection.concurrency is '8'"),
        ({"providers": {"vllm": {"modle": "x"}}}, 'providers.vllm.modle (did you mean "model"?)'),
        ({"split": {"val": 1.0}}, "split.val is 1.0"),
        ({"storage": {"raw_data": "x"}}, 'storage.raw_data (did you mean "raw_dataset"?)'),
    ],
)
def test_a_bad_key_or_value_names_itself(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"extends": str(SHIPPED), **change}))
    with pytest.raises(InputError) as error:
        load_config(file)
    assert expected in str(error.value)
    assert str(file) in str(error.value)


def test_every_bad_key_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"extends": str(SHIPPED), "a": 1, "b": 2}))
    with pytest.raises(InputError) as error:
        load_config(file)
    assert len(str(error.value).splitlines()) == 2


def test_a_missing_key_is_an_error_that_names_extends_because_yaml_is_the_only_home_of_defaults(tmp_path: Path) -> None:
    values = yaml.safe_load(SHIPPED.read_text())
    del values["chunking"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"extends": None}))
    with pytest.raises(InputError, match=r"missing key chunking\n.*`extends: distill_config"):
        load_config(tmp_path / "mine.yaml")


def test_a_file_without_extends_takes_what_it_does_not_name_from_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("chunking: {max_tokens: 50}")
    config = load_config(tmp_path / "mine.yaml")
    assert config == with_flags(load_config(SHIPPED), {"chunking": {"max_tokens": 50}})
    (tmp_path / "rules.yaml").write_text("min_char_length: 7")
    assert load_yaml(tmp_path / "rules.yaml", FilterConfig).min_char_length == 7
    (tmp_path / "student.yaml").write_text("run_name: mine")
    assert load_yaml(tmp_path / "student.yaml", StudentConfig).run_name == "mine"


def test_a_complete_file_is_not_completed_and_extends_finds_the_shipped_file_by_name(tmp_path: Path) -> None:
    values = yaml.safe_load(SHIPPED.read_text())
    values["providers"] = {"embedded": values["providers"]["embedded"]}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(values))
    assert list(load_config(tmp_path / "all.yaml").providers) == ["embedded"]
    (tmp_path / "distill_config.yaml").write_text("extends: distill_config.yaml\nprovider: vllm\n")
    assert load_config(tmp_path / "distill_config.yaml").provider == "vllm"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.yaml": "extends: a.yaml"}, "in a circle: a.yaml -> a.yaml"),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "extends: a.yaml"}, "a.yaml -> b.yaml -> a.yaml"),
        ({"a.yaml": "extends: [b.yaml]"}, "expected the name of one YAML file"),
        ({"a.yaml": "extends: b.yaml"}, "b.yaml: no such configuration file"),
    ],
)
def test_extends_that_leads_nowhere_is_one_line(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(NexaError, match=said):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["a: [", "- a\n", "", "!!python/object:os.system {}", "\x00"])
def test_f39_a_file_that_is_not_plain_settings_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_config(tmp_path / "mine.yaml")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such configuration file"):
        load_config(tmp_path / "mine.yaml")


def test_a_file_that_extends_another_keeps_its_values_and_overrides_its_own(tmp_path: Path) -> None:
    config = workspace(tmp_path, collection={"concurrency": 3}).load()
    assert config.collection.concurrency == 3
    assert config.collection.max_tokens == load_config(SHIPPED).collection.max_tokens


def test_flags_win_over_yaml_and_a_flag_not_given_says_nothing() -> None:
    config = load_config(SHIPPED)
    flags = {"input": {"limit": 5, "path": None}, "collection": {"teacher_model": None}}
    changed = with_flags(config, flags)
    assert (changed.input.limit, changed.input.path) == (5, config.input.path)
    assert changed.collection == config.collection


def test_a_flag_out_of_range_is_bad_input_and_not_a_traceback(tmp_path: Path) -> None:
    done = workspace(tmp_path).run("nexa_distill.collect_teacher", "--temperature", "5", code=65)
    assert "collection.temperature is 5.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_provider_names_the_nearest() -> None:
    with pytest.raises(InputError, match='did you mean "openrouter"'):
        load_config(SHIPPED).chosen_provider("openruter")


def test_overrides_are_laid_over_the_file() -> None:
    config = load_yaml(SHIPPED, DistillConfig, {"split": {"seed": 11}})
    assert config.split.seed == 11
