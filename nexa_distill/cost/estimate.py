"""What a collection would send and cost, before anything is sent.

The journal is read without its lock, so this works beside a running collector, and writes nothing.
Prompt tokens come from bytes by the best measure at hand: what the model billed per byte of its
stored requests, else the student's tokenizer, else `BYTES_PER_TOKEN`. Every request counts as
billed once: what a crash or a timeout bills on top is not in it. 32 bytes of memory per request.
"""

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nexa_distill.collection.collector import Collector
from nexa_distill.collection.requests.body import PromptRequest
from nexa_distill.cost.cache_misses import Earlier, why_sent
from nexa_distill.cost.throughput import Rates, measure
from nexa_distill.errors import NexaError
from nexa_distill.journal.journal import ReadOnlyJournal, Spent, spent_elsewhere
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml

BYTES_PER_TOKEN = 4
TOKENIZED = 500  # requests that the tokenizer reads
NOTHING = Spent(0, 0, 0.0)


@dataclass
class Estimate:
    """What a run would do. None = not known; dollars also when the model has no price.

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
    spent: Spent = NOTHING  # by all runs of all stages
    seconds: float | None = None  # as measured
    least_seconds: float = 0.0  # by the provider's limits per minute
    pace: str = ""  # what the larger of the two follows from


class _Asked:
    """Four numbers of each request to send; the texts of the first ones."""

    def __init__(self) -> None:
        self.texts, self.text_bytes = list[str](), 0
        self._numbers, self._reasons = array("q"), dict[str, int]()

    def add(self, request: PromptRequest, longest_answer: int, why: str) -> None:
        """One row's."""
        if len(self._numbers) < 4 * TOKENIZED:
            self.texts += [str(message["content"]) for message in request.body["messages"]]
            self.text_bytes += len(request.data)
        number = self._reasons.setdefault(why, len(self._reasons))
        self._numbers.extend((hash(request.key), len(request.data), longest_answer, number))

    def close(self) -> None:
        """Rows with the same request send it once."""
        rows = np.array(self._numbers, np.int64).reshape(-1, 4)
        _, first = np.unique(rows[:, 0], return_index=True)
        _, self.sizes, self.limits, why = rows[first].T
        self.shared = len(rows) - len(first)
        counts = np.bincount(why, minlength=len(self._reasons)).tolist()
        self.why = +Counter(dict(zip(self._reasons, counts, strict=True)))


def estimate(collector: Collector) -> Estimate:
    """Look, send nothing, write nothing. Raises StorageFailed when the journal cannot be read."""
    path = collector.journal_path
    with ReadOnlyJournal(path) as journal:
        found, asked = _look(collector, journal)
        found.spent = journal.spent().plus(spent_elsewhere(path.parent, path))
        if found.send:
            rates = measure(journal, collector.model)
            _count_tokens(found, asked, rates, collector)
            _time(found, asked, rates, collector)
    return found


def _look(collector: Collector, journal: ReadOnlyJournal) -> tuple[Estimate, _Asked]:
    found, asked, earlier = Estimate(), _Asked(), Earlier(journal)
    for requests, known in collector.chunks(journal):
        found.requests += len(requests)
        for request in requests:
            stored = known.get(request.key)
            settled = collector.settled(request, stored)
            if settled == "answered":
                found.answered += 1
            elif settled:
                found.not_sent[settled] += 1
            else:
                why = why_sent(request, stored, earlier)
                asked.add(request, collector.longest_answer(request), why)
    asked.close()
    found.send, found.shared, found.why = len(asked.sizes), asked.shared, asked.why
    return found, asked


def _count_tokens(found: Estimate, asked: _Asked, rates: Rates, collector: Collector) -> None:
    per_byte, found.measured_by = _tokens_per_byte(asked, rates, collector.config)
    found.prompt_tokens = round(int(asked.sizes.sum()) * per_byte)
    found.most_answer_tokens = int(asked.limits.sum())
    if rates.answer_tokens is not None:
        found.answer_tokens = round(float(np.minimum(asked.limits, rates.answer_tokens).sum()))
    if price := collector.price:
        found.most_usd = price.cost(found.prompt_tokens, found.most_answer_tokens)
        if found.answer_tokens is not None:
            found.usd = price.cost(found.prompt_tokens, found.answer_tokens)


def _tokens_per_byte(asked: _Asked, rates: Rates, config: DistillConfig) -> tuple[float, str]:
    """(tokens per byte of a request, how that is known)."""
    if rates.tokens_per_byte is not None:
        return rates.tokens_per_byte, f"as billed for {rates.answers:,} stored answers"
    if (tokens := _by_students_tokenizer(asked.texts, config)) is not None:
        return tokens / asked.text_bytes, "by the student's tokenizer"
    return 1 / BYTES_PER_TOKEN, f"at {BYTES_PER_TOKEN} bytes per token"


def _by_students_tokenizer(texts: list[str], config: DistillConfig) -> int | None:
    """Tokens of the texts; None when the tokenizer is not on this disk."""
    try:
        student = load_yaml(Path(config.student), StudentConfig)
        file = student.tokenizer(config.storage)
        if file is None:
            return None
        from tokenizers import Tokenizer

        encoded = Tokenizer.from_file(str(file)).encode_batch(texts, add_special_tokens=False)
    except (NexaError, ImportError):
        return None
    except Exception:  # noqa: BLE001  the package raises nothing more particular
        return None
    return sum(len(text.ids) for text in encoded)


def _time(found: Estimate, asked: _Asked, rates: Rates, collector: Collector) -> None:
    """Seconds by what was measured, and never less than the provider's limits allow."""
    if collector.batch_mode:
        found.pace = "as long as the provider takes for a batch, up to a day"
        return
    if rates.per_second:
        found.seconds = found.send / rates.per_second
        found.pace = f"{rates.per_second:,.1f} answers/s as in the last run"
    elif rates.latency_seconds is not None:
        at_once = min(collector.config.collection.concurrency, found.send)
        found.seconds = math.ceil(found.send / at_once) * rates.latency_seconds
        found.pace = f"{rates.latency_seconds:,.2f} s per answer, {at_once} at a time"
    reserved = int((asked.sizes // 3 + asked.limits).sum())  # as the pacer counts them
    for name, amount in (("requests_per_minute", found.send), ("tokens_per_minute", reserved)):
        limit = getattr(collector.provider, name)
        least = 60 * amount / limit if limit else 0.0
        if least > max(found.least_seconds, found.seconds or 0.0):
            found.least_seconds, found.pace = least, f"{name} {limit:,g}"
