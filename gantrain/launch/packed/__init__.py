"""The runs of a sweep side by side on one device: `gantrain train -m … hydra/launcher=packed`.

On a CPU each run is a process of one thread, as many at once as there are cores (`processes`). On a CUDA device all
runs are in this process and take turns (`turns`). A run begins when there is room for it in memory, and else waits
(`queue`). Each comes out as it would have alone on as many threads: nothing that happens to one, an error, a
divergence, even its process killed, touches the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, env_override, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from gantrain.commands import train
from gantrain.config import checks
from gantrain.errors import ConfigError, GantrainError
from gantrain.launch import build as parts
from gantrain.launch import memory
from gantrain.launch.memory import Need
from gantrain.launch.packed.opened import OpenedRun, open_run
from gantrain.launch.packed.processes import RunInProcess, cores, listen
from gantrain.launch.packed.queue import Room, side_by_side
from gantrain.launch.packed.turns import TURNS, RunInTurns, SharedData, own_stream, take_turns

if TYPE_CHECKING:
    import torch

__all__ = ["check", "launch", "own_stream"]

MOST_JOBS = 1024


def check(jobs: int, task_function: TaskFunction) -> None:
    """Raise ConfigError for a number of jobs that cannot be, and for a program that is not gantrain."""
    checks.check_range("hydra.launcher.jobs", jobs, at_least=0, above=-math.inf, at_most=MOST_JOBS)
    if task_function is not train.job:
        raise ConfigError("hydra/launcher=packed is for the runs of gantrain train; choose another hydra/launcher")


def launch(configs: Sequence[DictConfig], context: HydraContext, jobs: int) -> list[JobReturn]:
    """Train what each of `configs` describes, at most `jobs` at once, or as many as the device has room for.

    Raises ConfigError for runs that are not all on one device, Interrupted after all runs were saved.
    """
    checked = [settings_or_none(each) for each in configs]
    device = common_device({parts.choose_device(settings["device"]) for settings in checked if settings is not None})
    needs = [need_or_base(settings, device) for settings in checked]
    waiting, returned = list(zip(configs, needs, strict=True)), []

    def opened(whole: DictConfig) -> OpenedRun | None:
        job = run_job(open_run, whole, "hydra.sweep.dir", "hydra.sweep.subdir", context)
        run: OpenedRun | None = job.return_value
        job.return_value = None
        returned.append(job)
        return run

    if device.type == "cpu":
        room = Room(jobs or cores(), "a core each", device)
        with env_override({"OMP_NUM_THREADS": "1"}):
            side_by_side(waiting, lambda whole: (run := opened(whole)) and RunInProcess(run), listen, room)
    else:
        room, load = Room(jobs or TURNS, "enough to fill the device", device), SharedData()
        side_by_side(waiting, lambda whole: (run := opened(whole)) and RunInTurns(run, device, load), take_turns, room)
    return returned


def settings_or_none(whole: DictConfig) -> dict[str, Any] | None:
    """A job's checked settings; None for a config that its run will refuse, in its own words."""
    composed = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    try:
        checks.refuse_untyped_object(composed, whole.hydra.overrides.task)
        settings = checks.checked(composed)
        parts.choose_device(settings["device"])
    except GantrainError:
        return None
    return settings


def need_or_base(settings: dict[str, Any] | None, device: torch.device) -> Need:
    """What a run will take; only the base where it will be refused before it takes more."""
    try:
        return Need(memory.BASE[device.type]) if settings is None else memory.needed(settings, device)
    except GantrainError:
        return Need(memory.BASE[device.type])


def common_device(devices: set[torch.device]) -> torch.device:
    """The one device that all runs are on; the CPU where there are none. Raises ConfigError for several."""
    device, *others = sorted(devices or {parts.choose_device("cpu")}, key=str)
    if others or device.type not in memory.BASE:
        raise ConfigError(
            f"hydra/launcher=packed is for one CPU or one CUDA device, not {', '.join(map(str, [device, *others]))}; "
            "choose one device for all runs, or another hydra/launcher"
        )
    return device
