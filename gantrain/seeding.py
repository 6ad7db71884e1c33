"""Random streams that need no stored state.

Every random number of a run is a function of (seed, stream name, clock), so a resumed run draws the same numbers
as an uninterrupted one, and reporting or sampling cannot shift those of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, stream: str, clock: int = 0) -> int:
    """Return a 63-bit seed for the numbers of `stream` at `clock` (images shown to D), the same in every process."""
    key = f"{seed}/{stream}/{clock}/0".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1


def stream_generator(seed: int, stream: str, clock: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device`, at the start of the stream's numbers for `clock`."""
    import torch

    return torch.Generator(device).manual_seed(stream_seed(seed, stream, clock))


def seed_default(seed: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and of `device`.

    It takes 0.4 ms less than torch.manual_seed, which visits every kind of device, and is called at each iteration.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def preserve_randomness(device: torch.device) -> Iterator[None]:
    """Restore torch's default generators at the end of the block, on the CPU and on a CUDA `device`."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what the last digits of a result depend on beside its seed: devices, threads, version of torch."""
    import torch

    from gantrain.distributed import current_part

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "devices": current_part().ranks,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
