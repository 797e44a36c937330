"""Forks, for each client, an interpreter with the libraries imported: see the package.

`python server.py FOLDER light|heavy|pages`. It ends with the folder, or with the process that made
it.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

LIGHT = (
    "pyarrow.parquet", "pyarrow.compute", "pyarrow.dataset", "pydantic", "yaml", "aiohttp.web",
    "openai", "httpx", "tqdm", "regex", "jsonschema", "numpy", "sqlite3", "asyncio", "uvloop",
    "dotenv", "html", "hashlib", "concurrent.futures", "logging.handlers", "argparse",
    "multiprocessing", "importlib.metadata", "http.server", "sqlglot", "rensa", "icu4py",
    "py3langid",
)  # fmt: skip
HEAVY = (
    "torch", "transformers", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama",
    "transformers.generation", "transformers.modeling_utils", "peft", "accelerate",
    "accelerate.commands.launch", "torch.distributed.run", "torch.distributed.fsdp",
    "torch.distributed.checkpoint", "torch.utils.tensorboard", "safetensors.torch",
)  # fmt: skip
PAGES = ("streamlit", "streamlit.web.cli", "streamlit.web.bootstrap", "pandas")
MORE = {"light": (), "heavy": HEAVY, "pages": PAGES}
# Variables that the libraries read while they are imported: with other ones, nothing is forked.
BEFORE = dict(os.environ)
READ_AT_IMPORT = (
    "PYTHON", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "LD_", "MKL_", "OPENBLAS_", "CUDA_", "SSL_",
    "AIOHTTP_", "ARROW_", "STREAMLIT_",
)  # fmt: skip


def differs(environment: dict[str, str]) -> bool:
    """Whether an import in that environment could give something else."""
    names = {n for n in {*environment, *BEFORE} if n.startswith(READ_AT_IMPORT)}
    names -= {"PYTHONPATH", "PYTHON_EXEC"}
    if environment.get("OMP_NUM_THREADS", "1") != "1":
        return True
    return any(environment.get(name) != BEFORE.get(name) for name in names)


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The client's request and its stdin, stdout and stderr."""
    head, files, _, _ = socket.recv_fds(client, 20, 3)
    data = b""
    while len(data) < int(head):
        data += client.recv(1 << 20)
    given: dict[str, Any] = json.loads(data)
    return given, files


def serve(folder: str, kind: str, owner: int) -> dict[str, Any]:
    """Answer clients for ever. Returns in each fork, with its request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/{kind}")
    listener.listen(128)
    wake, waker = socket.socketpair()
    for end in (wake, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket] = {}
    while Path(folder).is_dir() and alive(owner):
        ready, _, _ = select.select([listener, wake, *clients.values()], [], [], 1.0)
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)
        report(clients)
        for pid, client in list(clients.items()):
            if client in ready:  # it says nothing more: it is gone
                os.kill(pid, signal.SIGKILL)
                clients.pop(pid).close()
        if listener not in ready:
            continue
        client, _ = listener.accept()
        given, files = receive(client)
        if differs(given["environment"]):
            client.sendall(b"0\n")
            client.close()
        elif pid := os.fork():
            clients[pid] = client
            with contextlib.suppress(OSError):
                client.sendall(b"%d\n" % pid)
        else:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (listener, wake, waker, client, *clients.values()):
                one.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
            for file in files:
                os.close(file)
            return given
        for file in files:
            os.close(file)
    raise SystemExit


def report(clients: dict[int, socket.socket]) -> None:
    """Tell the clients whose forks are over."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        client = clients.pop(pid, None)
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            client.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def become(given: dict[str, Any]) -> None:
    """Run what the client was asked to run."""
    os.chdir(given["folder"])
    os.environ.clear()
    os.environ.update(given["environment"])
    time.tzset()
    for name, ignored in given["signals"].items():  # the server's own may be another job's
        usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(getattr(signal, name), signal.SIG_IGN if ignored else usual)
    for number, name in enumerate(("stdout", "stderr"), 1):
        usual_stream = getattr(sys, name)
        if given["unbuffered"]:
            raw = io.FileIO(number, "w", closefd=False)
            usual_stream = io.TextIOWrapper(raw, usual_stream.encoding, usual_stream.errors)
            setattr(sys, name, usual_stream)
        usual_stream.reconfigure(write_through=True)
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    arguments = given["arguments"]
    option = arguments[0].startswith("-")
    first = "" if arguments[0] == "-c" else given["folder"]
    if not option:
        first = str(Path(arguments[0]).resolve().parent)
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [first, *filter(None, own), *LIBRARIES]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv[:] = arguments[1:] if option else arguments
    sys.orig_argv[:] = [sys.executable, *arguments]
    if arguments[0] == "-m":
        runpy._run_module_as_main(sys.argv[0])  # type: ignore[attr-defined]
    elif option:
        code, sys.argv[0] = sys.argv[0], "-c"
        exec(code, sys.modules["__main__"].__dict__)  # noqa: S102
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _, folder, kind = sys.argv
    settings = json.loads((Path(folder) / "environment.json").read_text())
    LIBRARIES = [p for p in sys.path[1:] if p not in os.environ.get("PYTHONPATH", "").split(":")]
    sys.path[:] = LIBRARIES
    for name in LIGHT + MORE[kind]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    request = serve(folder, kind, settings["owner"])
    del settings
    become(request)
