"""The provider's Batch API over HTTP: upload a file, create a batch, get its status, download.

Source of the format: OpenAI's Batch API, https://platform.openai.com/docs/api-reference/batch.

| response                                  | reaction                                          |
|-------------------------------------------|---------------------------------------------------|
| 5xx, 408, 409, 425, none                  | retry with back-off, `max_attempts` in all        |
| 429                                       | retry after the requested pause; not counted      |
| 404 for a file or batch of ours           | NotFound                                          |
| all other 3xx and 4xx, exhausted quota    | CallRefused: nothing happened at the provider     |
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp

from nexa_distill.collection.batch.files import ENDPOINT_PATH
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.connections import open_session, read_at_most
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.collection.requests.transport import DEFAULT_PAUSE_SECONDS, retry_after_seconds
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal.journal import Outcome
from nexa_distill.storage.atomic import Json, replace_atomically

T = TypeVar("T")
ReadBody = Callable[[aiohttp.ClientResponse], Awaitable[T]]

TRANSFER_SECONDS = 3600.0  # for a whole file
PAGE = 100
MAX_OBJECT_BYTES = 16 * 2**20
NO_BATCH_MODE = {404, 405, 501}  # from the addresses that every batch needs


class CallRefused(ProviderUnusable):
    """The provider refused the call: nothing happened there."""


class NotFound(CallRefused):
    """The provider does not know this file or batch."""


class Unavailable(ProviderUnusable):
    """No response, `max_attempts` times: the call may have taken effect."""


class BatchApi:
    """The Batch API of one endpoint. Use as an async context manager."""

    def __init__(self, endpoint: Endpoint, timeout_seconds: float, max_attempts: int) -> None:
        self.endpoint, self.max_attempts = endpoint, max_attempts
        self._short = aiohttp.ClientTimeout(total=timeout_seconds)
        self._long = aiohttp.ClientTimeout(
            total=TRANSFER_SECONDS, sock_connect=timeout_seconds, sock_read=timeout_seconds
        )

    async def __aenter__(self) -> Self:
        self._session = open_session(self.endpoint, self._short)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def upload_file(self, path: Path) -> str:
        """Upload a file; returns its id. A repeated upload makes a second file, free of charge."""

        async def send_form(take: ReadBody[str]) -> str:
            with path.open("rb") as file:  # read in chunks while it is sent
                form = aiohttp.FormData({"purpose": "batch"})
                form.add_field("file", file, filename=path.name, content_type="application/jsonl")
                return await self._send_request("POST", "/files", take, data=form, timeout=self._long)

        return await self._call_with_retries("POST /files", lambda: send_form(_read_id))

    async def create_batch(self, file: str, metadata: dict[str, str]) -> str:
        """Create a batch; returns its id. Raises CallRefused if it was certainly not created."""
        body: Json = {"input_file_id": file, "endpoint": ENDPOINT_PATH, "completion_window": "24h"}
        body["metadata"] = metadata
        # The only call that must not be repeated blindly: one whose response was lost may have
        # taken effect, so the batch is looked up by its metadata first.
        return await self._call_with_retries(
            "POST /batches",
            lambda: self._send_request("POST", "/batches", _read_id, json=body),
            lambda: self.find_batch(metadata),
        )

    async def find_batch(self, metadata: dict[str, str]) -> str | None:
        """The id of the batch with this metadata, or None; reads the whole list of batches."""
        after: str | None = None
        while True:
            query = f"?limit={PAGE}" + (f"&after={after}" if after else "")
            page = await self._get_object(f"/batches{query}")
            batches = page.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).items() >= metadata.items():
                    return str(batch["id"])
            if not batches or not page.get("has_more") or batches[-1]["id"] == after:
                return None
            after = batches[-1]["id"]

    async def get_batch(self, id_: str) -> Json:
        """The batch's current JSON object."""
        return await self._get_object(f"/batches/{id_}")

    async def download_file(self, file: str, path: Path) -> None:
        """Download a file to `path`, completely or not at all."""

        async def save_body(response: aiohttp.ClientResponse) -> None:
            with replace_atomically(path) as temporary, temporary.open("wb") as out:
                async for part in response.content.iter_any():
                    out.write(part)

        where = f"/files/{file}/content"
        await self._call_with_retries(
            f"GET {where}", lambda: self._send_request("GET", where, save_body, timeout=self._long)
        )

    async def _get_object(self, path: str) -> Json:
        return await self._call_with_retries(f"GET {path}", lambda: self._send_request("GET", path, _read_object))

    async def _send_request(self, method: str, path: str, take: ReadBody[T], **options: Any) -> T:
        url = self.endpoint.build_url(path)
        async with self._session.request(method, url, allow_redirects=False, **options) as response:
            if response.status == 200:
                return await take(response)
            raise await self._read_error(f"{method} {path}", response)

    async def _call_with_retries(
        self, name: str, send: Callable[[], Awaitable[T]], happened: Callable[[], Awaitable[T | None]] | None = None
    ) -> T:
        """Send with retries; `happened` looks up the result of a call without a response."""
        tries = 0
        while True:
            try:
                return await send()
            except _RetryLater as error:
                tries, pause, message = tries + error.counts, error.pause, str(error)
            except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError) as error:
                tries, pause, message = tries + 1, 0.0, f"{type(error).__name__}: {error}"
            wait = max(pause, retry_policy.backoff_seconds(tries))
            last = tries >= self.max_attempts
            await asyncio.sleep(0.0 if last and not happened else wait)
            try:
                if happened and (result := await happened()):
                    return result
            except CallRefused as error:  # a refused look-up is not a refusal of this call
                raise Unavailable(str(error)) from None
            if last:
                raise Unavailable(
                    f"provider {self.endpoint.provider} ({self.endpoint.base_url}): {name} failed "
                    f"{tries} times, last with {message}; run the same command again to continue"
                )

    async def _read_error(self, name: str, response: aiohttp.ClientResponse) -> Exception:
        status = response.status
        raw = self.endpoint.without_key(await response.content.read(2000))
        outcome = Outcome("rejected", status, raw)
        if status in NO_BATCH_MODE and name.partition("?")[0].endswith(("/files", "/batches")):
            return CallRefused(
                f"provider {self.endpoint.provider} ({self.endpoint.base_url}) has no batch mode: "
                f"the response to {name} is HTTP {status}. Run without --batch, with "
                "collection.batch_api: false, or check base_url"
            )
        if status == 404:
            return NotFound(f"{retry_policy.refusal_error(self.endpoint, outcome)} ({name})")
        if retry_policy.is_fatal(outcome) or not (status == 429 or retry_policy.is_retryable(status)):
            return CallRefused(f"{retry_policy.refusal_error(self.endpoint, outcome)} ({name})")
        pause = retry_after_seconds(response.headers)
        if status == 429:
            return _RetryLater("HTTP 429", DEFAULT_PAUSE_SECONDS if pause is None else pause, 0)
        return _RetryLater(f"HTTP {status}: {raw.decode('utf-8', 'replace')[:200]}", pause or 0.0, 1)


class _RetryLater(Exception):
    """Retry after `pause` seconds; `counts` is 1 if the failure counts as an attempt, else 0."""

    def __init__(self, message: str, pause: float, counts: int) -> None:
        super().__init__(message)
        self.pause, self.counts = pause, counts


async def _read_object(response: aiohttp.ClientResponse) -> Json:
    """Raises ValueError for anything but a JSON object of at most MAX_OBJECT_BYTES."""
    raw = await read_at_most(response, MAX_OBJECT_BYTES)
    if raw is None:
        raise ValueError(f"HTTP 200 with more than {MAX_OBJECT_BYTES} bytes")
    body = json.loads(raw)
    if not isinstance(body, dict):
        raise ValueError("HTTP 200 without a JSON object")
    return body


async def _read_id(response: aiohttp.ClientResponse) -> str:
    id_ = (await _read_object(response)).get("id")
    if not isinstance(id_, str):
        raise ValueError("HTTP 200 without an id")
    return id_
