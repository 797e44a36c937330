"""The pace, on a clock of its own: no request is sent, so a minute takes milliseconds."""

import heapq
import itertools
import math
import random
from collections.abc import Callable

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from nexa_distill.collection.requests.rate_limiter import RateLimiter
from nexa_distill.collection.requests.transport import DEFAULT_PAUSE_SECONDS, MAX_PAUSE_SECONDS, retry_after_seconds


def run(
    pacer: RateLimiter, allows: Callable[[float], bool], total: int, latency: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Times of the served and of the refused sends. A refusal comes at once: wait a second."""
    served: list[float] = []
    refused: list[float] = []
    ends: list[tuple[float, int, bool, float]] = []
    now, left, flying, number = 0.0, total, 0, itertools.count()
    while len(served) < total:
        wait = pacer.wait_seconds(now, flying) if left else math.inf
        if wait == 0:
            pacer.note_sent(now, 100)
            good = allows(now)
            end = now + (latency() if good else 0.001)
            heapq.heappush(ends, (end, next(number), good, now))
            left, flying = left - 1, flying + 1
        elif ends and ends[0][0] <= now + wait:
            now, _, good, sent = heapq.heappop(ends)
            flying -= 1
            if good:
                served.append(now)
                pacer.note_answer(now, now - sent)
            else:
                left += 1
                refused.append(now)
                pacer.pause_sends(now, 1.0)
                pacer.note_refusal(now, sent)
        else:
            now += wait + 1e-9
    return served, refused


def bucket(rate: float, halves: float = math.inf) -> Callable[[float], bool]:
    """A provider's limit: `rate` a second, one second's worth at once; half after `halves`."""
    level, at = rate, 0.0

    def allows(now: float) -> bool:
        nonlocal level, at
        limit = rate if now < halves else rate / 2
        level, at = min(limit, level + (now - at) * limit), now
        if level < 1:
            return False
        level -= 1
        return True

    return allows


def test_without_refusals_the_window_opens_to_the_concurrency_in_a_few_round_trips() -> None:
    pacer = RateLimiter(256)
    served, _ = run(pacer, lambda _: True, 5120, lambda: 0.2)
    assert pacer.window == 256
    assert served[-1] <= 5120 / 256 * 0.2 + 0.21


@pytest.mark.parametrize("concurrency", [16, 64])
@pytest.mark.parametrize("seconds", [0.02, 0.2])
def test_f13_near_the_allowed_rate_with_few_refusals_even_when_it_halves(concurrency: int, seconds: float) -> None:
    served, refused = run(RateLimiter(concurrency), bucket(50, halves=40), 3000, lambda: seconds)
    allowed = 50 * 40 + 25 * (served[-1] - 40)
    assert len(served) / allowed >= 0.9
    assert len(refused) / (len(refused) + len(served)) < 0.05


def test_f13_irregular_latencies_do_not_upset_the_pace() -> None:
    draw = random.Random(7)
    served, refused = run(RateLimiter(64), bucket(50), 3000, lambda: draw.lognormvariate(math.log(0.3), 0.6))
    assert len(served) / (50 * served[-1]) >= 0.85
    assert len(refused) < 150


def test_f13_one_burst_of_refusals_is_one_cut() -> None:
    pacer = RateLimiter(64)
    for _ in range(64):
        pacer.note_sent(0.0, 1)
    for n in range(64):
        pacer.note_refusal(0.1 + n / 1000, sent_at=0.0)
    assert pacer.cuts == 1
    assert pacer.window == pytest.approx(64 * 0.4)


def test_f13_nothing_is_sent_before_the_time_and_the_longest_pause_counts() -> None:
    pacer = RateLimiter(4)
    pacer.pause_sends(10.0, 5.0)
    pacer.pause_sends(10.5, 1.0)
    assert pacer.wait_seconds(10.5, 0) == pytest.approx(4.5)
    assert pacer.wait_seconds(15.0, 0) == 0


def test_requests_per_minute_hold_and_one_seconds_worth_may_go_at_once() -> None:
    served, _ = run(RateLimiter(64, requests_per_minute=600), lambda _: True, 100, lambda: 0.01)
    assert served[9] < 0.1
    assert 100 / 10 - 1.1 <= served[-1] <= 100 / 10 + 0.1


def test_tokens_per_minute_hold_even_for_requests_larger_than_a_seconds_worth() -> None:
    served, _ = run(RateLimiter(64, tokens_per_minute=3000), lambda _: True, 10, lambda: 0.01)
    assert 16 <= served[-1] <= 20.1  # 10 requests of 100 tokens at 50 tokens a second


def test_a_single_refusal_long_ago_is_forgotten() -> None:
    pacer = RateLimiter(32)
    pacer.note_answer(0.0, 0.1)
    pacer.note_refusal(1.0, sent_at=0.9)
    assert pacer.wait_seconds(1.1, 0) == 0
    pacer.wait_seconds(60.0, 0)
    assert pacer.window == 32


DATE = "Sat, 21 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "-5"}, DEFAULT_PAUSE_SECONDS),
        ({"Retry-After": "soon"}, DEFAULT_PAUSE_SECONDS),
        ({"Retry-After": ""}, DEFAULT_PAUSE_SECONDS),
        ({"Retry-After": "nan"}, DEFAULT_PAUSE_SECONDS),
        ({"Retry-After": "inf"}, DEFAULT_PAUSE_SECONDS),
        ({"Retry-After": "360000"}, MAX_PAUSE_SECONDS),
        ({"Retry-After": "9", "retry-after-ms": "250"}, 0.25),
        ({"Retry-After": "Sat, 21 Nov 2026 10:00:07 GMT", "Date": DATE}, 7.0),
        ({"Retry-After": "Sat, 21 Nov 2026 09:00:00 GMT", "Date": DATE}, 0.0),
    ],
)
def test_f13_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(CIMultiDictProxy(CIMultiDict(headers))) == seconds
