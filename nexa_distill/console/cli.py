"""Shared by every command: `--config`, and one line and an exit code for each error."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from nexa_distill.errors import NexaError, UsageError, did_you_mean
from nexa_distill.text.secrets import mask_secrets

DEFAULT_CONFIG = Path("configs/distill_config.yaml")
STUDENT_CONFIG = Path("configs/baseline_distill.yaml")
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class StopSignal(BaseException):
    """SIGTERM or SIGHUP arrived. Not an Exception, so that no error handler swallows it."""


class _LossyStream(io.TextIOBase):
    """stderr without errors: a full disk or a closed terminal never stops the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts no abbreviated flag and prints no key."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # Abbreviated, `--api-key KEY` would mean `--api-key-env KEY`, and the error would print it.
        super().__init__(*args, **({"allow_abbrev": False} | options))

    def error(self, message: str) -> NoReturn:
        """Print usage and the message, with keys masked; exit with code 2."""
        if "--api-key" in message:
            message += (
                "\nA key is never a flag: the process list shows it. Write OPENAI_API_KEY=... (the "
                "provider's api_key_env) into .env, see .env.example"
            )
        super().error(mask_secrets(message))

    def complete_options(self, options: argparse.Namespace) -> argparse.Namespace:
        """All options of the command, from those that a Python caller sets; the others have their defaults.

        A name is the flag's (`max_samples`) or its `dest`; text becomes the flag's type. Raises UsageError.
        """
        actions = {name: action for action in self._actions for name in _option_names(action)}
        values = {action.dest: action.default for action in actions.values()}
        for name, value in vars(options).items():
            if name not in actions:
                known = sorted(name for name in actions if "." not in name)
                raise UsageError(f"no option {name}{did_you_mean(name, known)}; known: {', '.join(known)}")
            kind = actions[name].type
            values[actions[name].dest] = kind(value) if callable(kind) and isinstance(value, str) else value
        return argparse.Namespace(**values)


def _option_names(action: argparse.Action) -> list[str]:
    if action.dest == "help":
        return []
    return [action.dest, *(option.lstrip("-").replace("-", "_") for option in action.option_strings)]


def build_parser(doc: str | None, *, config: Path = DEFAULT_CONFIG) -> Parser:
    result = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--config", type=Path, default=config, metavar="FILE", help=f"settings (default: {config})")
    return result


def build_student_parser(doc: str | None) -> Parser:
    result = build_parser(doc, config=STUDENT_CONFIG)
    result.add_argument("--pipeline-config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    return result


def add_sending_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that asks a model."""
    add = parser.add_argument
    add("--dry-run", "--estimate", action="store_true", help="print what would be sent, send nothing")
    add("--retry-failed", action="store_true", help="send failed requests again")


def _raise_stop_signal(_signal: int, _frame: FrameType | None) -> None:
    raise StopSignal


def handle_signals() -> None:
    # As an exception, so that `finally` and `with` remove half-written files.
    signal.signal(signal.SIGTERM, _raise_stop_signal)
    signal.signal(signal.SIGHUP, _raise_stop_signal)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The teacher's options, as `load_with_options` reads them."""
    parser.add_argument("--provider", metavar="NAME", help="a key of providers:")
    parser.add_argument(
        "--base-url", dest="server_url", metavar="URL", help="a server with OpenAI's API: http://.../v1"
    )
    parser.add_argument("--model", dest="server_model", metavar="MODEL", help="the model to ask there")


def add_task_option(parser: argparse.ArgumentParser) -> None:
    """What is asked, as `load_with_options` reads it."""
    parser.add_argument(
        "--task", metavar="LIST", help="tasks with commas between them: names in nexa_distill/tasks, files or folders"
    )


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit with its status; None is 0.

    Or with an error's own code, 74 (disk), 130 (Ctrl-C), 143 (SIGTERM or SIGHUP) or 141 (closed
    pipe). Any other exception is a bug: it prints a traceback and exits with 1.
    """
    handle_signals()
    sys.stderr = _LossyStream(sys.stderr)
    try:
        status = main() or 0
    except NexaError as error:
        status = _print_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        status = _print_error("stopped by Ctrl-C; run the same command again to continue", 130)
    except StopSignal:
        status = _print_error("stopped by a signal; run the same command again to continue", 143)
    except BrokenPipeError:  # the reader has closed the pipe: `... status | head`
        status = 141
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        status = _print_error(
            f"{os.strerror(error.errno or 0)}{where}: the previous files are intact. "
            "Free space (df -h .) and run the same command again",
            74,
        )
    _record_exit_status(status)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # the output was still in our buffer
            status = status or 141
        except (OSError, ValueError):
            continue
    # Everything is closed and on disk. A crash of a C library while the interpreter shuts down (one
    # run in a thousand) must not change the exit code.
    os._exit(status)


def _record_exit_status(status: int) -> None:
    # A launcher of many processes hides exit codes: the first process that fails records its own.
    file = os.environ.get("NEXA_EXIT_FILE")
    if status and file and not Path(file).stat().st_size:
        Path(file).write_text(str(status), encoding="utf-8")


def _print_error(message: str, code: int) -> int:
    print(f"error: {mask_secrets(message)}", file=sys.stderr, flush=True)
    return code
