"""Estimate of the requests, tokens, cost and time of a collection, before anything is sent.

The journal is read without its lock, so this works beside a running collector. Every request counts
as billed once; a crash or a timeout may bill it again.
"""

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nexa_distill.collection.collector import Collector
from nexa_distill.collection.requests.body import PromptRequest
from nexa_distill.cost.cache_misses import EarlierRequests, why_sent
from nexa_distill.cost.throughput import Throughput, measure_throughput
from nexa_distill.journal.journal import ReadOnlyJournal, Usage
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml

BYTES_PER_TOKEN = 4
TOKENIZED_REQUESTS = 500  # requests whose text the student's tokenizer counts
NO_USAGE = Usage(0, 0, 0.0)


@dataclass
class Estimate:
    """The work of a run. None = not known; dollars also if the model has no price.

    `requests == send + answered + shared + not_sent.total()` and `send == why.total()`.
    """

    requests: int = 0
    send: int = 0
    answered: int = 0
    shared: int = 0
    not_sent: Counter[str] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    measured_by: str = ""
    answer_tokens: int | None = None
    most_answer_tokens: int = 0
    usd: float | None = None
    most_usd: float | None = None
    spent: Usage = NO_USAGE  # by all runs of all stages
    seconds: float | None = None  # at the measured throughput
    least_seconds: float = 0.0  # at the provider's limits per minute
    pace: str = ""  # source of the larger of the two


class _RequestSizes:
    """Key hash, bytes, token limit and reason of each request to send; the first ones' texts."""

    def __init__(self) -> None:
        self.texts, self.text_bytes = list[str](), 0
        # Four numbers of 8 bytes per request: millions of requests fit into memory.
        self._numbers, self._reasons = array("q"), dict[str, int]()

    def add_request(self, request: PromptRequest, longest_answer: int, why: str) -> None:
        if len(self._numbers) < 4 * TOKENIZED_REQUESTS:
            self.texts += [str(message["content"]) for message in request.body["messages"]]
            self.text_bytes += len(request.data)
        number = self._reasons.setdefault(why, len(self._reasons))
        self._numbers.extend((hash(request.key), len(request.data), longest_answer, number))

    def merge_duplicates(self) -> None:
        rows = np.array(self._numbers, np.int64).reshape(-1, 4)
        _, first = np.unique(rows[:, 0], return_index=True)
        _, self.sizes, self.limits, why = rows[first].T
        self.shared = len(rows) - len(first)
        counts = np.bincount(why, minlength=len(self._reasons)).tolist()
        # `+` drops the reasons whose requests are all duplicates.
        self.why = +Counter(dict(zip(self._reasons, counts, strict=True)))


def estimate_collection(collector: Collector) -> Estimate:
    """Estimate without sending or writing anything. Raises StorageFailed: journal unreadable."""
    path = collector.journal_path
    with ReadOnlyJournal(path) as journal:
        plan, sizes = _count_requests(collector, journal)
        plan.spent = journal.usage_of_all_journals()
        if plan.send:
            rates = measure_throughput(journal, collector.model)
            _count_tokens(plan, sizes, rates, collector)
            _estimate_time(plan, sizes, rates, collector)
    return plan


def _count_requests(collector: Collector, journal: ReadOnlyJournal) -> tuple[Estimate, _RequestSizes]:
    plan, sizes, earlier = Estimate(), _RequestSizes(), EarlierRequests(journal)
    for requests, states in collector.request_chunks(journal):
        plan.requests += len(requests)
        for request in requests:
            state = states.get(request.key)
            settled = collector.settled_reason(request, state)
            if settled == "answered":
                plan.answered += 1
            elif settled:
                plan.not_sent[settled] += 1
            else:
                why = why_sent(request, state, earlier)
                sizes.add_request(request, collector.max_answer_tokens(request), why)
    sizes.merge_duplicates()
    plan.send, plan.shared, plan.why = len(sizes.sizes), sizes.shared, sizes.why
    return plan, sizes


def _count_tokens(plan: Estimate, sizes: _RequestSizes, rates: Throughput, collector: Collector) -> None:
    per_byte, plan.measured_by = _tokens_per_byte(sizes, rates, collector.config)
    plan.prompt_tokens = round(int(sizes.sizes.sum()) * per_byte)
    plan.most_answer_tokens = int(sizes.limits.sum())
    if rates.answer_tokens is not None:
        # No answer is longer than its own limit.
        plan.answer_tokens = round(float(np.minimum(sizes.limits, rates.answer_tokens).sum()))
    if price := collector.model_price:
        plan.most_usd = price.answer_cost(plan.prompt_tokens, plan.most_answer_tokens)
        if plan.answer_tokens is not None:
            plan.usd = price.answer_cost(plan.prompt_tokens, plan.answer_tokens)


def _tokens_per_byte(sizes: _RequestSizes, rates: Throughput, config: DistillConfig) -> tuple[float, str]:
    # From the best measure to the roughest.
    if rates.tokens_per_byte is not None:
        return rates.tokens_per_byte, f"as billed for {rates.answers:,} stored answers"
    if (tokens := _count_by_tokenizer(sizes.texts, config)) is not None:
        return tokens / sizes.text_bytes, "by the student's tokenizer"
    return 1 / BYTES_PER_TOKEN, f"at {BYTES_PER_TOKEN} bytes per token"


def _count_by_tokenizer(texts: list[str], config: DistillConfig) -> int | None:
    try:
        student = load_yaml(Path(config.student), StudentConfig)
        file = student.find_tokenizer(config.storage)
        if file is None:
            return None
        # Imported here: a run with stored answers does not need it.
        from tokenizers import Tokenizer

        encoded = Tokenizer.from_file(str(file)).encode_batch(texts, add_special_tokens=False)
    except Exception:  # noqa: BLE001  tokenizers raises plain exceptions, and it may be missing
        return None
    return sum(len(text.ids) for text in encoded)


def _estimate_time(plan: Estimate, sizes: _RequestSizes, rates: Throughput, collector: Collector) -> None:
    if collector.is_batch_mode:
        plan.pace = "as long as the provider takes for a batch, up to a day"
        return
    if rates.per_second:
        plan.seconds = plan.send / rates.per_second
        plan.pace = f"{rates.per_second:,.1f} answers/s as in the last run"
    elif rates.latency_seconds is not None:
        concurrency = min(collector.config.collection.concurrency, plan.send)
        # In waves: as many requests as are sent together take one latency.
        plan.seconds = math.ceil(plan.send / concurrency) * rates.latency_seconds
        plan.pace = f"{rates.latency_seconds:,.2f} s per answer, {concurrency} at a time"
    reserved = int((sizes.sizes // 3 + sizes.limits).sum())  # as the rate limiter counts them
    for name, amount in (("requests_per_minute", plan.send), ("tokens_per_minute", reserved)):
        limit = getattr(collector.provider_settings, name)
        least = 60 * amount / limit if limit else 0.0
        if least > max(plan.least_seconds, plan.seconds or 0.0):
            plan.least_seconds, plan.pace = least, f"{name} {limit:,g}"
