"""Hydra plugin for `hydra/launcher=parallel`; the launcher itself is `gantrain.launch.parallel`.

Hydra imports this module at every start, so it imports no torch. Hydra also executes it before it is in `sys.modules`,
so the annotations of the dataclass cannot be strings (no `from __future__ import annotations`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ParallelLauncherConf:
    """Settings under `hydra.launcher`; see `gantrain.launch.parallel.launch`."""

    _target_: str = "hydra_plugins.gantrain_parallel.ParallelLauncher"
    jobs: int = 0
    devices: list[str] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/launcher", name="parallel", node=ParallelLauncherConf, provider="gantrain")


class ParallelLauncher(Launcher):
    """Trains the jobs of `gantrain train -m` in parallel processes on one machine."""

    def __init__(self, jobs: int, devices: Sequence[str]) -> None:
        self.jobs, self.devices = jobs, devices

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Raise ConfigError for settings that are out of range, or name a device that is not on this machine."""
        from gantrain.launch import parallel

        parallel.check(config, self.jobs, self.devices)
        hydra = {"context": hydra_context, "config": config, "task_function": task_function}
        self.train = partial(parallel.launch, jobs=self.jobs, devices=self.devices, **hydra)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train one run for each list of overrides."""
        return self.train(job_overrides, initial_job_idx)
