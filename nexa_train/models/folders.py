"""Model folders: written atomically, and by one process at a time."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nexa_distill.storage import failpoints
from nexa_distill.storage.atomic import sync_folder


@contextmanager
def complete_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success sync it and rename it to `final`, replacing that."""
    final.parent.mkdir(parents=True, exist_ok=True)
    # A fixed name: what a killed process left is removed by the next one.
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        try:
            yield temporary
            failpoints.hit_failpoint("checkpoint")
        except SafetensorError as error:  # only its message contains the system's error
            if "os error 28" in str(error) or "No space" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(final)) from error
            raise
        # Synced before the rename: after a crash the folder is complete or absent.
        for file in (path for path in temporary.rglob("*") if path.is_file()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        failpoints.hit_failpoint("checkpoint")
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        failpoints.hit_failpoint("checkpoint")
        sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def one_writer(dst: Path) -> Iterator[None]:
    # The file is never removed: a waiting process would then hold the lock of a removed file.
    with dst.with_name(f".{dst.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
