"""When the next request may be sent: as fast as the provider lets us, and no faster.

Three limits hold at once. Times are seconds of a monotonic clock, given by the caller.

- A pause: nothing is sent before the time that a `Retry-After` named.
- The configured requests and tokens per minute of the provider, evenly spread, one second's worth
  at once.
- A window of requests in flight. It doubles with every round trip up to `concurrency`. A refusal
  for load (429, 503, 529) cuts it, once per burst: refusals of what was sent before the cut change
  nothing. From then on sends are spaced evenly (window / latency per second), because a window of
  whole requests is too coarse for slow limits.

The cut is to the rate that the provider served in the last seconds, pauses included: between two
moments at which a token bucket is empty, the answers are exactly what it refilled. The window then
comes back along a curve that is flat around that rate and steeper the longer nothing is refused
(the shape is that of CUBIC TCP, RFC 9438; the constants were chosen on simulated token buckets).
"""

import math
from collections import deque

FIRST_WINDOW = 256
LEAST_CUT, MOST_CUT = 0.95, 0.4  # share of the window, or of the served rate, that is left
PLATEAU_SECONDS = 8.0  # after a cut, until the window is back where the limit is believed
PROBE_SECONDS = 3.0  # then, until it is 1 - LEAST_CUT above that; 27 times that in three times this
MEASURE_SECONDS = 3.0  # answers of the last so many seconds tell the served rate
LATENCY_SHARE = 0.1  # of the newest answer in the running mean


class Bucket:
    """At most `per_minute` of something, one second's worth at once; None = no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self.rate = per_minute / 60 if per_minute else math.inf
        self._level, self._at = self.rate, -math.inf

    def wait(self, now: float) -> float:
        """Seconds until the next may go. What goes may overdraw the bucket, however large."""
        if self.rate == math.inf:
            return 0.0
        self._level = min(self._level + (now - self._at) * self.rate, max(self.rate, 1.0))
        self._at = now
        return max(0.0, min(1.0, self.rate) - self._level) / self.rate

    def take(self, amount: float) -> None:
        """Count what was sent."""
        if self.rate != math.inf:
            self._level -= amount


class Pacer:
    """One provider's. `in_flight` is the caller's to tell; `window` is in requests."""

    def __init__(
        self, concurrency: int, requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:  # fmt: skip
        self.concurrency = concurrency
        self.window = float(min(FIRST_WINDOW, concurrency))
        self.cuts = 0
        self._requests, self._tokens = Bucket(requests_per_minute), Bucket(tokens_per_minute)
        self._pause_until = self._next_at = -math.inf
        self._cut_at: float | None = None  # None: nothing was refused yet, or long ago
        self._plateau = self._left = 0.0
        self._latency: float | None = None
        self._answers: deque[float] = deque()  # times, of the last MEASURE_SECONDS, after a cut

    def wait(self, now: float, in_flight: int) -> float:
        """Seconds until the next send; 0 = now; infinity = when one in flight has ended."""
        if self._cut_at is not None:
            self._grow(now, self._cut_at)
        if in_flight >= max(1, math.ceil(self.window)):
            return math.inf
        return max(
            0.0, self._pause_until - now, self._next_at - now,
            self._requests.wait(now), self._tokens.wait(now),
        )  # fmt: skip

    def sent(self, now: float, tokens: int) -> None:
        """One request goes out, of at most `tokens` tokens (prompt and answer)."""
        self._requests.take(1)
        self._tokens.take(tokens)
        if self._cut_at is not None:
            self._next_at = max(self._next_at, now - self._interval()) + self._interval()

    def served(self, now: float, latency: float) -> None:
        """An answer arrived, `latency` seconds after its send."""
        before = latency if self._latency is None else self._latency
        self._latency = before + LATENCY_SHARE * (latency - before)
        if self._cut_at is not None:
            self._answers.append(now)
            while self._answers[0] < now - MEASURE_SECONDS:
                self._answers.popleft()
        elif self.window < self.concurrency:
            self.window += 1

    def pause(self, now: float, seconds: float) -> None:
        """Send nothing for so long."""
        self._pause_until = max(self._pause_until, now + seconds)

    def refused(self, now: float, sent_at: float) -> None:
        """The provider refused for load what was sent at `sent_at`."""
        if self._cut_at is not None and sent_at <= self._cut_at:
            return
        believed, left = self.window, self.window * MOST_CUT
        if self._cut_at is not None and self._latency:
            recent = sum(at >= now - MEASURE_SECONDS for at in self._answers)
            rate = recent / min(now - self._cut_at, MEASURE_SECONDS)
            believed = min(rate * self._latency, self.window)
            left = max(believed * LEAST_CUT, left)
        self._plateau = max(believed, left)
        self.window = self._left = max(left, self._slowest())
        self._cut_at, self.cuts = now, self.cuts + 1

    def _grow(self, now: float, cut_at: float) -> None:
        depth = 1 - self._left / self._plateau
        past = now - cut_at - PLATEAU_SECONDS
        if past < 0:
            curve = 1 - depth * (-past / PLATEAU_SECONDS) ** 3
        else:
            curve = 1 + (1 - LEAST_CUT) * (past / PROBE_SECONDS) ** 3
        self.window = max(self._plateau * curve, self._slowest())
        if self.window >= self.concurrency:
            self.window, self._cut_at, self._next_at = float(self.concurrency), None, -math.inf

    def _interval(self) -> float:
        return (self._latency or 1.0) / self.window

    def _slowest(self) -> float:
        """One request a minute, whatever was refused."""
        return (self._latency or 1.0) / 60
