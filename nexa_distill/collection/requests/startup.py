"""Wait for a server that is still loading its model.

It refuses connections, or answers 502, 503 or 504, or its message says that it is loading. One
request at a time polls it; none counts against its row. After the run's first answer the same
failures count as failures.
"""

from nexa_distill import dialects
from nexa_distill.collection.requests import retry_policy
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.collection.requests.transport import REFUSED_CONNECTION
from nexa_distill.console.progress import Progress
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal.journal import Outcome

NOT_READY = {502, 503, 504}  # by llama.cpp, or by the proxy before a server that has not started
FIRST_POLL_SECONDS, POLL_GROWTH, LAST_POLL_SECONDS = 0.5, 1.5, 5.0


class Startup:
    """The wait of one run, of at most `seconds` from the first refusal on; 0 = no wait."""

    def __init__(self, endpoint: Endpoint, seconds: float) -> None:
        self.endpoint, self.seconds = endpoint, seconds
        self._has_served = False
        self._since: float | None = None
        self._poll = FIRST_POLL_SECONDS

    @property
    def is_waiting(self) -> bool:
        return self._since is not None

    def is_loading(self, outcome: Outcome, *, is_hidden: bool) -> bool:
        """Whether a failure means that the server is not ready yet; `is_hidden`: inside a 200."""
        if self._has_served or not self.seconds or outcome.outcome == "answered":
            return False
        if outcome.outcome == "not_sent":
            return (outcome.error or "").startswith(REFUSED_CONNECTION)
        if outcome.outcome != "rejected" or outcome.status is None:
            return False
        if outcome.status in NOT_READY and not is_hidden:
            return True
        may_load = outcome.status >= 500 or outcome.status == 425
        return may_load and dialects.is_loading(retry_policy.failure_text(outcome))

    def next_poll_seconds(self, now: float, outcome: Outcome, pause: float | None, progress: Progress) -> float:
        """Seconds until the next poll. Raises ProviderUnusable at the end of the wait."""
        message = retry_policy.provider_message(outcome, 120)
        if self._since is None:
            self._since = now
            progress.print_line(
                f"provider {self.endpoint.provider} ({self.endpoint.base_url}) is not ready "
                f"({message}); waiting up to {self.seconds:.0f} s for it "
                f"(providers.{self.endpoint.provider}.startup_wait_seconds)"
            )
        rest = self._since + self.seconds - now
        if rest <= 0:
            raise ProviderUnusable(
                f"provider {self.endpoint.provider} ({self.endpoint.base_url}) was not ready within "
                f"{self.seconds:.0f} s ({message}); is the server running? Wait for it and run the same command "
                f"again, or raise providers.{self.endpoint.provider}.startup_wait_seconds"
            )
        progress.set_note(f"waiting for the server, {now - self._since:.0f} s")
        # Short at first: a small model loads in a second, a large one in minutes.
        poll, self._poll = self._poll, min(self._poll * POLL_GROWTH, LAST_POLL_SECONDS)
        return min(max(poll, pause or 0.0), rest)

    def note_answer(self, now: float, progress: Progress) -> None:
        if self._since is not None:
            progress.print_line(f"provider {self.endpoint.provider} is ready after {now - self._since:.0f} s")
            progress.set_note("")
        self._has_served, self._since = True, None
