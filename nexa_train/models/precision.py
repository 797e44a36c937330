"""What this machine computes in."""

import os

from nexa_distill.errors import InputError

SWITCH = "NEXA_BF16"


def native_bf16() -> bool:
    """Whether to compute in bfloat16: where the hardware multiplies it itself.

    Emulated, it is slower than float32. The environment variable NEXA_BF16 = on | off decides in
    place of the hardware; child processes inherit it. Raises InputError for another value.
    """
    wanted = os.environ.get(SWITCH)
    if wanted is not None:
        if wanted not in ("on", "off"):
            raise InputError(
                f"{SWITCH} is {wanted!r}, expected on or off; unset it to follow the hardware"
            )
        return wanted == "on"
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
