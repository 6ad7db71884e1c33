"""Precision of products: bfloat16 or TF32 where the device multiplies it faster; everything else stays float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from gantrain.errors import ConfigError


def choose_precision(precision: str, device: torch.device, *, has_float32_outputs: bool = True) -> str:
    """Return `precision`; for `auto`, bf16 if the device multiplies it faster, and otherwise float32.

    Raises ConfigError for bf16 with networks whose outputs would be bfloat16: those that are not made from tables.
    """
    if precision == "bf16" and not has_float32_outputs:
        raise ConfigError(
            "precision=bf16 keeps the networks' last layers in float32, which is known only of networks from tables, "
            "and not of architecture.object; choose precision=float32"
        )
    if precision != "auto":
        return precision
    return "bf16" if has_float32_outputs and has_fast_bf16(device) else "float32"


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether products in bfloat16 are faster than in float32: whether the device has instructions for them.

    On a CPU with AVX-512 alone, oneDNN takes bfloat16 too, and is slower with it than with float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast_products(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Compute convolutions and matrix products of the block in bfloat16 if `precision` is bf16."""
    # A CUDA graph allows no cache of rounded weights.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def as_float32(v: Tensor) -> Tensor:
    """Return `v` in float32, or unchanged if it is float64: bfloat16 log-ratios near 8 are 3–6 % apart in e^r."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Set whether CUDA may round the factors of float32 products to 10 bits inside the block."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
