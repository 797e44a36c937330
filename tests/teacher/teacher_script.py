"""The ledger teacher's script: the keyword arguments of `ledger_teacher`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.teacher.teacher_answers import CAPABILITIES, ODD_BODIES
from tests.teacher.teacher_batches import BATCH_FAULTS
from tests.teacher.teacher_faults import AUTO, DELIVERIES

UNBILLED = {"status", "reset_before"}
FAULTS = {"none", *UNBILLED, *DELIVERIES, *ODD_BODIES}


@dataclass(frozen=True)
class Fault:
    """`status:503` is the kind `status` with the value `503`."""

    kind: str = "none"
    value: str = ""


@dataclass(frozen=True)
class Script:
    """What the server does, and to which requests.

    delay            seconds from a request to its answer
    fault            a name of `FAULTS`, with a value after a colon where it takes one, or a list
                     of them, of which hash and repetition choose:
                     status:CODE (or CODE alone), reset_before: refused, nothing is billed;
                     all others are billed: the names of DELIVERIES (drip:SECONDS, late:SECONDS,
                     large:MB, gzip_bomb:MB, sse:twice) and ODD_BODIES (length:N strikes only
                     requests with max_tokens of at most N)
    share            the share of the requests that it strikes, chosen by their hash
    times, always    it strikes the first `times` sends of a request (1), or each
    waves            it strikes only in every second period of that many seconds, the first included
    code             `error.code` of a status; the environment variable CODE without it
    retry_after      raw text of the header on a status or 429, `date:+2` relative to now, None for
                     no header; `auto`: "0" on a status, whole seconds until a token at the limit
    retry_after_ms   raw text of that header
    swap_after       from the answer after that many on, another model and fingerprint answers
    rate, burst      requests a second, and at once (as many as in one second); 429 beyond
    halve_after      seconds from the first request until half the rate is left
    says             {"words|more words": text}: a request whose model and messages hold all of the
                     words is answered with that text, of several the first
    models           listed besides ledger-teacher
    capabilities     of CAPABILITIES; what is not named is refused (400; models: 404) or left out
    api_faults       {"METHOD /path": fault} for the other addresses, at the first request to each
                     path (or each one, with `always`); `/v1/batches` is that path alone
    batch_delay      seconds that a batch takes
    batch_fault      a name of BATCH_FAULTS; strikes the first batch, or each with `always`
    """

    delay: float = 0.0
    fault: str | Sequence[str] = "none"
    share: float = 1.0
    times: int = 1
    always: bool = False
    waves: float | None = None
    code: str = field(default_factory=lambda: os.environ.get("CODE", ""))
    retry_after: str | None = AUTO
    retry_after_ms: str | None = None
    swap_after: int | None = None
    rate: float | None = None
    burst: int | None = None
    halve_after: float | None = None
    says: dict[str, str] = field(default_factory=dict)
    models: Sequence[str] = ()
    capabilities: Sequence[str] = CAPABILITIES
    api_faults: dict[str, str] = field(default_factory=dict)
    batch_delay: float = 0.2
    batch_fault: str = "none"

    def __post_init__(self) -> None:
        known(self.batch_fault, BATCH_FAULTS)
        for name in self.capabilities:
            known(name, CAPABILITIES)
        for text in [*self.fault_texts(), *self.api_faults.values()]:
            known(parse(text).kind, FAULTS)

    def fault_texts(self) -> Sequence[str]:
        return [self.fault] if isinstance(self.fault, str) else self.fault


def parse(text: str) -> Fault:
    kind, _, value = text.partition(":")
    return Fault("status", kind) if kind.isdigit() else Fault(kind, value)


def known(name: str, names: Sequence[str] | set[str]) -> None:
    if name not in names:
        raise ValueError(f"the ledger teacher knows no {name!r}; it knows {sorted(names)}")
