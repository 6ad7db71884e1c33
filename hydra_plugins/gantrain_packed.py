"""Hydra's option `hydra/launcher=packed`: what the launcher does is `gantrain.launch.packed`.

Hydra imports this at every start, so torch is not imported here; and before it lists the module in `sys.modules`, where
a dataclass would look up annotations that are strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class PackedLauncherConf:
    """`hydra.launcher`; `jobs` is how many runs there may be at once, 0 as many as the device has room for."""

    _target_: str = "hydra_plugins.gantrain_packed.PackedLauncher"
    jobs: int = 0


ConfigStore.instance().store(group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="gantrain")


class PackedLauncher(Launcher):
    """Trains the jobs of `gantrain train -m` side by side on one device."""

    def __init__(self, jobs: int = 0) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Raises ConfigError for a number of jobs that cannot be, and in a program that is not gantrain."""
        from gantrain.launch import packed

        packed.check(self.jobs, task_function)
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train one run for each list of overrides."""
        from gantrain.launch import packed

        setup_globals()
        configs = [self.composed(overrides, initial_job_idx + n) for n, overrides in enumerate(job_overrides)]
        return packed.launch(configs, self.context, self.jobs)

    def composed(self, overrides: Sequence[str], number: int) -> DictConfig:
        """One job's config, Hydra's own node in it."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config
