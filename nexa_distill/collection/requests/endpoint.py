"""A provider's endpoint: address, model name to send, key, and the local server if we start it."""

import http.client
import itertools
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import BasicAuth
from dotenv import dotenv_values
from yarl import URL

from nexa_distill.errors import ProviderUnusable
from nexa_distill.settings.pipeline import Provider
from nexa_distill.storage.atomic import Json, read_json_object

# The environment of a session that may need a server has here the file that starts it (run_stage.sh).
SERVER_WANTED = "NEXA_SERVER_WANTED"
HEALTH_SECONDS = 5
STOP_SECONDS = 10
MIN_SECRET_CHARACTERS = 8  # a shorter value of a header or a query is a word or a number
SECRET_NAME = re.compile(r"key|token|secret|auth|sig|pass|credential|code", re.IGNORECASE)


@dataclass(frozen=True)
class Endpoint:
    """One reachable API. `proxy`: see `settings.pipeline.Provider`."""

    provider: str
    base_url: str  # without query and password
    model: str  # the id to send in a request
    key: str | None = field(default=None, repr=False)
    key_name: str | None = None
    key_note: str = ""  # a note if .env has another key than the environment
    dialect: str = "openai"
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # with the key
    proxy: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)  # of address, query and headers

    def build_url(self, path: str) -> URL:
        # Extended, not replaced: the path may have its own query.
        return URL(f"{self.base_url}{path}").extend_query(self.query)

    def without_key(self, raw: bytes) -> bytes:
        # Some servers repeat the key in an error, and bodies are stored.
        for secret in map(str.encode, filter(None, (self.key, *self.secrets))):
            if secret in raw:
                raw = raw.replace(secret, b"***")
        return raw


def api_key(provider: str, settings: Provider) -> str | None:
    """The provider's key, or None if it needs none. Raises ProviderUnusable (69) if unset."""
    # From the environment or ./.env, never from a flag: the process list shows command lines.
    name = settings.api_key_env
    if name is None:
        return None
    key = (os.environ.get(name) or _key_in_file(name)).strip()
    if not key or not key.isprintable():
        raise ProviderUnusable(
            f"provider {provider}: {name} is not set to a key; write {name}=... into .env "
            "(see .env.example) or export it"
        )
    return key


def _key_in_file(name: str) -> str:
    return dotenv_values(".env").get(name) or ""


def shadowed_key_note(name: str | None) -> str:
    """A hint for a refused key if the environment's key hides another one in .env, or ""."""
    used, other = os.environ.get(name or "", "").strip(), _key_in_file(name or "").strip()
    if not used or not other or used == other:
        return ""
    return (
        f"the key is from the environment, which has another {name} than .env: `unset {name}` "
        "(in tmux also `tmux set-environment -gu " + f"{name}`), then run again"
    )


def _build_endpoint(provider: str, settings: Provider, base_url: str, model: str) -> Endpoint:
    key, dialect = api_key(provider, settings), settings.active_dialect
    try:
        address = URL(base_url)
    except ValueError as error:
        raise ProviderUnusable(f"provider {provider}: base_url is invalid ({error})") from None
    # A password or a key in the address becomes a header or a query: `base_url` is printed and stored.
    plain = str(address.with_user(None).with_query(None).with_fragment(None)).rstrip("/")
    headers = dict(dialect.headers) | settings.headers
    if address.user is not None:
        login = BasicAuth(address.user, address.password or "", "utf-8").encode()
        headers = {"Authorization": login} | headers
    if key:
        # The user's own headers come last: they replace any other.
        headers = {dialect.key_header: f"{dialect.key_prefix}{key}"} | headers
    return Endpoint(
        provider,
        # Many providers document the address of the method, not that of the API.
        plain.removesuffix("/chat/completions"),
        model,
        key,
        key_name=settings.api_key_env,
        key_note=shadowed_key_note(settings.api_key_env),
        dialect=dialect.name,
        query=dict(dialect.query) | dict(address.query) | settings.query,
        headers=headers,
        proxy=settings.proxy,
        secrets=tuple(_collect_secrets(address, settings.headers | settings.query)),
    )


def _collect_secrets(address: URL, parameters: Mapping[str, str]) -> Iterator[str]:
    # Not all values of headers and queries: an answer may well contain "2024-10-21".
    named = {**dict(address.query), **parameters}
    values = [value.split()[-1:] for name, value in named.items() if SECRET_NAME.search(name)]
    for text in [address.password or "", *itertools.chain(*values)]:
        if len(text) >= MIN_SECRET_CHARACTERS:
            yield text


