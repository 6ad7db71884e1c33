"""`gantrain resume`: continue a run or a sweep where it stopped."""

from __future__ import annotations

from gantrain.config.overrides import parse_train, split_source
from gantrain.config.schema import Config
from gantrain.errors import ConfigError
from gantrain.files import expand_home
from gantrain.launch.resume import CHANGEABLE_KEYS, check_own_folder, resume_run
from gantrain.launch.sweep import resume_sweep
from gantrain.launch.sweep_folder import is_sweep
from gantrain.runs.signals import StopRequest

HELP = f"""Continue a stopped run; the result equals that of the uninterrupted run, bit for bit on a CPU.

  gantrain resume RUN [key=value …]
  gantrain resume SWEEP [key=value …]          continues interrupted runs and trains missing ones

Examples
  gantrain resume runs/digits/gan-kl/2026-11-22_10-00-00-s0
  gantrain resume RUN train.images=2000000     train for longer
  gantrain resume RUN device=cpu

Keys that may change: {", ".join(key for key in CHANGEABLE_KEYS if key not in ("run_dir", "resume"))}
Of a sweep also hydra/launcher and its settings, as in hydra.launcher.jobs=1"""


def run(arguments: list[str]) -> None:
    """Continue the run or the sweep whose folder is the first argument. Raises GantrainError."""
    name, others = split_source(arguments, Config)
    if name is None:
        raise ConfigError("resume needs a run folder: gantrain resume RUN [key=value …]")
    path, typed = expand_home(name), parse_train(others)
    check_own_folder(path, typed)
    with StopRequest():
        if is_sweep(path):
            resume_sweep(path, typed)
        else:
            resume_run(path, typed)
