"""Products in bfloat16, where the device multiplies it faster than float32; everything else stays float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def rounded(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Convolutions and matrix products in bfloat16 inside the block, where that is the precision."""
    # A graph allows no cache of rounded weights.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
