"""A Python program and its tests in a sandbox of one process (bubblewrap, Linux only).

The child has new user, process, network, IPC and host-name namespaces and an empty root, in which
stand read-only: the interpreter, its standard library and the system's shared libraries; and, for
writing, /home, a few MB of memory. There is no /etc, /proc, /tmp or project, no environment, no
network, no capability and no way to more rights; `seccomp.py` says which system calls are refused.
Address space, CPU time, file size and open files are limited; output is read up to a limit. At its
wall the whole process namespace is killed. Where this cannot be set up nothing is run (69).

Not covered: the program and its tests share a process, so a program that is written against them
(an object equal to everything, a patched `AssertionError`, a search of the stack for the token) can
pass; the kernel is the system's own, so a hole in it is a hole here; without a memory cgroup the
limits are of one process, which is all there is.
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
class Ran:
    """How a program ended.

    `step`: `load` or `tests`, as far as it came; null = it did not come to its report. `error`: the
    exception, `Kind: text`; null with a step = it ran to its end. `stopped`: `time`, `output`, or
    null. `code`: exit status, 128 + N for signal N.
    """

    step: str | None
    error: str | None
    stopped: str | None
    code: int
    output: str


@cache
def command() -> list[str]:
    """bubblewrap and its options, but for the filter. Raises SandboxUnavailable."""
    bwrap = shutil.which("bwrap")
    if bwrap is None or seccomp.program() is None:
        missing = "bubblewrap is not installed" if bwrap is None else "no filter for this processor"
        raise _unavailable(missing)
    python = os.path.realpath(sys.executable)
    stdlib = sysconfig.get_path("stdlib", vars={"base": sys.base_prefix})
    library = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(
        sysconfig.get_config_var("INSTSONAME")
    )
    shared = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", str(library)]
    words = [
        bwrap,
        "--unshare-all",
        "--unshare-user",
        "--uid",
        "65534",
        "--gid",
        "65534",
        "--hostname",
        "sandbox",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]
    for path in [*(path for path in shared if Path(path).exists()), stdlib, python]:
        words += ["--ro-bind", path, path]
    for packages in Path(stdlib).glob("*-packages"):
        words += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        words += ["--dev-bind", device, device]
    words += ["--size", str(HOME_BYTES), "--tmpfs", "/home", "--remount-ro", "/"]
    return [*words, "--", python, "-I", "-S", "-B", "-c", HARNESS.read_text(encoding="utf-8")]


def require(limits: Limits) -> None:
    """Try the sandbox once. Raises SandboxUnavailable (69) when it does not hold."""
    ran = run(PROBE, "assert True", limits)
    if (ran.step, ran.error) != ("tests", None):
        raise _unavailable(ran.error or ran.output.strip() or f"it ended with code {ran.code}")


def _unavailable(why: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"Python answers cannot be isolated here ({why}), and are not run without that. Install "
        "bubblewrap (apt-get install bubblewrap | dnf install bubblewrap) on Linux with user "
        "namespaces, or take the task types of kind python out of execution.tasks (TYPE: null)"
    )


def run(program: str, tests: str | None, limits: Limits) -> Ran:
    """Run it to its end or its limits. Raises SandboxUnavailable without bubblewrap."""
    token = secrets.token_hex(16)
    wall = time.monotonic() + limits.timeout_seconds
    given = _file(_input(program, tests, token, limits))
    rules = _file(seccomp.program() or b"")
    reading, writing = os.pipe()
    words = command()
    cut = words.index("--")
    try:
        child = subprocess.Popen[bytes](
            [*words[:cut], "--seccomp", str(rules), *words[cut:], str(writing)],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            pass_fds=(rules, writing),
        )
    finally:
        for descriptor in (given, rules, writing):
            os.close(descriptor)
    try:
        output, said, stopped = _listen(child, reading, wall, limits.max_output_bytes)
    finally:
        child.kill()
        code = child.wait()
        os.close(reading)
    step, error = _report(said, token)
    text = output[-1000:].decode(errors="replace")
    return Ran(step, error, stopped, code if code >= 0 else 128 - code, text)


def _file(content: bytes) -> int:
    """A descriptor from which it is read."""
    descriptor = os.memfd_create("nexa")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _input(program: str, tests: str | None, token: str, limits: Limits) -> bytes:
    memory, seconds = limits.memory_mb * 2**20, int(limits.timeout_seconds) + 1
    allowed = {"AS": memory, "CPU": seconds, "FSIZE": HOME_BYTES, "CORE": 0, "NOFILE": 64}
    parts = ({"program": program, "limits": allowed}, {"tests": tests, "token": token})
    texts = (json.dumps(part) for part in parts)
    return "".join(f"{len(text):08}{text}" for text in texts).encode()


def _listen(
    child: subprocess.Popen[bytes], reading: int, wall: float, most: int
) -> tuple[bytes, bytes, str | None]:
    """Output and report until both have ended; what stopped it before that."""
    printed: IO[bytes] = child.stdout  # type: ignore[assignment]  # a pipe, as asked for
    output = printed.fileno()
    said = {output: bytearray(), reading: bytearray()}
    sizes = {output: most, reading: REPORT_BYTES}
    with selectors.DefaultSelector() as ready, printed:
        for descriptor in said:
            ready.register(descriptor, selectors.EVENT_READ)
        stopped = None
        while ready.get_map() and stopped is None:
            left = wall - time.monotonic()
            events = ready.select(left) if left > 0 else []
            if not events:
                stopped = "time"
            for key, _ in events:
                part = os.read(key.fd, 65536)
                said[key.fd] += part
                if not part:
                    ready.unregister(key.fd)
                elif len(said[key.fd]) > sizes[key.fd]:
                    stopped = "output"
    return bytes(said[output]), bytes(said[reading]), stopped


def _report(said: bytes, token: str) -> tuple[str | None, str | None]:
    """Step and error of a report that has the token."""
    try:
        found = json.loads(said)
        if secrets.compare_digest(found["token"], token) and found["step"] in ("load", "tests"):
            return found["step"], None if found["error"] is None else str(found["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return None, None
