"""A real Chromium, headless, and the real inspection room in a process of its own."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, sync_playwright

from tests import warm
from tests.support.workspace import ROOT

MISSING = "Chromium is not installed, so the pages are not tested in a browser: apt-get install chromium"


def chromium() -> str:
    """Its path. Without it the test is skipped, and under CI it fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return found


@contextmanager
def pages(requests: list[str] | None = None) -> Iterator[Page]:
    """One tab; `page.context.new_page()` opens another. Every address asked for is noted."""

    def note(request: Request) -> None:
        if requests is not None:
            requests.append(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.on("request", note)
        context.set_default_timeout(30_000)
        yield context.new_page()
        browser.close()


class Inspector:
    """`streamlit run nexa_distill/ui_inspect.py -- FLAGS`."""

    def __init__(self, log: Path, *flags: object, failpoint: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        command = [warm.python(), "-m", "streamlit", "run", "nexa_distill/ui_inspect.py",
                   "--server.port", str(self.port), "--", *map(str, flags)]  # fmt: skip
        self.process = warm.Process(
            command, cwd=ROOT, stdout=log.open("ab"), stderr=subprocess.STDOUT,
            env=os.environ | {"NEXA_FAILPOINT": failpoint, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def killed(self) -> bool:
        """Whether it ended by SIGKILL, which it has some seconds for."""
        return self.process.wait(20) == -signal.SIGKILL

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def inspector(log: Path, *flags: object, failpoint: str = "") -> Iterator[Inspector]:
    server = Inspector(log, *flags, failpoint=failpoint)
    try:
        yield server
    finally:
        server.close()
