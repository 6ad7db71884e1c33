"""Devices by name, the number of threads that a computation on a CPU uses, and the memory of the process."""

from __future__ import annotations

import math
import mmap
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.errors import ConfigError, describe_choice

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
# Multiply-adds of a batch below which more threads do not make a CPU faster, and 20 times slower if the cores are busy
# (measured on two cores: the digits' perceptrons have 2e7, the appendix network 1e10).
FEW_MULTIPLY_ADDS = 10**8


def check_device_name(name: str) -> None:
    """Raise ConfigError unless `name` is the name of a device, which this machine may not have."""
    kind, colon, number = name.partition(":")
    if kind.lower() == "gpu":
        raise ConfigError(f"device={name} is called device=cuda{colon}{number} here, and on a Mac device=mps")
    if name not in DEVICES and not (kind == "cuda" and colon and number.isdecimal()):
        raise ConfigError(describe_choice("device", name, (*DEVICES, "cuda:1")))


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first of CUDA, MPS and CPU that is present. Raises ConfigError."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    kind, colon, number = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not available.get(kind) or (colon and not (number.isdecimal() and int(number) < count)):
        present = ", ".join(["auto", *(kind for kind, present in available.items() if present)])
        raise ConfigError(f"device={name} is not on this machine; choose {present}")
    return torch.device(name)


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_processes(devices: int | str, device: str) -> int:
    """Return how many processes train on `devices` of the kind `device`; `auto` is all of CUDA's, and one of others.

    Raises ConfigError if this machine has fewer.
    """
    if devices == 1:
        return 1
    import torch

    kind, present = choose_device(device).type, torch.cuda.device_count()
    if devices == "auto":
        return present if kind == "cuda" and ":" not in device else 1
    if ":" in device or kind == "mps":
        raise ConfigError(
            f"devices={devices} trains on several devices, and device={device} is one; leave one of them out"
        )
    if kind == "cuda" and int(devices) > present:
        raise ConfigError(f"devices={devices} are more than this machine has: {present} of device=cuda")
    return int(devices)


@contextmanager
def limit_threads(device: torch.device, multiply_adds: float) -> Iterator[None]:
    """Use one thread in the block if a batch has few multiply-adds, unless the user set the number of threads."""
    import torch

    before = torch.get_num_threads()
    try:
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and multiply_adds < FEW_MULTIPLY_ADDS:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def use_torch_defaults() -> Iterator[None]:
    """Compute in the block as a new process does, whatever the program has set: in float32, on the CPU, with gradients.

    Devices that are named are those that are used. Torch is not imported; without it nothing has been set.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        yield
        return
    dtype, is_on_cpu = torch.get_default_dtype(), torch.get_default_device().type == "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        # A default device slows every operation down, also if it is the CPU.
        with torch.inference_mode(False), torch.enable_grad(), nullcontext() if is_on_cpu else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def measure_peak_memory() -> float:
    """Return the most memory that this process has held so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def request_rows(rows: torch.Tensor, indices: Sequence[int]) -> None:
    """Let the system read some rows of a tensor in a mapped file from the disk, all at once; on Linux only.

    They would be read one after the other as they are looked at, many times slower from a cold disk.
    """
    if sys.platform != "linux":
        return
    import ctypes

    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = rows.stride(0) * rows.itemsize
    for start in (rows.data_ptr() + index * size for index in indices):
        page = start - start % mmap.PAGESIZE
        madvise(page, start + size - page, mmap.MADV_WILLNEED)


def measure_free_memory() -> float:
    """Return the bytes of memory that this process may still take; infinity where the system does not say.

    The least of what the machine, the control group (of a container or a batch system), `ulimit -v` and `ulimit -d`
    leave.
    """
    found = [math.inf]
    with suppress(OSError, ValueError, KeyError):
        found.append(_read_kilobytes("/proc/meminfo")["MemAvailable"])
    found += list_group_memory()
    with suppress(OSError, ValueError, KeyError):
        taken = _read_kilobytes("/proc/self/status")
        for limit, key in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            soft, _ = resource.getrlimit(limit)
            found.append(math.inf if soft == resource.RLIM_INFINITY else soft - taken[key])
    return min(found)


def list_group_memory(root: Path = Path("/")) -> list[float]:
    """Return the bytes that control groups of version 1 or 2 leave this process; cached files count as free."""
    found: list[float] = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if not controllers:
                folder, limit, usage, cached = "", "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                folder, limit, usage = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
                cached = "total_inactive_file"
            else:
                continue
            top, names = root / "sys/fs/cgroup" / folder, Path(own.lstrip("/")).parts
            for place in (top.joinpath(*names[:depth]) for depth in range(len(names) + 1)):  # each limits those below
                with suppress(OSError, ValueError, KeyError):  # the word "max" is no limit
                    kinds = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                    most, taken = (float((place / name).read_text()) for name in (limit, usage))
                    found.append(most - taken + float(kinds[cached]))
    return found


def _read_kilobytes(path: str) -> dict[str, float]:
    """Return the sizes in a file of /proc, in bytes."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * float(words[1]) for words in lines if words[-1] == "kB"}
