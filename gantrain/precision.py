"""Precision of products: bfloat16 or TF32 where the device multiplies it faster; everything else stays float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from gantrain.errors import ConfigError

Setting = TypeVar("Setting")


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
    """Set whether CUDA may round the factors of float32 products to 10 bits inside the block.

    PyTorch has older and newer names for this, and refuses to read an older one where a program has set a newer. Inside
    the block they agree, and after it they are as they were.
    """
    backends: Any = torch.backends  # whose modules get their attributes when they are imported
    cudnn = backends.cudnn
    older = _read_older(torch.get_float32_matmul_precision), _read_older(lambda: cudnn.allow_tf32)
    others = [backends.cuda.matmul, cudnn.conv, cudnn.rnn] if None in older else []  # which the older names do not tell
    newer = [(backend, backend.fp32_precision) for backend in (backends.mkldnn.matmul, *others)]
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    cudnn.allow_tf32 = allowed
    for backend in others:
        backend.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older[0] or "highest")
        cudnn.allow_tf32 = older[1] is not False
        for backend, precision in newer:
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


def _read_older(read: Callable[[], Setting]) -> Setting | None:
    """Return a setting under its older name; None where that contradicts a newer one."""
    try:
        return read()
    except RuntimeError:
        return None
