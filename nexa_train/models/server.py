"""Run one `transformers serve` on 127.0.0.1, stopped when its client exits.

Writes: the endpoint file `{"base_url", "model", "pid"}` when the server answers, removed at the
end; `<endpoint file>.log`, the server's output. After `kill -9` of this process the kernel kills
the server too; the stale endpoint file is replaced by the next start.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nexa_distill.errors import InputMissing, Locked, ProviderUnusable
from nexa_distill.storage.atomic import read_json_object, write_json
from nexa_train.models.precision import has_native_bf16

HOST = "127.0.0.1"
POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}
# Threads that spin long for one without a core make a busy machine four times slower; threads that
# sleep immediately make an idle one slower (docs/baseline.md). The environment can override this.
THREADS = {"GOMP_SPINCOUNT": "5000"}
# 64 blocks of 256 tokens hold 32 requests of 512 tokens in 0.4 GB; the server's default takes 3 GB
# on a CPU and is no faster.
# Limits of continuous batching (transformers 5.23): `temperature` and `top_p` are those of the first
# request since the start, `stop` is ignored, `seed` is unreliable with concurrent requests.
# `max_tokens` works, and so does `eos_token_id` in the body field `generation_config`, a JSON string
# that replaces the model's own.
BATCHING = ["--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "512"]


def serve_model(folder: Path, endpoint: Path, *, until: Path | None, port: int, timeout_seconds: float) -> None:
    """Serve the checkpoint in `folder` until the file `until` exists or a signal arrives.

    Raises InputMissing (66) if `folder` is no checkpoint, Locked (75) if `endpoint` is served
    already, ProviderUnusable (69) if the port is taken or the server does not start or dies.
    """
    if not (folder / "config.json").is_file():
        raise InputMissing(f"{folder}: no config.json here; --model takes a checkpoint folder")
    _refuse_second_server(endpoint)
    # Chosen before the start, so that a used port is a clear error.
    port = find_free_port(port)
    log = endpoint.with_name(f"{endpoint.name}.log")
    endpoint.parent.mkdir(parents=True, exist_ok=True)
    with _server_process(folder, port, log) as server:
        try:
            _wait_healthy(server, port, log, timeout_seconds)
            base_url = f"http://{HOST}:{port}/v1"
            write_json(endpoint, {"base_url": base_url, "model": folder.name, "pid": os.getpid()})
            print(f"serving {folder.name} at {base_url} (log: {log})", flush=True)
            while until is None or not until.exists():
                _check_alive(server, log)
                time.sleep(POLL_SECONDS)
        finally:
            endpoint.unlink(missing_ok=True)


@contextmanager
def _server_process(folder: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder.name]
    command += [*BATCHING, "--host", HOST, "--port", str(port)]
    if not has_native_bf16():
        command += ["--dtype", "float32"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=folder.resolve().parent,  # so that requests contain a name, not a path
            env={**THREADS, **os.environ, **OFFLINE, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own, which is ended as a whole.
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
    try:
        yield server
    finally:
        _end_group(server)


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    # Set before exec: `kill -9` of this process, which runs no `finally`, ends the child too.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def set_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return set_signal


def _end_group(server: subprocess.Popen[bytes]) -> None:
    # To the group, also if its leader is dead already.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(GRACE_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _wait_healthy(server: subprocess.Popen[bytes], port: int, log: Path, timeout_seconds: float) -> None:
    end = time.monotonic() + timeout_seconds
    while not _is_healthy(f"http://{HOST}:{port}/health"):
        _check_alive(server, log)
        if time.monotonic() > end:
            raise ProviderUnusable(
                f"the model server did not answer within {timeout_seconds:g} s; give it more with "
                f"--timeout, or see {log}:\n{_log_tail(log)}"
            )
        time.sleep(POLL_SECONDS)


def _is_healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _check_alive(server: subprocess.Popen[bytes], log: Path) -> None:
    if server.poll() is not None:
        raise ProviderUnusable(
            f"the model server ended with status {server.returncode}; its last lines ({log}):\n{_log_tail(log)}"
        )


def _log_tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


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
    if _is_healthy(str(served.get("base_url", f"http://{HOST}:0")).removesuffix("/v1") + "/health"):
        raise Locked(
            f"{endpoint} is served already at {served['base_url']}; stop it with "
            f"`kill {served.get('pid')}` or pass another --endpoint-file"
        )
