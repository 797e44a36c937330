"""`transformers serve` for a checkpoint folder, as a process that ends with this one.

Writes: the log, the server's output. After `kill -9` of this process the kernel kills the server too.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from nexa_distill.errors import ProviderUnusable

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


@contextmanager
def transformers_server(
    folder: Path, host: str, port: int, log: Path, timeout_seconds: float
) -> Iterator[Callable[[], None]]:
    """Serve `folder` during the block; yields the check that raises if the server has died.

    Raises ProviderUnusable (69) if it does not answer within `timeout_seconds`.
    """
    with _server_process(folder, host, port, log) as server:
        _wait_healthy(server, f"http://{host}:{port}/health", log, timeout_seconds)
        yield partial(_check_alive, server, log)


@contextmanager
def _server_process(folder: Path, host: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    from nexa_train.models.precision import has_native_bf16  # loads torch

    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder.name]
    command += [*BATCHING, "--host", host, "--port", str(port)]
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


def _wait_healthy(server: subprocess.Popen[bytes], url: str, log: Path, timeout_seconds: float) -> None:
    end = time.monotonic() + timeout_seconds
    while not is_healthy(url):
        _check_alive(server, log)
        if time.monotonic() > end:
            raise ProviderUnusable(
                f"the model server did not answer within {timeout_seconds:g} s; give it more with "
                f"--timeout, or see {log}:\n{_log_tail(log)}"
            )
        time.sleep(POLL_SECONDS)


def is_healthy(url: str) -> bool:
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
