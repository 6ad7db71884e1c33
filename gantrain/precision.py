"""The precision of products: bfloat16 or TF32, where the device multiplies it faster; everything else stays float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def chosen_precision(asked: str, device: torch.device) -> str:
    """The precision, `auto` being bf16 where the device multiplies it faster, and else float32."""
    if asked != "auto":
        return asked
    return "bf16" if multiplies_bf16(device) else "float32"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32: where the device has instructions for them.

    On a CPU with AVX-512 alone, oneDNN takes bfloat16 too, and is slower with it than with float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def rounded(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Convolutions and matrix products in bfloat16 inside the block, where that is the precision."""
    # A graph allows no cache of rounded weights.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may round the factors of float32 products to 10 bits inside the block; as it was after it."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
