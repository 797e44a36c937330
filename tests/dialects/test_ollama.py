"""The documented quickstart with Ollama, against a loopback server that answers as Ollama does.

Source of the replies: docs/openai.md of ollama (models of GET /v1/models, `system_fingerprint`
fp_ollama, `reasoning` of a thinking model) and its 404 for a model that was not pulled.
"""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nexa_distill.orchestration.frozen_config import freeze_config
from nexa_distill.settings.pipeline import load_config, with_server
from tests.support.workspace import Workspace, workspace
from tests.teacher.dialect_server import TEXT, Asked, Response, serving

MODEL = "qwen3:0.6b"


def answer_as_ollama(request: Asked) -> Response:
    model = request.body["model"]
    if model != MODEL:
        error = {"message": f"model '{model}' not found", "type": "not_found_error", "param": None, "code": None}
        return Response(404, {"error": error})
    message = {"role": "assistant", "content": TEXT, "reasoning": "Let me think."}
    return Response(
        body={
            "id": "chatcmpl-123", "object": "chat.completion", "created": 1, "model": model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70},
        }
    )  # fmt: skip


def ollama_workspace(folder: Path, base_url: str) -> Workspace:
    return workspace(folder, provider="embedded", input={"limit": 24}, providers={"ollama": {"base_url": base_url}})


def launch(made: Workspace, model: str, code: int = 0) -> str:
    """The documented line, for data_gen: its plan with the variable, its session in a shell without it."""
    others = {name: value for name, value in os.environ.items() if name != "OLLAMA_MODEL"}
    flags = ("prepare", "--provider", "ollama", "--only", "data_gen")
    folder = made.run("nexa_distill.pipeline", *flags, env={**others, "OLLAMA_MODEL": model}).stdout
    session = Workspace(made.folder, Path(folder) / "config/distill_config.yaml")
    done = session.run("scripts/python/data_processing/run_full_data_gen.py", code=code, env=others)
    return done.stdout + done.stderr


def test_the_quickstart_asks_the_model_of_the_environment(tmp_path: Path) -> None:
    with serving(answer_as_ollama, models=[MODEL]) as server:
        made = ollama_workspace(tmp_path, server.base_url)
        launch(made, MODEL)
    assert {request.path for request in server.asked} == {"/v1/chat/completions"}
    answers = pq.read_table(made.path("collected_dataset")).to_pylist()
    assert len(answers) == len(server.asked) == 48
    row = answers[0]
    assert (row["model_id"], row["system_fingerprint"], row["finish_reason"]) == (MODEL, "fp_ollama", "stop")
    assert (row["teacher_output"], row["reasoning_output"], row["total_tokens"]) == (TEXT, "Let me think.", 70)


def test_a_model_that_was_not_pulled_stops_the_run_and_names_those_that_are_there(tmp_path: Path) -> None:
    with serving(answer_as_ollama, models=[MODEL]) as server:
        printed = launch(ollama_workspace(tmp_path, server.base_url), "qwen3:0,6b", code=69)
    assert f"The server has: {MODEL}" in printed


def test_the_model_of_the_environment_is_below_flags_and_above_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_MODEL", raising=False)
    made = workspace(tmp_path, provider="ollama")
    assert made.load().chosen_provider()[1].model == "qwen2.5:7b"
    monkeypatch.setenv("OLLAMA_MODEL", MODEL)
    config = made.load()
    assert (config.chosen_provider()[1].model, config.chosen_provider()[1].regen_model) == (MODEL, MODEL)
    assert with_server(config, None, "llama3.2").chosen_provider()[1].model == "llama3.2"
    frozen = freeze_config(config, tmp_path / "frozen")
    monkeypatch.setenv("OLLAMA_MODEL", "of-another-shell")
    assert load_config(frozen).chosen_provider()[1].model == MODEL
