"""Run a Python program and its tests in a sandbox of one process (bubblewrap, Linux only).

The child has its own user, process, network, IPC and host-name namespaces and an empty root. It
contains, read-only, the interpreter, its standard library and the system's shared libraries, and a
writable /home of a few MB in memory. There is no environment, network or capability, and
`seccomp.py` refuses further system calls. Address space, CPU time, file size, open files and output
are limited. At the time limit the whole process namespace is killed.

Not covered: program and tests share a process, so a program that attacks its tests (an object equal
to everything, a patched `AssertionError`, a search of the stack for the token) can pass; a hole in
the system's kernel is a hole here.
"""

import json
import os
import secrets
import selectors
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from nexa_distill.errors import NexaError
from nexa_distill.execution import seccomp
from nexa_distill.execution.sql import Limits

HOME_BYTES = 16 * 2**20
REPORT_BYTES = 64 * 1024
HARNESS = Path(__file__).with_name("harness.py")
PROBE = """
import os, socket
assert not os.environ and os.getcwd() == "/home" and os.listdir("/home") == []
assert not os.path.exists("/etc") and not os.path.exists("/proc")
for forbidden in (socket.socket, os.fork, lambda: open("/x", "w"), lambda: os.mkdir("/usr/lib/x")):
    try:
        forbidden()
    except OSError:
        continue
    raise SystemExit(f"{forbidden} is possible")
"""


class SandboxUnavailable(NexaError):
    """Programs cannot be isolated on this machine."""

    exit_code = 69


@dataclass(frozen=True)
class SandboxResult:
    """How a program ended."""

    step: str | None  # the last one, `load` or `tests`; None = no report
    error: str | None  # the exception, `Kind: text`; None with a step = it ran to its end
    stopped: str | None  # `time`, `output` or None
    code: int  # exit status, 128 + N for signal N
    output: str


@cache
def sandbox_command() -> list[str]:
    """bubblewrap and its options without the filter. Raises SandboxUnavailable."""
    bwrap = shutil.which("bwrap")
    if bwrap is None or seccomp.build_filter() is None:
        missing = "bubblewrap is not installed" if bwrap is None else "no filter for this processor"
        raise _unavailable_error(missing)
    python = os.path.realpath(sys.executable)
    stdlib = sysconfig.get_path("stdlib", vars={"base": sys.base_prefix})
    library = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("INSTSONAME"))
    shared = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", str(library)]
    options = "--unshare-all --unshare-user --uid 65534 --gid 65534 --hostname sandbox"
    words = [bwrap, *options.split(), "--die-with-parent", "--new-session", "--clearenv"]
    words += ["--cap-drop", "ALL"]
    for path in [*(path for path in shared if Path(path).exists()), stdlib, python]:
        words += ["--ro-bind", path, path]
    # Installed packages are hidden: a program has the standard library only.
    for packages in Path(stdlib).glob("*-packages"):
        words += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        words += ["--dev-bind", device, device]
    words += ["--size", str(HOME_BYTES), "--tmpfs", "/home", "--remount-ro", "/"]
    return [*words, "--", python, "-I", "-S", "-B", "-c", HARNESS.read_text(encoding="utf-8")]


def require_sandbox(limits: Limits) -> None:
    """Try the sandbox once. Raises SandboxUnavailable (69) if it does not isolate."""
    ran = run_program(PROBE, "assert True", limits)
    if (ran.step, ran.error) != ("tests", None):
        raise _unavailable_error(ran.error or ran.output.strip() or f"it ended with code {ran.code}")


def _unavailable_error(why: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"Python answers cannot be isolated here ({why}), and are not run unprotected. Install "
        "bubblewrap (apt-get install bubblewrap | dnf install bubblewrap) on Linux with user "
        "namespaces, or take the task types of kind python out of execution.tasks (TYPE: null)"
    )


def run_program(program: str, tests: str | None, limits: Limits) -> SandboxResult:
    """Run it to its end or its limits. Raises SandboxUnavailable without bubblewrap."""
    token = secrets.token_hex(16)
    wall = time.monotonic() + limits.timeout_seconds
    source = _memory_file(_encode_input(program, tests, token, limits))
    rules = _memory_file(seccomp.build_filter() or b"")
    reading, writing = os.pipe()
    words = sandbox_command()
    cut = words.index("--")
    try:
        child = subprocess.Popen[bytes](
            [*words[:cut], "--seccomp", str(rules), *words[cut:], str(writing)],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            pass_fds=(rules, writing),
        )
    finally:
        # The child has its own: ours would keep the pipe of the report open for ever.
        for descriptor in (source, rules, writing):
            os.close(descriptor)
    try:
        output, report, stopped = _read_output(child, reading, wall, limits.max_output_bytes)
    finally:
        # bwrap is killed, and with it (--die-with-parent) all that it started.
        child.kill()
        code = child.wait()
        os.close(reading)
    step, error = _parse_report(report, token)
    text = output[-1000:].decode(errors="replace")
    return SandboxResult(step, error, stopped, code if code >= 0 else 128 - code, text)


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("nexa")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _encode_input(program: str, tests: str | None, token: str, limits: Limits) -> bytes:
    # The CPU limit has whole seconds, so it is above the time limit.
    memory, seconds = limits.memory_mb * 2**20, int(limits.timeout_seconds) + 1
    allowed = {"AS": memory, "CPU": seconds, "FSIZE": HOME_BYTES, "CORE": 0, "NOFILE": 64}
    parts = ({"program": program, "limits": allowed}, {"tests": tests, "token": token})
    texts = (json.dumps(part) for part in parts)
    return "".join(f"{len(text):08}{text}" for text in texts).encode()


def _read_output(
    child: subprocess.Popen[bytes], reading: int, wall: float, max_bytes: int
) -> tuple[bytes, bytes, str | None]:
    """(output, report, `time` or `output` if a limit stopped the program)."""
    printed: IO[bytes] = child.stdout  # type: ignore[assignment]  # Popen was given a pipe
    output = printed.fileno()
    received = {output: bytearray(), reading: bytearray()}
    sizes = {output: max_bytes, reading: REPORT_BYTES}
    # Both pipes at once: a full one would stop the program.
    with selectors.DefaultSelector() as ready, printed:
        for descriptor in received:
            ready.register(descriptor, selectors.EVENT_READ)
        stopped = None
        while ready.get_map() and stopped is None:
            seconds = wall - time.monotonic()
            events = ready.select(seconds) if seconds > 0 else []
            if not events:
                stopped = "time"
            for key, _ in events:
                part = os.read(key.fd, 65536)
                received[key.fd] += part
                if not part:
                    ready.unregister(key.fd)
                elif len(received[key.fd]) > sizes[key.fd]:
                    stopped = "output"
    return bytes(received[output]), bytes(received[reading]), stopped


def _parse_report(raw: bytes, token: str) -> tuple[str | None, str | None]:
    try:
        report = json.loads(raw)
        # A report without the token was written by the program.
        if secrets.compare_digest(report["token"], token) and report["step"] in ("load", "tests"):
            return report["step"], None if report["error"] is None else str(report["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return None, None
