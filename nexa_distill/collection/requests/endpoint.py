"""Where the teacher is: address, model name to send, key, and the local server if we start it.

Keys come from the environment or from `.env` in the current directory, never from a flag: a
command line shows in the process list.
"""

import http.client
import itertools
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import BasicAuth
from dotenv import dotenv_values
from yarl import URL

from nexa_distill.errors import ProviderUnusable
from nexa_distill.settings.pipeline import Provider

HEALTH_SECONDS = 5
STOP_SECONDS = 10
LEAST_SECRET = 8  # characters: a shorter value of a header or a query is a word or a number
SECRET_NAME = re.compile(r"key|token|secret|auth|sig|pass|credential|code", re.IGNORECASE)


@dataclass(frozen=True)
class Endpoint:
    """One reachable API. `model` is the id that a request must carry.

    `base_url` has no query: it is in `query`, and no password. `headers` hold the key. `proxy`: see
    `settings.pipeline.Provider`. `key_note`: that .env has another key than the environment, or "".
    `secrets`: what else of the address, the query and the headers nobody may see.
    """

    provider: str
    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_name: str | None = None
    key_note: str = ""
    dialect: str = "openai"
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def url(self, path: str) -> URL:
        """The address of a path below `base_url`, which may have a query of its own."""
        return URL(f"{self.base_url}{path}").extend_query(self.query)

    def without_key(self, raw: bytes) -> bytes:
        """Some servers repeat the key in their message; nothing of it is stored or printed."""
        for secret in map(str.encode, filter(None, (self.key, *self.secrets))):
            if secret in raw:
                raw = raw.replace(secret, b"***")
        return raw


def api_key(provider: str, settings: Provider) -> str | None:
    """The provider's key, or None when it wants none. Raises ProviderUnusable (69) if unset."""
    name = settings.api_key_env
    if name is None:
        return None
    key = (os.environ.get(name) or _in_file(name)).strip()
    if not key or not key.isprintable():
        raise ProviderUnusable(
            f"provider {provider}: {name} is not set to a key; write {name}=... into .env "
            "(see .env.example) or export it"
        )
    return key


def _in_file(name: str) -> str:
    return dotenv_values(".env").get(name) or ""


def shadowed_key_note(name: str | None) -> str:
    """What to say of a refused key when the environment's one hides another in .env, or ""."""
    used, other = os.environ.get(name or "", "").strip(), _in_file(name or "").strip()
    if not used or not other or used == other:
        return ""
    return (
        f"the key is from the environment, which has another {name} than .env: `unset {name}` "
        "(in tmux also `tmux set-environment -gu " + f"{name}`), then run again"
    )


def _endpoint(provider: str, settings: Provider, base_url: str, model: str) -> Endpoint:
    """By the provider's dialect, settings and key."""
    key, dialect = api_key(provider, settings), settings.spoken
    try:
        address = URL(base_url)
    except ValueError as error:
        raise ProviderUnusable(f"provider {provider}: base_url is no address ({error})") from None
    plain = str(address.with_user(None).with_query(None).with_fragment(None)).rstrip("/")
    headers = dict(dialect.headers) | settings.headers
    if address.user is not None:
        login = BasicAuth(address.user, address.password or "", "utf-8").encode()
        headers = {"Authorization": login} | headers
    if key:
        headers = {dialect.key_header: f"{dialect.key_prefix}{key}"} | headers
    return Endpoint(
        provider, plain.removesuffix("/chat/completions"), model, key, settings.api_key_env,
        shadowed_key_note(settings.api_key_env), dialect.name,
        dict(dialect.query) | dict(address.query) | settings.query, headers, settings.proxy,
        tuple(_secrets(address, settings.headers | settings.query)),
    )  # fmt: skip


def _secrets(address: URL, given: Mapping[str, str]) -> Iterator[str]:
    """The password of an address, and the values of what is named like a key.

    Not of every header and query: an answer may well hold "2024-10-21".
    """
    named = {**dict(address.query), **given}
    values = [value.split()[-1:] for name, value in named.items() if SECRET_NAME.search(name)]
    for text in [address.password or "", *itertools.chain(*values)]:
        if len(text) >= LEAST_SECRET:
            yield text


@contextmanager
def reach(provider: str, settings: Provider, model: str) -> Iterator[Endpoint]:
    """The provider's endpoint, its local server running if it has one (`start:`).

    A server that already runs (the launcher's `teacher` session) is used and left running; one
    that is started here is stopped at the end. Raises ProviderUnusable (69).
    """
    api_key(provider, settings)  # before a server is started
    if not settings.start:
        if not settings.base_url:
            raise ProviderUnusable(f"provider {provider}: set base_url (or pass --base-url)")
        if not settings.base_url.startswith(("http://", "https://")):
            raise ProviderUnusable(
                f"provider {provider}: base_url is {settings.base_url!r}, expected http://... or "
                "https://..."
            )
        yield _endpoint(provider, settings, settings.base_url, model)
        return
    if not settings.endpoint_file:
        raise ProviderUnusable(f"provider {provider}: start needs an endpoint_file beside it")
    file = Path(settings.endpoint_file)
    running = _running(file)
    with nullcontext(running) if running else _server(provider, settings, file) as server:
        _refuse_other_model(provider, settings, model, server["model"])
        yield _endpoint(provider, settings, server["base_url"], server["model"])


def _refuse_other_model(provider: str, settings: Provider, model: str, served: str) -> None:
    """An answer is stored under the name that was asked for: it must be what the server has.

    A server that names its model by a path is known by the name that its provider gives it.
    """
    own = {served, Path(served).name}
    if Path(served).is_absolute():
        own |= {settings.model, settings.regen_model}
    if model not in own:
        raise ProviderUnusable(
            f"provider {provider}: its server on this machine has {served} "
            f"({settings.endpoint_file}), and {model} is asked for; choose the provider that has "
            f"{model} (`provider:` or --provider)"
        )


@contextmanager
def _server(provider: str, settings: Provider, file: Path) -> Iterator[dict[str, Any]]:
    command = [*(settings.start or []), "--endpoint-file", str(file)]
    if command[0] == "python":
        command[0] = sys.executable
    print(f"starting the {provider} server: {' '.join(command)}", flush=True)
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ProviderUnusable(
            f"provider {provider}: cannot run {command[0]} ({error.strerror}); see its start: "
            "in the configuration"
        ) from None
    try:
        yield _wait(provider, server, file, settings.start_timeout_seconds)
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait(
    provider: str, server: subprocess.Popen[bytes], file: Path, seconds: float
) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := _running(file):
            return found
        if server.poll() is not None:
            raise ProviderUnusable(
                f"provider {provider}: its server ended with code {server.returncode} before it "
                "was ready; its message is above"
            )
        time.sleep(0.2)
    raise ProviderUnusable(f"provider {provider}: its server was not ready within {seconds:.0f} s")


def _running(file: Path) -> dict[str, Any] | None:
    """What the endpoint file says, if a server answers there."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found if _answers(f"{found['base_url']}/models") else None
    except (OSError, ValueError, KeyError):
        return None


def _answers(url: str) -> bool:
    """Whether anything speaks HTTP there; a refusal is an answer. Never by a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=HEALTH_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    return True
