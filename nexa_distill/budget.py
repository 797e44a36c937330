"""What has been spent, and whether one more request may be sent."""

from nexa_distill.config import Budget
from nexa_distill.journal import Spent


class Tally:
    """Spent by all runs (`before` and since), and reserved for what is on its way.

    Tokens and dollars as billed; an attempt that may have been billed counts as its reservation.
    """

    def __init__(self, budget: Budget, before: Spent) -> None:
        self.budget, self.before = budget, before
        self.requests, self.tokens, self.usd = before
        self.sent = self.answered = 0  # of this run
        self._reserved_tokens, self._reserved_usd, self._reservations = 0, 0.0, 0

    @property
    def usd_now(self) -> float:
        """US dollars spent by this run."""
        return self.usd - self.before.usd

    @property
    def idle(self) -> bool:
        """Whether nothing is reserved: what stands in `over` will not change by waiting."""
        return not self._reservations

    def over(self, tokens: int, usd: float) -> str | None:
        """Which limit one more request of at most `tokens` and `usd` could break, or None."""
        limits = self.budget
        would_be = (
            ("max_requests", self.requests + self._reservations + 1, limits.max_requests),
            ("max_tokens", self.tokens + self._reserved_tokens + tokens, limits.max_tokens),
            ("max_usd", self.usd + self._reserved_usd + usd, limits.max_usd),
        )
        for name, value, limit in would_be:
            if limit is not None and value > limit:
                return f"budget.{name} is {limit:g}; the next request could bring it to {value:g}"
        return None

    def reserve(self, tokens: int, usd: float) -> None:
        """A request goes out."""
        self.sent += 1
        self._reservations += 1
        self._reserved_tokens += tokens
        self._reserved_usd += usd

    def release(self, tokens: int, usd: float, *, billed: tuple[int, float] | None) -> None:
        """It has ended; `billed` is what it cost or may have cost, None if it was not billed."""
        self._reservations -= 1
        self._reserved_tokens -= tokens
        self._reserved_usd -= usd
        if billed:
            self.requests += 1
            self.tokens += billed[0]
            self.usd += billed[1]
