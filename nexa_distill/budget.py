"""What a run has spent, and whether one more request may be sent."""

from dataclasses import dataclass, field

from nexa_distill.config import Budget


@dataclass
class Tally:
    """What this run sent and spent. Tokens and dollars as billed; requests are sends."""

    requests: int = 0
    answered: int = 0
    tokens: int = 0
    usd: float = 0.0
    in_flight: dict[str, tuple[int, float]] = field(default_factory=dict)

    def over(self, budget: Budget, tokens: int, usd: float) -> str | None:
        """Which limit one more request of at most `tokens` and `usd` could break, or None."""
        reserved_tokens = sum(t for t, _ in self.in_flight.values())
        reserved_usd = sum(u for _, u in self.in_flight.values())
        would_be = {
            "max_requests": (self.requests + 1, budget.max_requests),
            "max_tokens": (self.tokens + reserved_tokens + tokens, budget.max_tokens),
            "max_usd": (self.usd + reserved_usd + usd, budget.max_usd),
        }
        for name, (value, limit) in would_be.items():
            if limit is not None and value > limit:
                return f"budget.{name} is {limit:g}; the next request could bring it to {value:g}"
        return None
