"""A teacher on loopback that bills every generation in a file, and misbehaves on a script.

It answers deterministically from the request. Faults are chosen per request by its own hash and
by how often it was asked, so that a disturbed run can be compared with an undisturbed one.

    with ledger_teacher(folder, delay=0.05, fault="status:500", share=0.5) as teacher:
        teacher.base_url, teacher.billed(), teacher.sends()

`teacher_script.Script` lists the keyword arguments, `teacher_faults` and `teacher_answers` what can
go wrong, `teacher_batches` the Batch API. Not covered: `stream: true`, limits of tokens a minute.
"""

import contextlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests import warm
from tests.teacher.teacher_answers import ODD_TEXT, answer_text
from tests.teacher.teacher_script import Script

__all__ = ["ODD_TEXT", "Teacher", "answer_text", "ledger_teacher"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Teacher:
    base_url: str
    ledger: Path
    process: subprocess.Popen[bytes]

    def billed(self) -> Counter[str]:
        """Request hash -> number of generations billed (a choice is a generation)."""
        return Counter(_lines(self.ledger))

    def sends(self, path: str | None = "/v1/chat/completions") -> list[dict[str, Any]]:
        """Every request to `path` (None: to any) in order of arrival, refused ones too.

        at (seconds since the epoch), monotonic (of this machine), method, path, key (of billed()),
        fault ("rate": the limit), status and retry_after as the client is told them, None where
        it is told none (the status is known in advance for chat completions only),
        authorization_present.
        """
        sends = map(json.loads, _lines(self.ledger.with_name("sends.jsonl")))
        return [send for send in sends if path in (None, send["path"])]

    def batches(self) -> list[str]:
        """The ids of the batches created, oldest first."""
        return _lines(self.ledger.with_name("batches.txt"))


def _lines(path: Path) -> list[str]:
    """Complete lines: the last one may be half written."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


@contextlib.contextmanager
def ledger_teacher(folder: Path, *, port: int = 0, **script: Any) -> Iterator[Teacher]:
    """A running server in a process of its own; `script` is the arguments of `Script`.

    `folder` gets ledger.txt, sends.jsonl and batches.txt; what another server wrote there stays.
    """
    checked = asdict(Script(**script))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / f"port-{time.monotonic_ns()}"
    given = {"folder": str(folder), "ready": str(ready), "port": port, "script": checked}
    command = [warm.python(), "-m", "tests.teacher.teacher_server", json.dumps(given)]
    process = warm.Process(command, cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while not (ready.exists() and ready.read_text().endswith("\n")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the ledger teacher did not start")
            time.sleep(0.02)
        base_url = f"http://127.0.0.1:{ready.read_text().strip()}/v1"
        yield Teacher(base_url, folder / "ledger.txt", process)
    finally:
        process.kill()
        process.wait()
