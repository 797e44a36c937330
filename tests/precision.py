"""How far apart two runs may be that compute the same sums in another order, by precision.

float32 has 24 bits of mantissa: another order of some thousand additions moves a mean by 1e-6.
bfloat16 has 8, and under autocast every product of matrices is rounded to them, gradients too: one
of them is off by up to 2^-9 = 2e-3, and what they add up to by less, for errors go both ways.

What the wider limits still catch was tried with mutations of the trainer, each in bfloat16: see the
tests that use them.
"""

import pytest

# For a test that is about something else, over a fixture that is made in each precision.
in_float32 = pytest.mark.parametrize("precision", ["float32"], indirect=True)

# Relative, of a step's loss. bfloat16: at most 1e-4 was measured over 12 steps.
SAME_LOSS = {"float32": 1e-5, "bfloat16": 5e-4}
# Relative, of the norm of all gradients. bfloat16: at most 5e-3 was measured.
SAME_NORM = {"float32": 1e-4, "bfloat16": 2e-2}
# Relative, of the loss on the held-out rows at the end. bfloat16: at most 3e-5 was measured.
SAME_VAL_LOSS = {"float32": 1e-4, "bfloat16": 5e-4}
