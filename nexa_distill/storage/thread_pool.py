"""Work on batches on every core, with the results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Run `work` on each item, on every core and a few items ahead; yield results in order."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        yield from submit_in_order(pool, work, items, ahead=workers + 1)


def submit_in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Results in order. Only `ahead` items wait: work for every thread, without all of the input in memory."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
