"""A line for a person when a provider refuses everything for load, for a while."""

from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.console.progress import Progress
from nexa_distill.journal.journal import Outcome

FIRST_NOTICE_SECONDS = 20.0  # without an answer; then after twice the time, and so on


class BusyNotice:
    """Of one run. A 429 is never counted against a request: without a word it looks like a hang."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._since: float | None = None
        self._next = FIRST_NOTICE_SECONDS

    def add(self, now: float, outcome: Outcome, pause: float, progress: Progress) -> None:
        """A request was refused with 429, and `pause` seconds are waited."""
        if self._since is None:
            self._since = now
        seconds = now - self._since
        if seconds + pause < self._next:
            return
        self._next = 2 * max(self._next, seconds)
        progress.say("HTTP 429")
        progress.tell(
            f"provider {self.endpoint.provider} ({self.endpoint.base_url}) has answered nothing "
            f"but HTTP 429 for {seconds:.0f} s: {retry_policy.said_by(outcome)}; the next request "
            f"is sent in {pause:.0f} s, and so on. Ctrl-C stops; what was answered is stored"
        )

    def end(self, progress: Progress) -> None:
        """An answer has come."""
        if self._next > FIRST_NOTICE_SECONDS:
            progress.say("")
        self._since, self._next = None, FIRST_NOTICE_SECONDS
