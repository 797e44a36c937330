"""What this machine computes in."""


def native_bf16() -> bool:
    """Whether this hardware multiplies bfloat16 itself; emulated, it is slower than float32."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
