"""`gantrain resume`: go on with a run, or a sweep, where it stopped."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from gantrain.config import checks, overrides
from gantrain.config.compose import compose
from gantrain.console import one_line, say
from gantrain.errors import CheckpointError, ConfigError
from gantrain.launch import build as parts
from gantrain.launch.run import launch
from gantrain.launch.sweep import is_sweep
from gantrain.nested import leaves
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder

HELP = """Go on with a run where it stopped; the result equals the uninterrupted run's, bit for bit on a CPU.

  gantrain resume RUN [key=value …]
  gantrain resume SWEEP [key=value …]          finished runs stay, interrupted ones go on, missing ones are trained

Examples
  gantrain resume runs/digits/gan-kl/2026-11-22_10-00-00-s0
  gantrain resume RUN train.images=2000000     train for longer
  gantrain resume RUN device=cpu

Keys that may change: {free}"""

MOST_NAMED = 20  # runs of a sweep that a message lists
LONGEST_SHOWN = 80
# Groups whose name decides what they are; the other keys of their sections are settings of the run.
NAMED_GROUPS = ("dataset", "disc_div", "gen_div")

Found = tuple[Path, dict[str, Any], list[str]]  # what checkpoints.newest returns

# What may differ from the checkpoint's config: where and how long, never what is trained.
FREE = (
    "device",
    "precision",
    "compile",
    "graph",
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
    "evaluate.every_images",
    "evaluate.count",
    "evaluate.metrics",
    "evaluate.features",
    "evaluate.classifier",
    "evaluate.inception",
    "best.metric",
    "logger",
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
    if is_sweep(folder.path):
        from gantrain.commands.train import resume_sweep  # which imports this module

        return resume_sweep(folder.path, typed)
    refuse_sweep(folder.path, "resume")
    if not checkpoints.listed(folder.checkpoints):  # before anything is written there
        if not folder.path.exists():
            raise CheckpointError(f"{folder.path} does not exist; give the folder of a run or a sweep")
        around = next((path for path in folder.path.parents if (path / "checkpoints").is_dir()), None)
        meant = f"; did you mean gantrain resume {shlex.quote(str(around))}?" if around else ""
        raise CheckpointError(f"{folder.path} is not a run folder with checkpoints{meant}")
    folder.refuse_links()
    with folder.locked():
        found = checkpoints.newest(folder.checkpoints)
        continue_run(folder, changed_by(values, found[1]["config"]), typed, found)


def refuse_sweep(path: Path, command: str) -> None:
    """Raise CheckpointError for a folder of runs, and name them."""
    if (path / "checkpoints").is_dir() or not path.is_dir():
        return
    runs = sorted(run for run in path.iterdir() if (run / "checkpoints").is_dir())
    if runs:
        names = "\n".join(f"  gantrain {command} {shlex.quote(one_line(str(run)))}" for run in runs[:MOST_NAMED])
        more = f"\n  and {len(runs) - MOST_NAMED:,} more" if len(runs) > MOST_NAMED else ""
        raise CheckpointError(f"{path} is no run, but holds {len(runs):,} of them; give one:\n{names}{more}")


def changed_by(values: Mapping[str, Any], saved: Mapping[str, Any]) -> DictConfig:
    """The checkpoint's config with what was typed on top. Raises CheckpointError for an experiment."""
    wanted = OmegaConf.create(dict(saved))
    if "train.images" in values:
        OmegaConf.update(wanted, "train.epochs", None)
    for key, value in values.items():
        if key == "experiment":
            raise CheckpointError(f"experiment={value}: an experiment is chosen when a run starts")
        if key in checks.GROUPS:
            choose(wanted, key, value)
        else:
            OmegaConf.update(wanted, key, value)
    return wanted


def choose(wanted: DictConfig, group: str, name: str) -> None:
    """Put the section that the choice `group=name` stands for into `wanted`, unless it has that name already."""
    section = compose([f"{group}={name}"])[group]
    named_alike = section.get("name") == OmegaConf.select(wanted, f"{group}.name")
    if group in NAMED_GROUPS:
        section = wanted[group] if named_alike else {**wanted[group], "name": section.name}
    wanted[group] = section


def continue_run(folder: RunFolder, wanted: DictConfig, typed: list[str], found: Found | None = None) -> None:
    """Continue the run in `folder`, which this process holds, as `wanted` describes it and the user `typed` it; done at
    once where it is finished. Raises what `to_continue` raises."""
    if (bundle := to_continue(folder, wanted, typed, found)) is not None:
        launch(wanted, folder, typed, bundle)


def to_continue(
    folder: RunFolder, wanted: DictConfig, typed: list[str], found: Found | None = None
) -> dict[str, Any] | None:
    """The bundle from which the run in `folder` goes on as `wanted`; None where it is finished.

    `found` is its newest whole checkpoint. Raises CheckpointError where nothing can be restored, or where `wanted` is
    another run.
    """
    path, bundle, problems = found or checkpoints.newest(folder.checkpoints)
    keep_weights(wanted, bundle["config"])
    changed = refuse_another_run(bundle["config"], wanted)
    checks.refuse_untyped_object(wanted, typed)
    settings = checks.checked(wanted)
    parts.check(settings)
    if settings["train"]["epochs"] is None and settings["train"]["images"] < bundle["images"]:
        images = settings["train"]["images"]
        raise CheckpointError(
            f"train.images={images} lies before the checkpoint, which is at {bundle['images']:,} images"
        )
    finished = folder.read_summary().get("status") == "finished" and not problems
    if finished and not any(key in changed for key in ("train.images", "train.epochs")):
        say(f"{folder.path} is finished, at {bundle['images']:,} images; train.images=… would train for longer")
        return None
    for problem in problems:
        say(f"passed over: {problem}")
    lost = checkpoints.images_at(checkpoints.listed(folder.checkpoints)[0]) - bundle["images"]
    again = f"; the next {lost:,} images are trained again" if lost else ""
    say(f"resuming from {path.name}, at {bundle['images']:,} images{again}")
    return bundle


def keep_weights(wanted: DictConfig, saved: Mapping[str, Any]) -> None:
    """Let a run keep the weights that it began with, unless others are typed: the default may have changed since."""
    if all(OmegaConf.select(wanted, f"gen_weights.{key}") is None for key in ("normalise", "spread")):
        with open_dict(wanted):
            wanted.pop("gen_weights", None)
            if "gen_weights" in saved:
                wanted.gen_weights = saved["gen_weights"]


def refuse_another_run(saved: dict[str, Any], wanted: DictConfig) -> dict[str, tuple[Any, Any]]:
    """The keys that differ, each with its old and new value. Raises CheckpointError unless all of them may."""
    ours, theirs = (dict(leaves(each, into_lists=False)) for each in (saved, OmegaConf.to_container(wanted)))
    changed = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)}
    fixed = [f"  {key}: {shown(old)} → {shown(new)}" for key, (old, new) in changed.items() if key not in FREE]
    if fixed:
        raise CheckpointError(
            "a run cannot be resumed as another one:\n" + "\n".join(fixed) + "\nstart a new run for these values"
        )
    return changed


def shown(value: Any) -> str:
    """A config's value on one short line."""
    text = one_line("not set" if value is None else str(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
