"""Computing in one precision; how far apart two runs are that add up the same in another order.

float32 has 24 bits of mantissa: another order of some thousand additions moves a mean by 1e-6.
bfloat16 has 8, and under autocast every product of matrices is rounded to them, gradients too: one
of them is off by up to 2^-9 = 2e-3, and what they add up to by less, for errors go both ways.

Each limit of bfloat16 was seen to catch a fault of the trainer: see its comment.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from accelerate.state import AcceleratorState

from nexa_train.models.precision import BF16_VARIABLE

PRECISIONS = {"float32": "off", "bfloat16": "on"}
# For a test that is about something else, over a fixture that is made in each precision.
in_float32 = pytest.mark.parametrize("precision", ["float32"], indirect=True)


@contextmanager
def computing_in(name: str) -> Iterator[None]:
    """All trainings in this process and in those it starts, of one of PRECISIONS."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(BF16_VARIABLE, PRECISIONS[name])
        AcceleratorState._reset_state()  # a process keeps the precision of its first training
        yield
    AcceleratorState._reset_state()


# Relative, of a step's loss. bfloat16: at most 1e-4 was measured over 12 steps, and 6e-4 where both
# processes train on the samples of one.
SAME_LOSS = {"float32": 1e-5, "bfloat16": 3e-4}
# Relative, of a step's divergence, which is a hundredth of a nat: a small difference of rounded
# numbers. bfloat16: 4e-4 was measured; a part of the sum that is left out is a half or more.
SAME_DIVERGENCE = {"float32": 1e-5, "bfloat16": 2e-3}
# Relative, of the norm of all gradients. bfloat16: at most 5e-3 was measured; gradients that are
# averaged once too often are a factor of 2.
SAME_NORM = {"float32": 1e-4, "bfloat16": 2e-2}
# Relative, of the loss on the held-out rows at the end. bfloat16: at most 3e-5 was measured.
SAME_VAL_LOSS = {"float32": 1e-4, "bfloat16": 3e-4}
# Mean difference of a weight after one step of AdamW, which moves every weight by the learning
# rate (0.003) up or down: where a gradient is next to nothing, rounding decides which. For both;
# 2e-7 was measured in bfloat16, and 1e-4 where batches weigh alike whatever their tokens.
SAME_WEIGHTS = 1e-5
