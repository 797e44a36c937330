"""A message for the user while a provider refuses everything with 429."""

from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.console.progress import Progress
from nexa_distill.journal.journal import Outcome

FIRST_NOTICE_SECONDS = 20.0  # without an answer; each further notice after twice the time


class BusyNotice:
    """For one run. A 429 never counts against a request, so a silent run would look like a hang."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._since: float | None = None
        self._next = FIRST_NOTICE_SECONDS

    def note_refusal(self, now: float, outcome: Outcome, pause: float, progress: Progress) -> None:
        """Note a 429, after which the run waits `pause` seconds."""
        if self._since is None:
            self._since = now
        seconds = now - self._since
        # Before a pause that passes the time of the notice, not after it.
        if seconds + pause < self._next:
            return
        self._next = 2 * max(self._next, seconds)
        progress.set_note("HTTP 429")
        progress.print_line(
            f"provider {self.endpoint.provider} ({self.endpoint.base_url}) has answered nothing "
            f"but HTTP 429 for {seconds:.0f} s: {retry_policy.provider_message(outcome)}; the next request "
            f"is sent in {pause:.0f} s, and so on. Ctrl-C stops; what was answered is stored"
        )

    def note_answer(self, progress: Progress) -> None:
        if self._next > FIRST_NOTICE_SECONDS:
            progress.set_note("")
        self._since, self._next = None, FIRST_NOTICE_SECONDS
