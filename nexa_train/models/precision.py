"""Whether to compute in bfloat16: by `train.precision`, the environment or the hardware."""

import os

from nexa_distill.errors import InputError

BF16_VARIABLE = "NEXA_BF16"


def uses_bf16(precision: str) -> bool:
    """Whether a training with this `train.precision` multiplies in bfloat16; weights are float32 in any case."""
    return has_native_bf16() if precision == "auto" else precision == "bf16"


def has_native_bf16() -> bool:
    """Whether the hardware supports bfloat16 natively.

    NEXA_BF16 = on | off overrides the hardware. Raises InputError for another value.
    """
    # The environment, because child processes (the model server) inherit it.
    value = os.environ.get(BF16_VARIABLE)
    if value is not None:
        if value not in ("on", "off"):
            raise InputError(f"{BF16_VARIABLE} is {value!r}, expected on or off; unset it to follow the hardware")
        return value == "on"
    import torch

    # Emulated bfloat16 is slower than float32.
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
