"""Local models: write the bundled one as a checkpoint, serve one on 127.0.0.1.

Writes: `<storage.models>/SmolLM2-135M-Instruct/` and `.gguf` (`models/bundled.py`).

Run:
    python -m nexa_train.local_models materialise
    python -m nexa_train.local_models serve --endpoint-file FILE [--until FILE] [--model bundled]
"""

import argparse
from pathlib import Path

from nexa_distill.console import cli
from nexa_distill.settings.pipeline import Storage, load_config
from nexa_train.models import server as model_server
from nexa_train.models.bundled import BUNDLED, BUNDLED_NAME, resolve_model, write_bundled_gguf
from nexa_train.models.llama_server import CONTEXT, has_llama


def main() -> int:
    parser = cli.build_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("materialise", help="write the bundled model as a checkpoint")
    serve = commands.add_parser("serve", help="serve a model on 127.0.0.1 until told to stop")
    serve.add_argument("--endpoint-file", type=Path, required=True, metavar="FILE")
    serve.add_argument("--until", type=Path, metavar="FILE", help="stop when FILE exists")
    serve.add_argument("--port", type=int, default=0, help="0 = any free port")
    serve.add_argument("--model", default=BUNDLED, help="bundled, a .gguf file, or a checkpoint folder")
    serve.add_argument(
        "--context", type=cli.positive_int, default=CONTEXT, metavar="N",
        help=f"tokens of a request and its answer, by llama.cpp (default {CONTEXT}); more of them, fewer at a time",
    )  # fmt: skip
    serve.add_argument("--timeout", type=float, default=180.0, help="seconds to become healthy")
    for command in commands.choices.values():  # --config also after the command's name
        command.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE")
    arguments = parser.parse_args()
    storage = load_config(arguments.config).storage
    if arguments.command == "materialise":
        print(resolve_model(BUNDLED, storage))
        return 0
    model_server.find_free_port(arguments.port)  # a port in use is refused before a model is written
    model = _files_of(arguments.model, storage)
    endpoint, until, seconds = arguments.endpoint_file, arguments.until, arguments.timeout
    try:
        model_server.serve_model(
            model, endpoint, until=until, port=arguments.port, timeout_seconds=seconds, context=arguments.context
        )
    except cli.StopSignal:
        return 143  # without a word: this is the usual end of a server that a stage started
    return 0


def _files_of(model: str, storage: Storage) -> Path:
    if model != BUNDLED:
        return Path(model)
    if has_llama():
        return write_bundled_gguf(storage.path_of("models") / f"{BUNDLED_NAME}.gguf")
    print("xllamacpp is not installed here: `transformers serve` serves the bundled model, which is slower")
    return Path(resolve_model(BUNDLED, storage))


if __name__ == "__main__":
    cli.run(main)
