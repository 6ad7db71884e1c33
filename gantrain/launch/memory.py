"""How much memory a run will take, told before it starts, and how much there is.

An estimate is there to keep a sweep from starting what the device cannot hold, so it rather counts too much: every
formula gives the most that is held at one time. It counts what grows with a run's settings, and a `BASE` for the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import data
from gantrain.launch import build as parts

if TYPE_CHECKING:
    import torch

    from gantrain.networks.summary import LayerSummary

MEMINFO = Path("/proc/meminfo")
GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# What a run holds before its first number. CPU: the largest resident size (VmHWM) of a sweep's process that trained the
# digits, on Linux with torch 2.15; all but 54 MiB of it are imports, shared with the process that it was forked from.
# CUDA: the kernels' workspaces and a graph's own pool for each stream, a guess until it has been measured on a GPU.
BASE = {"cpu": 530 * 2**20, "cuda": 256 * 2**20}
# What each number of a layer's output is kept as, or in the making, for the backward pass: the operation's result,
# normalised, activated, masked.
COPIES = 4


class Need(NamedTuple):
    """What a run will take, in bytes; `shared` are data that runs in one process share, by what describes them."""

    own: int
    shared: tuple[str, int] = ("", 0)


def needed(settings: Mapping[str, Any], device: torch.device) -> Need:
    """What the run that `settings` describe will take on `device`.

    On a CPU, where each run is a process, the pixels count twice: they are copied as they are divided and resized. On
    CUDA runs of equal datasets share them. Raises ConfigError for networks that do not fit the data, DataError for a
    folder of images that cannot be read.
    """
    pixels = data.pixel_bytes(**settings["dataset"])
    own = BASE[device.type] + numbers_bytes(settings)
    return Need(own + 2 * pixels) if device.type == "cpu" else Need(own, (repr(settings["dataset"]), pixels))


def numbers_bytes(settings: Mapping[str, Any]) -> int:
    """What a run's numbers take, in float32:

        4 · (P + 2·(3P + P_G) + 4·B·(2·A_D + A_G))

    with P the parameters of both networks and P_G those of G, A_D and A_G the sizes of all layers' outputs for one
    sample, B the batch size. P are gradients; 3P + P_G is the state (weights, an optimizer's two moments, G's average),
    twice because a checkpoint and the trial of a graph copy it; activations are those of D's update on data and on
    samples, and of G, each kept in 4 copies. Networks of the user's own (architecture.object) count as nothing, since
    their size is known only once they are built.
    """
    if settings["architecture"].get("object"):
        return 0
    generator, discriminator = parts.fitting(settings)
    of_generator, of_both = parameters(generator), parameters(generator) + parameters(discriminator)
    activations = COPIES * settings["train"]["batch_size"] * (2 * outputs(discriminator) + outputs(generator))
    return 4 * (of_both + 2 * (3 * of_both + of_generator) + activations)


def parameters(layers: Iterable[LayerSummary]) -> int:
    """How many numbers a network trains."""
    return sum(row.parameters for row in layers)


def outputs(layers: Iterable[LayerSummary]) -> int:
    """How many numbers the layers give for one sample."""
    return sum(math.prod(row.output) for row in layers)


def total(needs: Iterable[Need]) -> int:
    """What runs take together."""
    needs = list(needs)
    return sum(need.own for need in needs) + sum(dict(need.shared for need in needs).values())


def free(device: torch.device) -> int:
    """The bytes of `device` that nobody uses."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()  # what runs that have ended held
        return torch.cuda.mem_get_info(device)[0]
    return min([machine_free(), *group_free()])


def machine_free() -> int:
    """The bytes of the machine's memory that nobody uses."""
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines()) if MEMINFO.exists() else {}
    if "MemAvailable" in fields:
        return 1024 * int(fields["MemAvailable"].split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS does not say


def group_free() -> Iterator[int]:
    """What each limit that a container or a cluster's scheduler has set leaves: Linux's control groups, version 2.

    Files that were read count as used until the memory is needed; those are free.
    """
    lines = OWN_GROUP.read_text().splitlines() if OWN_GROUP.exists() else []
    for path in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        group = GROUPS / path
        for folder in (group, *group.parents):
            limit = folder / "memory.max"
            if limit.exists() and (most := limit.read_text().strip()) != "max":
                pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(dict(pairs)["inactive_file"])
                yield max(0, int(most) - used)