@contextmanager
def open_endpoint(provider: str, settings: Provider, model: str) -> Iterator[Endpoint]:
    """The provider's endpoint, with its local server running if it has one (`start:`).

    A server that already runs is used and keeps running. In a launched run the session `teacher` starts it, as
    soon as its file SERVER_WANTED is there; else it is started here and stopped at the end. Raises
    ProviderUnusable (69).
    """
    api_key(provider, settings)  # before a server is started
    if not settings.start:
        if not settings.base_url:
            raise ProviderUnusable(f"provider {provider}: set base_url (or pass --base-url)")
        if not settings.base_url.startswith(("http://", "https://")):
            raise ProviderUnusable(
                f"provider {provider}: base_url is {settings.base_url!r}, expected http://... or https://..."
            )
        yield _build_endpoint(provider, settings, settings.base_url, model)
        return
    if not settings.endpoint_file:
        raise ProviderUnusable(f"provider {provider}: start needs an endpoint_file beside it")
    file = Path(settings.endpoint_file)
    running = _find_running(file) or _wait_for_session(provider, file, settings.start_timeout_seconds)
    with nullcontext(running) if running else _run_server(provider, settings, file) as server:
        _refuse_other_model(provider, settings, model, server["model"])
        yield _build_endpoint(provider, settings, server["base_url"], server["model"])


def _refuse_other_model(provider: str, settings: Provider, model: str, served: str) -> None:
    # An answer is stored under the requested name, so the server must have that model.
    names = {served, Path(served).name}
    if Path(served).is_absolute():  # a server that reports a path: its provider names the model
        names |= {settings.model, settings.regen_model}
    if model not in names:
        raise ProviderUnusable(
            f"provider {provider}: its server on this machine has {served} "
            f"({settings.endpoint_file}), but {model} is requested; choose the provider that has "
            f"{model} (`provider:` or --provider)"
        )


def _wait_for_session(provider: str, file: Path, seconds: float) -> Json | None:
    """The server of the session `teacher`, asked to start it; None outside a launched run."""
    if not (asked := os.environ.get(SERVER_WANTED)):
        return None
    wanted = Path(asked)
    print(f"asking the session {wanted.stem} for its server", flush=True)
    wanted.touch()
    ended, log = wanted.with_suffix(".exit"), wanted.with_suffix(".log")
    return _wait_for_server(provider, lambda: _read_code(ended), f"its log: {log}", file, seconds)


def _read_code(file: Path) -> int | None:
    """What a session left at its end; None before."""
    return int(file.read_text()) if file.exists() else None


@contextmanager
def _run_server(provider: str, settings: Provider, file: Path) -> Iterator[Json]:
    command = [*(settings.start or []), "--endpoint-file", str(file)]
    # The interpreter of this environment; the `python` of the PATH may be another, or missing.
    if command[0] == "python":
        command[0] = sys.executable
    print(f"starting the {provider} server: {' '.join(command)}", flush=True)
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ProviderUnusable(
            f"provider {provider}: cannot run {command[0]} ({error.strerror}); see its start: in the configuration"
        ) from None
    try:
        yield _wait_for_server(provider, server.poll, "its message is above", file, settings.start_timeout_seconds)
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_for_server(
    provider: str, exit_code: Callable[[], int | None], where: str, file: Path, seconds: float
) -> Json:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if running := _find_running(file):
            return running
        if (code := exit_code()) is not None:
            raise ProviderUnusable(
                f"provider {provider}: its server ended with code {code} before it was ready; {where}"
            )
        time.sleep(0.2)
    raise ProviderUnusable(f"provider {provider}: its server was not ready within {seconds:.0f} s")


def _find_running(file: Path) -> Json | None:
    server = read_json_object(file) or {}
    # A killed server leaves its file: only an answer shows that it runs.
    return server if _is_answering(f"{server.get('base_url')}/models") else None


def _is_answering(url: str) -> bool:
    # Without a proxy: the server is on this machine, and a proxy would answer in its place.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=HEALTH_SECONDS).close()
    # A refusal is an answer too: some servers ask for a key.
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):  # ValueError: no address
        return False
    return True
