import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import load_config
from nexa_train.models import bundled, loading
from tests import warm
from tests.support.tiny_model import ROOT, save_model
from tests.sweeps import some


def serve(endpoint: Path, model: Path, *flags: str, python: str = sys.executable) -> subprocess.Popen[str]:
    command = [python, "-m", "nexa_train.local_models", "serve"]
    command += ["--endpoint-file", str(endpoint), "--model", str(model), *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Any, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not (found := bool(condition())) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def ask(endpoint: dict[str, Any], **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi."}]
    data = json.dumps({"model": endpoint["model"], "messages": messages, **body}).encode()
    request = urllib.request.Request(  # noqa: S310 - a loopback address
        f"{endpoint['base_url']}/chat/completions", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return dict(json.load(answer))


def servers_of(name: str) -> list[int]:
    """Processes of `transformers serve NAME`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in words and name.encode() in words:
            found.append(int(path.parent.name))
    return found


ENDS = {"told": 0, "SIGTERM": 143, "SIGKILL": -9, "torn": 69}
SERVER = "each starts one more server of transformers, which takes ten seconds"


@pytest.mark.parametrize("end", some("ends of a model server", list(ENDS), 1, why=SERVER))
def test_a_checkpoint_is_served_by_transformers_and_no_process_stays(tmp_path: Path, end: str) -> None:
    model = save_model(tmp_path / f"tiny-{os.getpid()}-{end}")
    endpoint, until = tmp_path / "endpoint.json", tmp_path / "until"
    if end == "torn":
        (model / "model.safetensors").write_bytes(b"torn")
    server = serve(endpoint, model, "--until", str(until))
    if end == "torn":
        _, errors = server.communicate(timeout=120)
        assert "its last lines" in errors
        assert "safetensors" in errors.lower()
    else:
        assert wait_for(endpoint.exists), server.stderr and server.stderr.read()
        assert servers_of(model.name)
        told = json.loads(endpoint.read_text())
        assert told["pid"] == server.pid
        shipped = load_config(ROOT / "configs/distill_config.yaml").providers["embedded"].extra_body
        answer = ask(told, max_tokens=5, **shipped)  # a key that it does not know is refused
        assert answer["choices"][0]["finish_reason"] in {"length", "stop"}
        assert answer["usage"]["completion_tokens"] <= 5
        if end == "told":
            until.touch()
        else:
            server.send_signal(signal.Signals[end])
    assert server.wait(30) == ENDS[end]
    assert wait_for(lambda: not servers_of(model.name), 5)
    assert endpoint.exists() == (end == "SIGKILL")


def test_a_port_in_use_is_refused_with_an_instruction(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        endpoint = tmp_path / "endpoint.json"
        server = serve(endpoint, model, "--port", port, python=warm.python())
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 69
    assert port in errors
    assert "--port 0" in errors


def test_a_folder_without_checkpoint_is_missing_input(tmp_path: Path) -> None:
    server = serve(tmp_path / "endpoint.json", tmp_path, python=warm.python())
    _, errors = server.communicate(timeout=60)
    assert server.returncode == 66
    assert "config.json" in errors


def test_the_pruned_model_generates_as_its_own_copy_on_disk_does(tmp_path: Path) -> None:
    pruned = loading.load_model(str(save_model(tmp_path / "model", layers=6)), [0, 2, 5])
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == [0, 1, 2]
    assert pruned.config.num_hidden_layers == 3
    pruned.save_pretrained(tmp_path / "pruned")
    loaded = loading.load_model(str(tmp_path / "pruned"))
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    with_cache = pruned.generate(ids, **options)
    assert torch.equal(with_cache, pruned.generate(ids, use_cache=False, **options))
    assert torch.equal(with_cache, loaded.generate(ids, **options))


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0], [-1, 0], [0, 4]])
def test_layers_that_the_model_has_not_are_refused(tmp_path: Path, layers: list[int]) -> None:
    with pytest.raises(InputError, match="keep_layers"):
        loading.load_model(str(save_model(tmp_path / "model")), layers)


@pytest.fixture(scope="module")
def bundled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, written where a kill left the beginning of one."""
    folder = tmp_path_factory.mktemp("bundled") / "models" / bundled.BUNDLED_NAME
    (folder.parent / f".{folder.name}.tmp").mkdir(parents=True)
    assert bundled.materialise_bundled_model(folder) == folder
    return folder


@pytest.mark.slow
def test_the_bundled_model_is_written_once_and_complete(bundled_folder: Path) -> None:
    folder = bundled_folder
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= written.keys()
    assert bundled.materialise_bundled_model(folder) == folder
    assert written == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not list(folder.parent.glob("*.tmp"))
    assert not list(folder.parent.glob(".*.tmp"))
    model, tok = loading.load_for_inference(str(folder), [0, 29])
    assert model.config.num_hidden_layers == 2
    assert tok.chat_template
    assert model.config.eos_token_id == tok.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == model.config.eos_token_id, "no line break"


def test_t02_a_bundled_model_of_an_earlier_version_is_corrected(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "bundled")
    path = folder / "generation_config.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps(own | {"top_k": 50, "eos_token_id": [2, 198]}))
    bundled.materialise_bundled_model(folder)
    assert json.loads(path.read_text()) == own | {"top_k": 50, "eos_token_id": 2}
    written = path.stat().st_mtime_ns
    bundled.materialise_bundled_model(folder)
    assert path.stat().st_mtime_ns == written
