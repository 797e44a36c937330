"""Count the spending, and decide whether the budget allows one more request."""

from nexa_distill.errors import BudgetReached, InputError
from nexa_distill.journal.journal import Usage
from nexa_distill.settings.pipeline import Budget, Provider


def format_usd(usd: float) -> str:
    """`1.20`, `0.0123`: at least two decimals, at most four; six below a cent, two from $100."""
    decimals = 2 if usd >= 100 else 4 if usd >= 0.01 else 6
    whole, _, cents = f"{usd:,.{decimals}f}".partition(".")
    return f"{whole}.{cents.rstrip('0').ljust(2, '0')}"


def refuse_unpriced(budget: Budget, name: str, provider: Provider, model: str) -> None:
    """Raises InputError (65) if dollars are limited but the model has no price."""
    if budget.max_usd is not None and model not in provider.prices:
        raise InputError(
            f"budget.max_usd is set and providers.{name}.prices has no price of {model}: dollars "
            "cannot be counted. Write its price, or use budget.max_requests or max_tokens"
        )


class BudgetTracker:
    """Usage of all runs (`before` is that of earlier ones), and reservations for open requests.

    Tokens and dollars as billed; an attempt that is perhaps billed counts as its reservation.
    """

    def __init__(self, budget: Budget, before: Usage) -> None:
        self.budget = budget
        self.requests, self.tokens, self.usd = before
        self.sent = self.answered = 0  # of this run
        self._reserved_tokens, self._reserved_usd, self._reservations = 0, 0.0, 0

    @property
    def spend_text(self) -> str:
        """For the progress line: `$1.2345 of $5.00`; empty without prices."""
        limit = self.budget.max_usd
        if limit is None:
            return f"${self.usd:.4f}" if self.usd else ""
        return f"${self.usd:.4f} of ${format_usd(limit)}"

    @property
    def has_no_reservations(self) -> bool:
        return not self._reservations

    def exceeded_limit(self, tokens: int, usd: float) -> str | None:
        """The limit that one more request of at most `tokens` and `usd` could exceed, or None."""
        limits = self.budget
        # Every open request counts in full: it may cost its maximum.
        would_be = (
            ("max_requests", self.requests + self._reservations + 1, limits.max_requests),
            ("max_tokens", self.tokens + self._reserved_tokens + tokens, limits.max_tokens),
            ("max_usd", self.usd + self._reserved_usd + usd, limits.max_usd),
        )
        for name, value, limit in would_be:
            if limit is not None and value > limit:
                return f"budget.{name} is {limit:g}; the next request could bring it to {value:g}"
        return None

    def reached_error(self, limit: str | None) -> BudgetReached:
        return BudgetReached(
            f"{limit} (all runs together). {self.answered} answers of this run are stored; raise "
            "the limit and run the same command to continue"
        )

    def reserve_request(self, tokens: int, usd: float) -> None:
        # Before the send, so that two workers never take the same last dollar.
        self.sent += 1
        self._reservations += 1
        self._reserved_tokens += tokens
        self._reserved_usd += usd

    def reserve_under_way(self, part: Usage) -> None:
        """Count a part of `before` as reserved instead of spent: it is still under way."""
        self.requests -= part.requests
        self.tokens -= part.tokens
        self.usd -= part.usd
        self._reservations += part.requests
        self._reserved_tokens += part.tokens
        self._reserved_usd += part.usd

    def release_reservation(self, tokens: int, usd: float, *, billed: tuple[int, float] | None) -> None:
        """End a reservation; `billed` is the actual or possible usage, None if not billed."""
        self._reservations -= 1
        self._reserved_tokens -= tokens
        self._reserved_usd -= usd
        if billed:
            self.requests += 1
            self.tokens += billed[0]
            self.usd += billed[1]
