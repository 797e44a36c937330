"""When the next request may be sent: as fast as the provider allows.

Three limits apply together. Times are seconds of a monotonic clock, passed by the caller.

- A pause: nothing is sent before the time of a `Retry-After`.
- The provider's configured requests and tokens per minute, evenly spread.
- A window of requests in flight, which grows up to `concurrency` and is cut by refusals for load.
"""

import math
from collections import deque

# After a cut the window grows along the curve of CUBIC TCP (RFC 9438): flat around the estimated
# limit, and steeper the longer nothing is refused. Constants chosen on simulated token buckets.
FIRST_WINDOW = 256
LEAST_CUT, MOST_CUT = 0.95, 0.4  # remaining share of the served rate, or of the window
PLATEAU_SECONDS = 8.0  # from a cut until the window is back at the estimated limit
PROBE_SECONDS = 3.0  # from there until it is 1 - LEAST_CUT above it; 27 times that after 9 s
MEASURE_SECONDS = 3.0  # the served rate is that of the answers of the last seconds
LATENCY_SHARE = 0.1  # weight of the newest answer in the running mean


class TokenBucket:
    """At most `per_minute` of something, one second's worth at once; None = no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self.rate = per_minute / 60 if per_minute else math.inf
        self._level, self._at = self.rate, -math.inf

    def wait_seconds(self, now: float) -> float:
        """Seconds until the next send. It may overdraw the bucket, however large it is."""
        if self.rate == math.inf:
            return 0.0
        self._level = min(self._level + (now - self._at) * self.rate, max(self.rate, 1.0))
        self._at = now
        # Enough for one request; a large one overdraws the bucket, and the next waits for the refill.
        return max(0.0, min(1.0, self.rate) - self._level) / self.rate

    def take_amount(self, amount: float) -> None:
        if self.rate != math.inf:
            self._level -= amount


class RateLimiter:
    """The rate limiter of one provider. `window` is in requests."""

    def __init__(
        self, concurrency: int, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self.concurrency = concurrency
        self.window = float(min(FIRST_WINDOW, concurrency))
        self.cuts = 0
        self._requests, self._tokens = (TokenBucket(requests_per_minute), TokenBucket(tokens_per_minute))
        self._pause_until = self._next_at = -math.inf
        self._cut_at: float | None = None  # None: no refusal yet, or the last one is long ago
        self._plateau = self._left = 0.0
        self._latency: float | None = None
        self._answers: deque[float] = deque()  # times, of the last MEASURE_SECONDS, after a cut

    def wait_seconds(self, now: float, in_flight: int) -> float:
        """Seconds until the next send; 0 = now; infinity = after one in flight has ended."""
        if self._cut_at is not None:
            self._grow_window(now, self._cut_at)
        if in_flight >= max(1, math.ceil(self.window)):
            return math.inf
        next_at = max(self._pause_until, self._next_at)
        return max(0.0, next_at - now, self._requests.wait_seconds(now), self._tokens.wait_seconds(now))

    def note_sent(self, now: float, tokens: int) -> None:
        """Note the send of a request of at most `tokens` tokens (prompt and answer)."""
        self._requests.take_amount(1)
        self._tokens.take_amount(tokens)
        # After a cut, sends are also spaced evenly: for slow limits a window of whole requests is
        # too coarse.
        if self._cut_at is not None:
            self._next_at = max(self._next_at, now - self._send_interval()) + self._send_interval()

    def note_answer(self, now: float, latency: float) -> None:
        """Note an answer, `latency` seconds after its send."""
        before = latency if self._latency is None else self._latency
        self._latency = before + LATENCY_SHARE * (latency - before)
        if self._cut_at is not None:
            self._answers.append(now)
            while self._answers[0] < now - MEASURE_SECONDS:
                self._answers.popleft()
        # Until the first refusal, each answer opens the window by one (the slow start of TCP).
        elif self.window < self.concurrency:
            self.window += 1

    def pause_sends(self, now: float, seconds: float) -> None:
        self._pause_until = max(self._pause_until, now + seconds)

    def note_refusal(self, now: float, sent_at: float) -> None:
        """Note a refusal for load (429, 503, 529) of a request sent at `sent_at`."""
        if self._cut_at is not None and sent_at <= self._cut_at:
            return  # one cut per burst: it was sent before the last cut
        limit, rest = self.window, self.window * MOST_CUT
        if self._cut_at is not None and self._latency:
            # The served rate, pauses included: between two moments at which a token bucket is
            # empty, the answers are exactly its refill.
            recent = sum(at >= now - MEASURE_SECONDS for at in self._answers)
            rate = recent / min(now - self._cut_at, MEASURE_SECONDS)
            limit = min(rate * self._latency, self.window)
            rest = max(limit * LEAST_CUT, rest)
        self._plateau = max(limit, rest)
        self.window = self._left = max(rest, self._min_window())
        self._cut_at, self.cuts = now, self.cuts + 1

    def _grow_window(self, now: float, cut_at: float) -> None:
        # A cubic curve: steep after the cut, flat at the estimated limit, then steeper and steeper.
        depth = 1 - self._left / self._plateau
        past = now - cut_at - PLATEAU_SECONDS
        if past < 0:
            curve = 1 - depth * (-past / PLATEAU_SECONDS) ** 3
        else:
            curve = 1 + (1 - LEAST_CUT) * (past / PROBE_SECONDS) ** 3
        self.window = max(self._plateau * curve, self._min_window())
        if self.window >= self.concurrency:
            self.window, self._cut_at, self._next_at = float(self.concurrency), None, -math.inf

    def _send_interval(self) -> float:
        return (self._latency or 1.0) / self.window

    def _min_window(self) -> float:
        # One request a minute: after any number of refusals the run still goes on.
        return (self._latency or 1.0) / 60
