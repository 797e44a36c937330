"""The embedded teacher as it is served: llama.cpp, in a process of its own, over HTTP."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants

from nexa_distill.errors import InputMissing
from nexa_distill.settings.pipeline import load_config
from nexa_train.models import bundled
from tests.models.test_local_models import ask, serve, wait_for
from tests.support.tiny_model import ROOT

QUESTION = {"messages": [{"role": "user", "content": "Write a poem about the sea."}], "max_tokens": 24}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled.write_bundled_gguf(tmp_path_factory.mktemp("gguf") / "SmolLM2.gguf")


@pytest.fixture(scope="module")
def served(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    file = tmp_path_factory.mktemp("served") / "endpoint.json"
    server = serve(file, weights)
    assert wait_for(file.exists), server.stderr and server.stderr.read()
    yield json.loads(file.read_text())
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 143
    assert not file.exists()


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_the_weights_are_those_of_the_package_in_bfloat16(weights: Path) -> None:
    """Against the package's own file: at most bfloat16's rounding, 2^-8, and the same tokenizer."""
    source, written = gguf.GGUFReader(bundled.bundled_weights()), gguf.GGUFReader(weights)
    before, after = ({t.name: t for t in reader.tensors} for reader in (source, written))
    assert before.keys() == after.keys()
    for name in ("blk.0.attn_q.weight", "blk.29.ffn_down.weight", "token_embd.weight", "output_norm.weight"):
        old, new = (quants.dequantize(t.data, t.tensor_type) for t in (before[name], after[name]))
        assert np.abs(old - new).max() <= np.abs(old).max() / 256
    assert {t.tensor_type.name for t in after.values()} == {"BF16", "Q8_0", "F32"}
    assert written.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_BF16
    for key, field in source.fields.items():
        assert written.fields[key].types == field.types
        assert len(written.fields[key].data) == len(field.data), key
    for key in ("tokenizer.chat_template", "tokenizer.ggml.eos_token_id", "llama.rope.freq_base"):
        assert written.fields[key].contents() == source.fields[key].contents(), key


def test_it_is_written_once(weights: Path) -> None:
    written = weights.stat().st_mtime_ns
    assert bundled.write_bundled_gguf(weights) == weights
    assert weights.stat().st_mtime_ns == written
    assert [p.name for p in weights.parent.iterdir() if not p.name.endswith(".lock")] == [weights.name]


def test_no_torch_is_loaded(served: dict[str, Any]) -> None:
    maps = Path(f"/proc/{served['pid']}/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    assert "xllamacpp" in maps.read_text()
    assert "libtorch" not in maps.read_text()


def test_each_request_has_its_own_settings(served: dict[str, Any]) -> None:
    """Temperature, seed and stop, also while others are answered; a server of transformers keeps the first ones."""
    greedy, warm = {"temperature": 0}, {"temperature": 1.2, "top_k": 50, "seed": 7}
    bodies = [greedy, warm, {**warm, "seed": 8}, greedy, warm, {**greedy, "stop": [" the"]}]
    with ThreadPoolExecutor(6) as pool:
        first, seven, eight, again, seven_again, stopped = pool.map(
            lambda body: text_of(ask(served, **QUESTION, **body)), bodies
        )
    assert first == again
    assert len({first, seven, eight, seven_again}) >= 3
    assert first.startswith(stopped)
    assert " the" in first
    assert " the" not in stopped


def test_t02_the_request_says_whether_an_answer_ends_with_its_first_line(served: dict[str, Any]) -> None:
    """The settings that ship."""
    found = {}
    for name in ("distill_config", "math", "text2sql"):
        body = load_config(ROOT / f"configs/{name}.yaml").providers["embedded"].extra_body
        sent = {key: value for key, value in body.items() if value is not None}
        found[name] = [text_of(ask(served, **QUESTION, **sent)).strip() for _ in range(2)]
    assert not any("\n" in text for text in found["distill_config"]), found
    assert any("\n" in text for text in found["math"] + found["text2sql"]), found


def test_an_answer_follows_a_json_schema(served: dict[str, Any]) -> None:
    schema = {
        "type": "object", "properties": {"sea": {"type": "boolean"}, "waves": {"type": "integer"}},
        "required": ["sea", "waves"], "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "poem", "schema": schema}}
    answer = json.loads(text_of(ask(served, **{**QUESTION, "max_tokens": 80}, temperature=0.5, response_format=form)))
    assert isinstance(answer["sea"], bool)
    assert isinstance(answer["waves"], int)


def test_log_probabilities_have_bytes_and_alternatives(served: dict[str, Any]) -> None:
    answer = ask(served, **QUESTION, temperature=0, logprobs=True, top_logprobs=3)
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(t["bytes"]) for t in tokens).decode().startswith(text_of(answer))
    assert all(len(t["top_logprobs"]) == 3 and t["logprob"] <= 0 for t in tokens)


def test_a_prompt_beyond_the_context_is_refused_and_the_next_is_answered(served: dict[str, Any]) -> None:
    long = [{"role": "user", "content": "sea " * 4000}]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(served, messages=long, max_tokens=5)
    assert text_of(ask(served, **QUESTION))


def test_a_longer_context_takes_a_longer_prompt(weights: Path, tmp_path: Path) -> None:
    server = serve(tmp_path / "endpoint.json", weights, "--context", "8192")
    try:
        assert wait_for((tmp_path / "endpoint.json").exists), server.stderr and server.stderr.read()
        served = json.loads((tmp_path / "endpoint.json").read_text())
        long = [{"role": "user", "content": "sea " * 2500}]
        assert ask(served, messages=long, max_tokens=2)["usage"]["prompt_tokens"] > 2500
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def test_the_weights_name_the_defaults_of_sampling(served: dict[str, Any]) -> None:
    with urllib.request.urlopen(served["base_url"].removesuffix("/v1") + "/props", timeout=30) as reply:  # noqa: S310
        defaults = json.load(reply)["default_generation_settings"]["params"]
    assert (defaults["top_k"], round(defaults["top_p"], 6)) == (bundled.TOP_K, bundled.TOP_P)


def test_it_names_its_model(served: dict[str, Any]) -> None:
    assert served["model"] == "SmolLM2"
    assert ask(served, **QUESTION)["model"] == "SmolLM2"


@pytest.mark.parametrize(
    ("content", "code", "told"), [(b"not a model", 65, "not a GGUF file"), (b"GGUF" + bytes(99), 69, "cannot serve it")]
)
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, content: bytes, code: int, told: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    server = serve(tmp_path / "endpoint.json", file)
    _, errors = server.communicate(timeout=60)
    assert server.returncode == code
    assert told in errors
    assert str(file) in errors
    assert not (tmp_path / "endpoint.json").exists()


def test_a_package_without_weights_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundled, "BUNDLED_PACKAGE", "no_such_package")
    with pytest.raises(InputMissing, match="requirements-models"):
        bundled.write_bundled_gguf(tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_without_llama_cpp_the_checkpoint_is_made_for_transformers_and_the_log_says_so(tmp_path: Path) -> None:
    """As far as the checkpoint, whose source is hidden too; a server of transformers: test_local_models."""
    config = tmp_path / "config.yaml"
    config.write_text(f"extends: {ROOT}/configs/distill_config.yaml\nstorage: {{root: {tmp_path}}}\n")
    hidden = (
        "import sys; sys.modules['xllamacpp'] = None; from nexa_train import local_models; "
        "from nexa_train.models import bundled; bundled.BUNDLED_PACKAGE = 'none'; local_models.main()"
    )
    words = ["serve", "--endpoint-file", str(tmp_path / "endpoint.json"), "--config", str(config)]
    done = subprocess.run([sys.executable, "-c", hidden, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "xllamacpp is not installed here" in done.stdout
    assert "materialise_bundled_model" in done.stderr
    assert "InputMissing" in done.stderr
