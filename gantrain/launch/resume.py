"""Going on with a run where it stopped, as the run that it was."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gantrain.config.checks import normalise_tree, to_plain, validate
from gantrain.config.compose import compose
from gantrain.config.groups import GROUPS
from gantrain.config.overrides import Argument, single_values
from gantrain.config.schema import TrainConfig
from gantrain.config.trust import read_yaml_file
from gantrain.console import one_line, say
from gantrain.distributed import join
from gantrain.errors import CheckpointError, ConfigError, GantrainError
from gantrain.files import deny_writing_by_others, iterate_leaves
from gantrain.launch import worker
from gantrain.launch.build import count_images, prepare
from gantrain.launch.sweep_folder import is_sweep, start_command
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder
from gantrain.schedules import list_ramps_without_length

MOST_NAMED = 20  # runs of a sweep that a message lists
LONGEST_SHOWN = 80
REMEDY = "remove it, or start a new run"  # for a checkpoint of another origin
DEEPEST = 4  # levels at which runs are looked for; those of one dataset lie three below the folder `runs`
# Groups whose name decides what they are; the other keys of their sections are settings of the run.
NAMED_GROUPS = ("dataset", "disc_div", "gen_div")
# Sections that the config of every run has.
SECTIONS = ("dataset", "architecture", "disc_div", "gen_div", "optimizer", "latent", "train")

# What reading a document that is no config of a run raises.
CONFIG_ERRORS = (
    *(AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError),
    *(GantrainError, OmegaConfBaseException, yaml.YAMLError),
)

# What may differ from the checkpoint's config: where and how long, never what is trained.
CHANGEABLE_KEYS = (
    *("device", "devices", "precision", "compile", "graph", "run_dir", "resume", "logger", "best.metric"),
    *("dataset.root", "dataset.path", "dataset.resident", "train.images", "train.epochs", "train.held_out_images"),
    "ema_statistics",
    *("train.report_every_images", "train.sample_every_images", "train.checkpoint_every_images"),
    *("train.checkpoint_min_seconds", "train.checkpoint_max_minutes", "train.keep_checkpoints"),
    *("evaluate.every_images", "evaluate.count", "evaluate.metrics", "evaluate.features"),
    *("evaluate.classifier", "evaluate.inception"),
)


def check_own_folder(path: Path, arguments: Iterable[Argument]) -> None:
    """Raise ConfigError for a key that would put a resumed run or sweep into another folder."""
    for key, value in single_values(arguments).items():
        if key in ("run_dir", "resume"):
            raise ConfigError(f"{key}={value}: a run is resumed in its own folder, {path}")


@deny_writing_by_others()
def resume_run(path: Path, arguments: Sequence[Argument]) -> None:
    """Go on with the run in the folder `path`, with what the arguments change. Raises GantrainError."""
    with join() as part:
        if not part.is_first:
            return worker.train_as_follower()
        folder, values = RunFolder(path), single_values(arguments)
        refuse_sweep(path, "resume")
        if not checkpoints.list_files(folder.checkpoints):  # before anything is written there
            raise CheckpointError(explain_missing_checkpoints(folder, "resume"))
        folder.refuse_links()
        with folder.lock():
            overrides = [argument.text for argument in arguments]
            continue_run(folder, lambda saved: change_config(saved, values), overrides)


def explain_missing_checkpoints(folder: RunFolder, command: str) -> str:
    """Return why a command cannot take the run in a folder without checkpoints, and what to do."""
    path = folder.path
    if not path.exists():
        return f"{path} does not exist; give the folder of a run or a sweep"
    if folder.has_progress or folder.had_checkpoint:
        return f"no checkpoint is left in {folder.checkpoints}; put a copy of one there, with its .sha256"
    if folder.has_begun or folder.config.exists():
        return f"the run in {path} ended before its first checkpoint; start it again with:\n  {start_command(path)}"
    if is_sweep(path):
        return f"no run of the sweep {path} has a checkpoint; go on with: gantrain resume {shlex.quote(str(path))}"
    around = next((parent for parent in path.parents if (parent / "checkpoints").is_dir()), None)
    meant = f"; did you mean gantrain {command} {shlex.quote(str(around))}?" if around else ""
    return f"{path} is not a run folder with checkpoints{meant}"


def is_resumed(folder: RunFolder, tree: DictConfig) -> bool:
    """Return whether the run of the config `tree` goes on in `folder`, which this process holds, or begins there.

    Raises BusyError for a folder in which it may do neither, CheckpointError if resume=auto would begin a run again
    whose checkpoints are lost, or as another run.
    """
    if tree.resume != "auto":
        folder.refuse_progress()
        return False
    if folder.has_progress:
        return True
    if folder.had_checkpoint:
        raise CheckpointError(f"{explain_missing_checkpoints(folder, 'train')}, or give another run_dir")
    if folder.has_begun:
        if (begun := read_own_config(folder)) is not None:
            wanted = OmegaConf.create(tree)
            keep_sample_weights(wanted, begun)
            refuse_another_run(begun, normalise_tree(wanted))
        say(f"the run in {folder.path} ended before its first checkpoint and is started again")
    return False


def refuse_sweep(path: Path, command: str) -> None:
    """Raise CheckpointError for a folder with runs in or below it, with the commands for them.

    They are those of sweeps, unless the command is for single runs. The folder of a run that wrote no checkpoint is
    refused with what to do, as is that of the checkpoints themselves, and for `sample` every folder without a run.
    """
    if (path / "checkpoints").is_dir():
        return
    if (folder := RunFolder(path)).config.exists():
        raise CheckpointError(explain_missing_checkpoints(folder, command))
    runs = sorted(find_runs(path))
    if runs:
        sweeps = {run.parent for run in runs if command != "sample" and run.parent != path and is_sweep(run.parent)}
        places = list(dict.fromkeys(run.parent if run.parent in sweeps else run for run in runs))
        names = "\n".join(f"  gantrain {command} {shlex.quote(one_line(str(place)))}" for place in places[:MOST_NAMED])
        more = f"\n  and {len(places) - MOST_NAMED:,} more" if len(places) > MOST_NAMED else ""
        raise CheckpointError(f"{path} is no run, but holds {len(runs):,} of them; give one:\n{names}{more}")
    if path.is_dir() and (command == "sample" or checkpoints.list_files(path)):  # evaluated ones may hold images
        raise CheckpointError(explain_missing_checkpoints(folder, command))


def find_runs(parent: Path) -> Iterator[Path]:
    """Yield the folders with checkpoints in and below a folder, down to a few levels; links are not followed."""
    for where, folders, _ in os.walk(parent):
        if "checkpoints" in folders:
            yield Path(where)
        if "checkpoints" in folders or len(Path(where).relative_to(parent).parts) >= DEEPEST:
            folders.clear()


def change_config(saved: Mapping[str, Any], values: Mapping[str, Any]) -> DictConfig:
    """Return a checkpoint's config with new values. Raises CheckpointError for an experiment."""
    try:
        wanted = OmegaConf.create(dict(saved))
    except OmegaConfBaseException as error:
        raise CheckpointError(f"the config of the checkpoint is damaged: {one_line(str(error))}; {REMEDY}") from error
    if "train.images" in values:
        OmegaConf.update(wanted, "train.epochs", None)
    for key, value in values.items():
        if key == "experiment":
            raise CheckpointError(f"experiment={value}: an experiment is chosen when a run starts")
        if key in GROUPS:
            choose_option(wanted, key, value)
        else:
            OmegaConf.update(wanted, key, value)
    return wanted


