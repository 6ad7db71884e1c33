"""The number of threads that a computation on a CPU uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Multiply-adds a batch below which a CPU's threads cost more than they share, 20 times more where the cores are busy
# (the digits' perceptrons, 2e7, on two cores: the same speed alone; the paper's network: 1e10).
FEW_MULTIPLY_ADDS = 10**8


@contextmanager
def keep_thread_count() -> Iterator[None]:
    """Restore the number of threads at the end of the block."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def limit_threads(device: torch.device, multiply_adds: int) -> Iterator[None]:
    """Use one thread in the block if a batch has few multiply-adds, unless the user set the number of threads."""
    import torch

    with keep_thread_count():
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and multiply_adds < FEW_MULTIPLY_ADDS:
            torch.set_num_threads(1)
        yield
