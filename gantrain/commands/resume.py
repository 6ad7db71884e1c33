"""`gantrain resume`: go on with a run where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gantrain import checkpoints, config, overrides
from gantrain.errors import CheckpointError, ConfigError
from gantrain.launch import check_parts, launch
from gantrain.run import RunFolder
from gantrain.terminal import say

HELP = """Go on with a run where it stopped; the result equals the uninterrupted run's, bit for bit on a CPU.

  gantrain resume RUN [key=value …]

Examples
  gantrain resume runs/digits/gan-kl/2026-11-22_10-00-00-s0
  gantrain resume RUN train.images=2000000     train for longer
  gantrain resume RUN device=cpu

Keys that may change: {free}"""

# What may differ from the checkpoint's config: where and how long, never what is trained.
FREE = (
    "device",
    "run_dir",
    "resume",
    "dataset.root",
    "dataset.path",
    "train.images",
    "train.epochs",
    "train.report_every_images",
    "train.sample_every_images",
    "train.checkpoint_every_images",
    "train.checkpoint_min_seconds",
    "train.keep_checkpoints",
    "train.held_out_images",
)


def help_text() -> str:
    """The command's help."""
    return HELP.format(free=", ".join(FREE))


def run(arguments: list[str]) -> None:
    """Resume the run whose folder is the first argument."""
    if not arguments or "=" in arguments[0]:
        raise ConfigError("resume needs a run folder: gantrain resume RUN [key=value …]")
    folder, typed = RunFolder(arguments[0]), overrides.checked(arguments[1:])
    if not folder.path.is_dir():
        raise CheckpointError(f"{folder.path} is not a run folder")
    wanted = OmegaConf.create(checkpoints.newest(folder.checkpoints)[1]["config"])
    for key, value in overrides.values(typed).items():
        OmegaConf.update(wanted, key, value)
    continue_run(folder, wanted, typed)


def continue_run(folder: RunFolder, wanted: DictConfig, typed: list[str]) -> None:
    """Continue the run in `folder` from its newest whole checkpoint, as `wanted` describes it and the user `typed` it.

    Done at once where the run is finished. Raises CheckpointError where nothing can be restored, or where `wanted` is
    another run.
    """
    path, bundle, problems = checkpoints.newest(folder.checkpoints)
    changed = refuse_another_run(OmegaConf.create(bundle["config"]), wanted)
    config.refuse_untyped_object(wanted, typed)
    check_parts(config.checked(wanted))
    finished = folder.read_summary().get("status") == "finished"
    if finished and not any(key in changed for key in ("train.images", "train.epochs")):
        say(f"{folder.path} is finished, at {bundle['images']:,} images; train.images=… would train for longer")
        return
    for problem in problems:
        say(f"passed over: {problem}")
    say(f"resuming from {path.name}, at {bundle['images']:,} images")
    launch(wanted, folder, typed, bundle)


def refuse_another_run(saved: DictConfig, wanted: DictConfig) -> dict[str, tuple[Any, Any]]:
    """The keys that differ, each with its old and new value. Raises CheckpointError unless all of them may."""
    ours, theirs = leaves(OmegaConf.to_container(saved)), leaves(OmegaConf.to_container(wanted))
    changed = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)}
    fixed = [f"  {key}: {old} → {new}" for key, (old, new) in changed.items() if key not in FREE]
    if fixed:
        raise CheckpointError(
            "a run cannot be resumed as another one:\n" + "\n".join(fixed) + "\nstart a new run for these values"
        )
    return changed


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a list is one value."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {
        k: v for name, item in value.items() for k, v in leaves(item, f"{key}.{name}" if key else str(name)).items()
    }
