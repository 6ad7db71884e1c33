"""`gantrain resume`: go on with a run where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gantrain import checkpoints, config, overrides
from gantrain.errors import CheckpointError, ConfigError
from gantrain.launch import check_parts, launch
from gantrain.nested import leaves
from gantrain.run import RunFolder
from gantrain.terminal import say

HELP = """Go on with a run where it stopped; the result equals the uninterrupted run's, bit for bit on a CPU.

  gantrain resume RUN [key=value …]

Examples
  gantrain resume runs/digits/gan-kl/2026-11-22_10-00-00-s0
  gantrain resume RUN train.images=2000000     train for longer
  gantrain resume RUN device=cpu

Keys that may change: {free}"""

Found = tuple[Path, dict[str, Any], list[str]]  # what checkpoints.newest returns

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
    return HELP.format(free=", ".join(key for key in FREE if key not in ("run_dir", "resume")))


def run(arguments: list[str]) -> None:
    """Resume the run whose folder is the first argument."""
    if not arguments or "=" in arguments[0]:
        raise ConfigError("resume needs a run folder: gantrain resume RUN [key=value …]")
    folder, typed = RunFolder(arguments[0]), overrides.checked(arguments[1:])
    values = overrides.values(typed)
    for key in ("run_dir", "resume"):
        if key in values:
            raise ConfigError(f"{key}={values[key]}: a run is resumed in its own folder, {folder.path}")
    if not folder.path.is_dir():
        raise CheckpointError(f"{folder.path} is not a run folder")
    with folder.locked():
        found = checkpoints.newest(folder.checkpoints)
        wanted = OmegaConf.create(found[1]["config"])
        if "train.images" in values:
            wanted.train.epochs = None
        for key, value in values.items():
            OmegaConf.update(wanted, key, value)
        continue_run(folder, wanted, typed, found)


def continue_run(folder: RunFolder, wanted: DictConfig, typed: list[str], found: Found | None = None) -> None:
    """Continue the run in `folder`, which this process holds, as `wanted` describes it and the user `typed` it.

    `found` is its newest whole checkpoint. Done at once where the run is finished. Raises CheckpointError where nothing
    can be restored, or where `wanted` is another run.
    """
    path, bundle, problems = found or checkpoints.newest(folder.checkpoints)
    changed = refuse_another_run(bundle["config"], wanted)
    config.refuse_untyped_object(wanted, typed)
    settings = config.checked(wanted)
    check_parts(settings)
    if settings["train"]["epochs"] is None and settings["train"]["images"] < bundle["images"]:
        images = settings["train"]["images"]
        raise CheckpointError(
            f"train.images={images} lies before the checkpoint, which is at {bundle['images']:,} images"
        )
    finished = folder.read_summary().get("status") == "finished"
    if finished and not any(key in changed for key in ("train.images", "train.epochs")):
        say(f"{folder.path} is finished, at {bundle['images']:,} images; train.images=… would train for longer")
        return
    for problem in problems:
        say(f"passed over: {problem}")
    say(f"resuming from {path.name}, at {bundle['images']:,} images")
    launch(wanted, folder, typed, bundle)


def refuse_another_run(saved: dict[str, Any], wanted: DictConfig) -> dict[str, tuple[Any, Any]]:
    """The keys that differ, each with its old and new value. Raises CheckpointError unless all of them may."""
    ours, theirs = (dict(leaves(each, into_lists=False)) for each in (saved, OmegaConf.to_container(wanted)))
    changed = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)}
    fixed = [f"  {key}: {old} → {new}" for key, (old, new) in changed.items() if key not in FREE]
    if fixed:
        raise CheckpointError(
            "a run cannot be resumed as another one:\n" + "\n".join(fixed) + "\nstart a new run for these values"
        )
    return changed
