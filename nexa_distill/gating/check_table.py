"""Convert rule measurements to the long form of contracts.CHECKS."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexa_distill.contracts import CHECKS, NOT_APPLIED
from nexa_distill.gating.rules import Flags, RuleResult

# The columns of CHECKS with dictionary-encoded texts, which are written in a fifth of the time.
WRITTEN_CHECKS = pa.schema(
    [f.with_type(pa.dictionary(pa.int32(), pa.string())) if f.type == pa.string() else f for f in CHECKS]
)


def passing_rows(measured: Sequence[RuleResult]) -> Flags:
    every: Flags = np.all([m.passed_rows for m in measured], axis=0)
    return every


def checks_table(rows: pa.Table, measured: Sequence[RuleResult]) -> pa.Table:
    """The measurements as WRITTEN_CHECKS: all rules of the first answer, then of the next.

    `rows` needs `sample_id` and `attempt`.
    """
    count, width = rows.num_rows, len(measured)
    usual = [m.reason for m in measured]
    others = [reason for m in measured for reason in m.reasons.values()]
    reasons = list(dict.fromkeys([*usual, *others, NOT_APPLIED, "check_missing"]))
    # Arrays have one element per answer and rule: `row * width + rule`.
    is_known = np.stack([m.known for m in measured], axis=1).ravel()
    ok = np.stack([m.ok for m in measured], axis=1).ravel() & is_known
    # The usual reason of each rule, replaced in rows that fail for another one.
    own = np.tile([reasons.index(reason) for reason in usual], count)
    for j, m in enumerate(measured):
        for row, other in m.reasons.items():
            own[row * width + j] = reasons.index(other)
    reason = np.where(is_known, own, len(reasons) - 1)
    for j, m in enumerate(measured):
        reason[np.fromiter(m.not_applied, np.int64) * width + j] = len(reasons) - 2
    value = np.full((count, width), np.nan)
    for j, m in enumerate(measured):
        if m.value is not None:
            value[:, j] = np.where(m.known, m.value, np.nan)
    rules = np.tile(np.arange(width, dtype=np.int32), count)
    columns = [
        _dictionary_array(np.repeat(np.arange(count, dtype=np.int32), width), rows["sample_id"]),
        pa.array(np.repeat(rows["attempt"].to_numpy(), width)),
        _dictionary_array(rules, pa.array([m.check for m in measured])),
        pa.array(ok, mask=~is_known),
        pa.array(value.ravel(), from_pandas=True),
        # A passed check has no reason.
        _dictionary_array(reason.astype(np.int32), pa.array(reasons), mask=ok),
        _detail_column(measured, count, width),
    ]
    return pa.table(columns, schema=WRITTEN_CHECKS)


def _dictionary_array(
    index: npt.NDArray[np.int32], values: pa.Array | pa.ChunkedArray, mask: Flags | None = None
) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return pa.DictionaryArray.from_arrays(pa.array(index, mask=mask), values)


def _detail_column(measured: Sequence[RuleResult], count: int, width: int) -> pa.Array:
    index = np.zeros(count * width, np.int32)
    absent = np.ones(count * width, np.bool_)
    texts: dict[str, int] = {}
    for j, m in enumerate(measured):
        for row, text in m.detail.items():
            absent[row * width + j] = False
            index[row * width + j] = texts.setdefault(text, len(texts))
    return _dictionary_array(index, pa.array(list(texts), pa.string()), mask=absent)
