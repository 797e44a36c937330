"""The bundled model's two servers: llama.cpp beside `transformers serve`.

    python -m benchmarks.teacher_server.run [--prompts 64] [--rounds 2] [--gguf FILE ...]

Both serve the same weights in bfloat16 (`transformers serve`: float32 where the processor has no
bfloat16) and get the same prompts, 16 at a time, with the settings that ship. Rounds are
interleaved; the server that is measured is the only one that runs. Seconds contain the prompts;
"kept" are the answers that pass the rules. `--gguf`: further weights for llama.cpp.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nexa_distill.canonicalize import run as canonicalize
from nexa_distill.filter_pairs import apply_filters
from nexa_distill.settings.filters import load_filter_config
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.settings.tasks import load_system_prompts
from nexa_train.models.bundled import materialise_bundled_model, write_bundled_gguf

CONFIG = Path("configs/distill_config.yaml")
IN_FLIGHT = 16


@dataclass
class Contender:
    """A server, by what it serves; one figure per round."""

    name: str
    model: Path
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[dict[str, Any]]:
    endpoint = folder / "endpoint.json"
    command = [sys.executable, "-m", "nexa_train.local_models", "serve", "--model", str(model)]
    server = subprocess.Popen([*command, "--endpoint-file", str(endpoint)])
    try:
        while not endpoint.exists():
            if server.poll() is not None:
                raise RuntimeError(f"{model}: the server ended with {server.returncode}")
            time.sleep(0.1)
        yield json.loads(endpoint.read_text())
    finally:
        server.terminate()
        server.wait()


def ask(endpoint: dict[str, Any], body: dict[str, Any]) -> tuple[str, str, int]:
    """The answer's text, why it ended, and its tokens."""
    data = json.dumps(body | {"model": endpoint["model"]}).encode()
    request = urllib.request.Request(  # noqa: S310 - a loopback address
        f"{endpoint['base_url']}/chat/completions", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
        reply = json.load(answer)
    choice = reply["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], reply["usage"]["completion_tokens"]


def group_memory(pid: int) -> float:
    """Peak resident memory of a process and its children, MB (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = "\n".join(Path(f"/proc/{process}/status").read_text() for process in (pid, *children))
    return sum(map(int, re.findall(r"VmHWM:\s+(\d+)", lines))) / 1024


def measure(contender: Contender, prompts: pd.DataFrame, config: DistillConfig, folder: Path) -> None:
    chosen = config.providers["embedded"].extra_body
    settings = {"max_tokens": config.collection.max_tokens} | {k: v for k, v in chosen.items() if v is not None}
    systems = load_system_prompts(config)
    bodies = [
        settings
        | {"messages": [{"role": "system", "content": systems.find_prompt(task)}, {"role": "user", "content": prompt}]}
        for task, prompt in zip(prompts["template_name"], prompts["user_prompt"], strict=True)
    ]
    with serving(contender.model, folder) as endpoint, ThreadPoolExecutor(IN_FLIGHT) as pool:
        ask(endpoint, bodies[0])
        started = time.monotonic()
        answers = list(pool.map(lambda body: ask(endpoint, body), bodies))
        contender.seconds.append(time.monotonic() - started)
        contender.memory_mb.append(group_memory(endpoint["pid"]))
    contender.tokens.append(sum(tokens for _, _, tokens in answers))
    texts = pd.DataFrame({"template_name": prompts["template_name"]})
    texts["teacher_output"], texts["finish_reason"] = ([a[i] for a in answers] for i in (0, 1))
    contender.kept.append(len(apply_filters(texts, load_filter_config(config.filters))))
    print(f"{contender.name}: {contender.seconds[-1]:.0f} s", file=sys.stderr, flush=True)


def shipped_prompts(config: DistillConfig, count: int, folder: Path) -> pd.DataFrame:
    made = config.model_copy(update={"storage": config.storage.model_copy(update={"root": str(folder)})})
    canonicalize(made)
    return pd.read_parquet(made.storage.path_of("canonical")).head(count)


def table(contenders: Sequence[Contender], prompts: int) -> str:
    first = statistics.median(contenders[-1].seconds)
    lines = ["| server | seconds | times as fast | tokens/s | kept | memory, MB |", "|---|---|---|---|---|---|"]
    for c in contenders:
        rates = [t / s for t, s in zip(c.tokens, c.seconds, strict=True)]
        lines.append(
            f"| {c.name} | {min(c.seconds):.0f} to {max(c.seconds):.0f} | {first / statistics.median(c.seconds):.2f} "
            f"| {min(rates):.0f} to {max(rates):.0f} | {'; '.join(map(str, c.kept))} of {prompts} "
            f"| {max(c.memory_mb):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[], metavar="FILE")
    arguments = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)
    with tempfile.TemporaryDirectory() as temporary:
        folder, config = Path(temporary), load_config(CONFIG)
        contenders = [Contender("llama.cpp, bfloat16", write_bundled_gguf(folder / "bundled.gguf"))]
        contenders += [Contender(f"llama.cpp, {path.stem}", path) for path in arguments.gguf]
        contenders.append(Contender("transformers serve", materialise_bundled_model(folder / "bundled")))
        prompts = shipped_prompts(config, arguments.prompts, folder)
        for number in range(arguments.rounds):
            for contender in contenders[:: -1 if number % 2 else 1]:
                measure(contender, prompts, config, folder)
        print(table(contenders, len(prompts)))


if __name__ == "__main__":
    main()
