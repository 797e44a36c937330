"""llama.cpp's own server for a GGUF file, inside this process (package xllamacpp).

It loads no torch, is ready within seconds, and gives each request its own temperature, top_k,
top_p, stop, seed, response_format and log-probabilities. Requests beyond 16 (of CONTEXT) wait their turn.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nexa_distill.errors import InputError, ProviderUnusable

CONTEXT = 2048  # tokens of prompt and answer of one request; a longer one is refused (400)
CACHED_TOKENS = 16 * CONTEXT  # of all requests that are answered at a time; twice as many are not faster


def has_llama() -> bool:
    """Whether the package can be loaded; there are platforms without a wheel."""
    try:
        _load_llama()
    except ImportError:
        return False
    return True


def _load_llama() -> Any:
    # Read when the library is loaded: threads that spin long slow a busy machine (docs/baseline.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    return importlib.import_module("xllamacpp")


@contextmanager
def llama_server(
    weights: Path, name: str, host: str, port: int, context: int = CONTEXT
) -> Iterator[Callable[[], None]]:
    """Serve `weights` as the model `name` on host:port during the block; yields a check of its life.

    `context`: tokens of one request; with more of them, fewer requests are answered at a time.

    Raises InputError (65) if the file is no GGUF, ProviderUnusable (69) if llama.cpp refuses it.
    """
    with weights.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{weights}: not a GGUF file; --model takes a .gguf file or a checkpoint folder")
    xllamacpp = _load_llama()
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = str(weights), {name}
    settings.hostnames, settings.port = [host], port
    settings.n_parallel = max(1, CACHED_TOKENS // context)
    settings.n_ctx = settings.n_parallel * context
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = _thread_count()
    settings.ui, settings.fit_params, settings.verbosity = False, False, 1  # errors only
    settings.cache_ram_mib = 0  # prompts of finished requests are not kept: few come twice
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise ProviderUnusable(f"{weights}: llama.cpp cannot serve it ({error})") from None
    yield lambda: None  # it dies only with this process
    del server  # ends its threads


def _thread_count() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS") or cores)