def choose_option(wanted: DictConfig, group: str, name: str) -> None:
    """Put the section that the choice `group=name` stands for into `wanted`, unless it has that name already."""
    section = compose([f"{group}={name}"])[group]
    named_alike = section.get("name") == OmegaConf.select(wanted, f"{group}.name")
    if group in NAMED_GROUPS:
        section = wanted[group] if named_alike else {**wanted[group], "name": section.name}
    wanted[group] = section


def continue_run(
    folder: RunFolder, choose: Callable[[Mapping[str, Any]], DictConfig], overrides: Sequence[str]
) -> None:
    """Go on from the newest whole checkpoint of `folder`, which this process holds; return if the run is finished.

    `choose` returns the config to go on with for that in the checkpoint, `overrides` are those of the user's own
    command line. Raises CheckpointError if nothing can be restored, or if that is another run.
    """
    path, bundle, problems = checkpoints.load_newest(folder.checkpoints)
    saved = read_saved_config(path, bundle)
    wanted = normalise_tree(choose(saved))
    refuse_foreign(folder, path, saved)
    keep_sample_weights(wanted, saved)
    changed = refuse_another_run(saved, wanted)
    prepared = prepare(validate(wanted, overrides))
    reached, summary = bundle["images"], folder.read_summary()
    refuse_shorter(prepared.config.settings.train, reached, summary)
    finished = summary.get("status") == "finished" and not problems
    has_new_length = "train.images" in changed or "train.epochs" in changed
    if finished and not has_new_length:
        say(f"{folder.path} is finished, at {reached:,} images; train.images=… would train for longer")
        return
    lost = folder.read_clock() - reached
    again = f"; the next {lost:,} images are trained again" if lost > 0 else ""
    notes = [f"passed over: {problem}" for problem in problems]
    notes.append(f"resuming from {path.name}, at {reached:,} images{again}")
    if has_new_length and (ramps := list_ramps_without_length(to_plain(wanted))):
        notes.append(f"{', '.join(ramps)}: a schedule over the whole run goes on as if it always had the new length")
    worker.train(prepared, folder, bundle, notes)


