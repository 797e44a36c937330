"""Serve one model on 127.0.0.1 with OpenAI's API, stopped when its client exits.

A GGUF file is served by llama.cpp inside this process (`llama_server.py`), a checkpoint folder by
`transformers serve` in a process of its own (`transformers_server.py`).

Writes: the endpoint file `{"base_url", "model", "pid"}` when the server answers, removed at the
end. After `kill -9` the stale endpoint file is replaced by the next start.
"""

import os
import socket
import time
from pathlib import Path

from nexa_distill.errors import InputMissing, Locked, ProviderUnusable
from nexa_distill.storage.atomic import read_json_object, write_json
from nexa_train.models.llama_server import CONTEXT, llama_server
from nexa_train.models.transformers_server import is_healthy, transformers_server

HOST = "127.0.0.1"
POLL_SECONDS = 0.2


def serve_model(
    model: Path, endpoint: Path, *, until: Path | None, port: int, timeout_seconds: float, context: int = CONTEXT
) -> None:
    """Serve a .gguf file or a checkpoint folder until the file `until` exists or a signal arrives.

    `context`: tokens of one request to a .gguf file.

    Raises InputMissing (66) if `model` is neither, InputError (65) if the file is no GGUF, Locked
    (75) if `endpoint` is served already, ProviderUnusable (69) if the port is taken or the server
    does not start or dies.
    """
    is_gguf = model.suffix == ".gguf"
    if not (model if is_gguf else model / "config.json").is_file():
        raise InputMissing(f"{model}: no config.json here; --model takes a checkpoint folder or a .gguf file")
    _refuse_second_server(endpoint)
    # Chosen before the start, so that a used port is a clear error.
    port = find_free_port(port)
    endpoint.parent.mkdir(parents=True, exist_ok=True)
    name, base_url = model.stem if is_gguf else model.name, f"http://{HOST}:{port}/v1"
    log = endpoint.with_name(f"{endpoint.name}.log")
    if is_gguf:
        started = llama_server(model, name, HOST, port, context)
    else:
        started = transformers_server(model, HOST, port, log, timeout_seconds)
    with started as check_alive:
        try:
            write_json(endpoint, {"base_url": base_url, "model": name, "pid": os.getpid()})
            print(f"serving {name} at {base_url}" + ("" if is_gguf else f" (log: {log})"), flush=True)
            while until is None or not until.exists():
                check_alive()
                time.sleep(POLL_SECONDS)
        finally:
            endpoint.unlink(missing_ok=True)


def find_free_port(port: int) -> int:
    """A port that can be bound now: `port`, or any if it is 0."""
    with socket.socket() as probe:
        # A port that a stopped server left in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ProviderUnusable(
                f"port {port} on {HOST} cannot be used ({error.strerror}); stop the program that "
                "has it (`ss -ltnp`) or pass --port 0 for a free one"
            ) from None
        return int(probe.getsockname()[1])


def _refuse_second_server(endpoint: Path) -> None:
    served = read_json_object(endpoint) or {}
    if is_healthy(str(served.get("base_url", f"http://{HOST}:0")).removesuffix("/v1") + "/health"):
        raise Locked(
            f"{endpoint} is served already at {served['base_url']}; stop it with "
            f"`kill {served.get('pid')}` or pass another --endpoint-file"
        )