def refuse_shorter(train: TrainConfig, reached: int, summary: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the run with this `summary` would have ended before the clock that it has `reached`."""
    images, typed = train.images, f"train.images={train.images}"
    if train.epochs is not None:
        data = summary.get("data")
        size = data.get("training_images") if isinstance(data, Mapping) else None
        if not isinstance(size, int):  # the summary is damaged
            return
        images, typed = count_images(train.epochs, size), f"train.epochs={train.epochs:g}"
    # A run ends with the first iteration that reaches its length, so that its clock may lie beyond it.
    if images <= reached - train.batch_size * train.discriminator_steps:
        raise CheckpointError(
            f"{typed} lies before the checkpoint, which is at {reached:,} images; give a longer one, or start a new run"
        )


def read_saved_config(path: Path, bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config in the checkpoint at `path`. Raises CheckpointError for one that no run has."""
    try:
        return parse_stored(bundle["config"])
    except CONFIG_ERRORS as error:
        raise CheckpointError(f"{path}: its config is not that of a run: {one_line(str(error))}; {REMEDY}") from error


def read_own_config(folder: RunFolder) -> dict[str, Any] | None:
    """Return what `.hydra/config.yaml` holds; None, with a message, if it is not the config of a run."""
    if not folder.config.exists():
        return None
    try:
        return parse_stored(yaml.safe_load(read_yaml_file(folder.config, folder.path)))
    except CONFIG_ERRORS:
        say(f"{folder.config} is not the config of a run, and is passed over")
        return None


def parse_stored(document: Any) -> dict[str, Any]:
    """Return the config of a run in the form in which configs are compared. Raises one of `CONFIG_ERRORS`."""
    stored = to_plain(normalise_tree(OmegaConf.create(dict(document))))
    if missing := [section for section in SECTIONS if not isinstance(stored.get(section), Mapping)]:
        raise ConfigError(f"it has no {', '.join(missing)}, which that of a run has")
    return stored


def refuse_foreign(folder: RunFolder, path: Path, saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the checkpoint at `path`, with the config `saved`, is of another run than the folder."""
    if (own := read_own_config(folder)) is None:
        return
    own.setdefault("gen_weights", {"normalise": False})  # of runs from before there were such weights
    begun = OmegaConf.create(own)
    keep_sample_weights(begun, saved)  # Hydra writes the file anew where submitit queues a job again
    own = to_plain(begun)
    if fixed := describe_fixed(find_changes(own, {"gen_weights": own.get("gen_weights"), **saved})):
        raise CheckpointError(f"{path} is of another run than {folder.config}:\n{fixed}\n{REMEDY}")


def keep_sample_weights(wanted: DictConfig, saved: Mapping[str, Any]) -> None:
    """Let a run keep the weights that it began with, unless others are typed: the default may have changed since."""
    if all(OmegaConf.select(wanted, f"gen_weights.{key}") is None for key in ("normalise", "spread")):
        with open_dict(wanted):
            wanted.pop("gen_weights", None)
            if "gen_weights" in saved:
                wanted.gen_weights = saved["gen_weights"]


def refuse_another_run(saved: Mapping[str, Any], wanted: DictConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ, each with its old and new value. Raises CheckpointError unless all of them may."""
    changed = find_changes(saved, to_plain(wanted))
    if fixed := describe_fixed(changed):
        raise CheckpointError(f"a run cannot be resumed as another one:\n{fixed}\nstart a new run for these values")
    return changed


def find_changes(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys that differ between two configs, each with its values."""
    ours, theirs = (dict(iterate_leaves(each, into_lists=False)) for each in (saved, wanted))
    return {key: (ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)}


def describe_fixed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return a line for each of the changes that make another run; empty if there are none."""
    fixed = {key: values for key, values in changed.items() if key not in CHANGEABLE_KEYS}
    return "\n".join(f"  {key}: {shorten(old)} → {shorten(new)}" for key, (old, new) in fixed.items())


def shorten(value: Any) -> str:
    """Return a config's value as text on one short line."""
    text = one_line("not set" if value is None else str(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
