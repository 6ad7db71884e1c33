"""`gantrain train`: a real Hydra application behind a subcommand."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gantrain.commands.resume import FREE, continue_run
from gantrain.config import checks, overrides, schema
from gantrain.config.compose import composition_errors, preview, preview_sweep, with_own_yaml
from gantrain.config.overrides import divided, quoted, refuse_listed
from gantrain.console import say
from gantrain.errors import BusyError, CheckpointError, ConfigError, GantrainError, StorageError, one_of
from gantrain.files import safe_name
from gantrain.launch import build as parts
from gantrain.launch import sweep as sweeps
from gantrain.launch.run import launch
from gantrain.launch.sweep import FAILURES
from gantrain.runs.folder import Interrupted, RunFolder, StopRequest, claim

KEY_WIDTH = 38  # of a key and its default in the help

HELP = """Train a GAN: D on one divergence, G on any other.

  gantrain train [key=value …] [-m] [--cfg job] [--config-dir DIR]

Examples
  gantrain train                                       the embedded digits, about a minute on two cores
  gantrain train dataset=cifar10 gen_div=kl
  gantrain train dataset=folder dataset.path=DIR gen_div=reverse_kl train.images=200000
  gantrain train -m gen_div=kl,reverse_kl,js seed=0,1  a sweep: one run a combination
  gantrain train experiment=paper gen_div=kl           the paper's objective, network and optimizer
  gantrain train --cfg job dataset=mnist               shows what would run

Groups, and their choices
{groups}

Keys, and their values before any group is chosen
{keys}

Flags
  -m, --multirun        one run for every combination of comma-separated values; glob(*) stands for all of
                        a group that gantrain has itself
  --cfg job             print the composed config and stop
  --config-dir DIR      look for YAML of your own there too
  --info, --hydra-help  what Hydra has to say

`eval "$(gantrain -sc install=bash)"` completes these keys and choices in the shell."""


def help_text() -> str:
    """The command's help, with every group's choices and every key."""
    return HELP.format(
        groups="\n".join(f"  {group:13} {', '.join(checks.options(group))}" for group in checks.GROUPS),
        keys="\n".join(
            f"  {f'{key}={default}':{KEY_WIDTH}} {about}" for key, default, about in schema.explained_keys()
        ),
    )


def run(arguments: list[str]) -> None:
    """Check the command line, claim a folder, and let Hydra run the job or the sweep."""
    flags = parse(arguments)
    typed = with_own_yaml(overrides.checked(flags.overrides), flags.config_dir)
    if flags.multirun:
        return sweep(typed, flags)
    unlisted, listed = divided(typed)
    composed, mode = preview(unlisted, flags.config_dir)
    if mode == RunMode.MULTIRUN and not shown(flags):
        return sweep(typed, flags)
    refuse_listed(listed)
    if flags.info or flags.hydra_help:
        return hydra_main([*shown(flags), *typed])
    if "train.images" in overrides.values(typed) and checks.typed(composed)["train"]["epochs"] is not None:
        typed = [*typed, "train.epochs=null"]  # what is typed wins over a file's other name for it
        composed, _ = preview(typed, flags.config_dir)
    checks.refuse_untyped_object(composed, typed)
    settings = checks.checked(composed)
    if flags.package and OmegaConf.select(composed, flags.package) is None:
        sections = [key for key, value in settings.items() if isinstance(value, dict)]
        raise ConfigError(one_of("--package", flags.package, sections))
    if flags.cfg:
        return hydra_main([*shown(flags), *typed])
    parts.check(settings)
    return single(typed, composed, settings, flags)


# ---------------------------------------------------------------------------------------------------------------------
# The command line

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class Parser(argparse.ArgumentParser):
    """Hydra's flags, minus those that read pickles or configs of another application; errors are ours."""

    def __init__(self) -> None:
        super().__init__(prog="gantrain train", add_help=False, allow_abbrev=False)
        self.add_argument("overrides", nargs="*")
        self.add_argument("--multirun", "-m", action="store_true")
        self.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
        self.add_argument("--resolve", action="store_true")
        self.add_argument("--package", "-p")
        self.add_argument("--config-dir", "-cd")
        self.add_argument("--info", "-i", choices=INFO)
        self.add_argument("--hydra-help", action="store_true")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see gantrain train --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Flags and overrides in any order, which Hydra's own parser refuses. Raises ConfigError."""
    for text in arguments:
        if sentence := overrides.dashed(text, overrides.KNOWN):
            raise ConfigError(sentence)
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)  # what follows a bare --info may be an override
    arguments = ["--info=all" if text in ("--info", "-i") and then not in INFO else text for text, then in pairs]
    flags = Parser().parse_intermixed_args(arguments)
    if flags.package and flags.cfg != "job":
        raise ConfigError(f"--package={flags.package} shows a part of --cfg job; give it with that")
    if flags.resolve and not flags.cfg:
        raise ConfigError("--resolve shows what interpolations come to; add --cfg job")
    if flags.multirun and shown(flags):
        raise ConfigError(f"{shown(flags)[0]} shows one job; leave -m and the listed values out")
    if sum(map(bool, (flags.cfg, flags.info, flags.hydra_help))) > 1:
        raise ConfigError("give one of --cfg, --info and --hydra-help")
    return flags


def completed(line: str) -> list[str] | None:
    """The flags, or values of a flag, that the typed `line` may end in; None where it ends in an override."""
    *before, word = line.split(" ")
    flags = Parser()._option_string_actions
    if word.startswith("-"):
        return [flag for flag in flags if flag.startswith(word)]
    last = flags.get(before[-1]) if before else None
    if last is None or last.nargs == 0:
        return None
    return [value for value in last.choices or () if value.startswith(word)]


def shown(flags: argparse.Namespace) -> list[str]:
    """The flags of a command that only shows something, as Hydra takes them."""
    values = {"--cfg": flags.cfg, "--package": flags.package, "--info": flags.info}
    switches = {"--resolve": flags.resolve, "--hydra-help": flags.hydra_help}
    given = [part for flag, value in values.items() if value for part in (flag, value)]
    return given + [flag for flag, on in switches.items() if on]


def hydra_main(arguments: list[str]) -> None:
    """The Hydra application, called as if it were the whole program."""
    # Hydra would print an error and exit with 1; this way the exception reaches us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments]
    with composition_errors():
        hydra.main(version_base="1.3", config_path=str(checks.CONF), config_name="config")(job)()


def job(composed: DictConfig) -> None:
    """One run, in the folder that Hydra made for it.

    It never raises a GantrainError, which Hydra would wrap in lines of its own: it keeps it in FAILURES.
    """
    context = HydraConfig.get()
    folder = RunFolder(context.runtime.output_dir)
    in_sweep = context.mode == RunMode.MULTIRUN
    if in_sweep:
        say(f"\n{folder.path}")
    with StopRequest() as stop:
        try:
            keep_hydra_files(composed, folder)
            if goes_on(composed, folder):
                with folder.locked():
                    continue_run(folder, composed, context.overrides.task)
            else:
                launch(composed, folder, typed=context.overrides.task)
        except GantrainError as error:
            FAILURES[folder.path.resolve()] = error
            if in_sweep:
                say(f"failed: {error}", error=True)
        if in_sweep:
            stop.raise_if_asked(f"{folder.path} had just ended")


def goes_on(composed: DictConfig, folder: RunFolder) -> bool:
    """Whether a job finds its run begun, and is to go on with it; else the run begins."""
    return composed.resume == "auto" and folder.has_progress


def keep_hydra_files(composed: DictConfig, folder: RunFolder) -> None:
    """Write the files of `.hydra` for a run that was missing from a sweep that is gone on with, where Hydra itself is
    kept from writing over those of the runs that are there."""
    if HydraConfig.get().output_subdir is not None or goes_on(composed, folder):
        return
    contents = {
        "config": composed,
        "hydra": HydraConfig.instance().cfg,
        "overrides": HydraConfig.get().overrides.task,
    }
    folder.config.parent.mkdir(exist_ok=True)
    for name, content in contents.items():
        OmegaConf.save(content, folder.config.with_name(f"{name}.yaml"))


# ---------------------------------------------------------------------------------------------------------------------
# One run, and many


def single(typed: list[str], composed: DictConfig, settings: Mapping[str, Any], flags: argparse.Namespace) -> None:
    """Train once. Raises what ended the run early."""
    folder = RunFolder(settings["run_dir"] or claim(*new_name(settings)))
    if sweeps.is_sweep(folder.path):
        again = f"gantrain resume {shlex.quote(str(folder.path))}"
        raise BusyError(f"{folder.path} holds a sweep; go on with `{again}`, or give another run_dir")
    make(folder.path)
    folder.refuse_links()
    with folder.locked():
        auto = settings["resume"] == "auto"
        if auto and folder.has_progress:
            return continue_run(folder, composed, typed)
        folder.refuse_progress()
        hydra_main([*typed, f"hydra.run.dir={quoted(folder.path)}"])
    if error := FAILURES.pop(folder.path.resolve(), None):
        raise error
    return None


def sweep(typed: list[str], flags: argparse.Namespace) -> None:
    """Train once for every combination; at the end, list the runs that failed. Raises the first one's error."""
    settings = preview_sweep(typed, flags.config_dir)
    root = Path(settings["run_dir"] or claim(Path("sweeps"), time_stamp()))
    make(root)
    again = f"gantrain resume {shlex.quote(str(root))}"
    fixed = [override.key_or_group for override in overrides.parsed(divided(typed)[0])]
    theirs = [
        f"hydra.sweep.dir={quoted(root)}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quoted, fixed))}]",
    ]
    RunFolder(root).refuse_progress()
    with RunFolder(root).locked(), StopRequest():
        if sweeps.is_sweep(root) or any(root.glob("*/summary.json")):
            if settings["resume"] != "auto":
                raise BusyError(f"{root} already holds a sweep; go on with `{again}`, or give another run_dir")
            sweeps.refuse_links(root)
            sweeps.refuse_another(root, typed, FREE)
            sweeps.keep_command(root)
            theirs.append("hydra.output_subdir=null")  # Hydra would write over what is there
        try:
            hydra_main(["--multirun", *typed, *theirs])
        except Interrupted as stop:
            finished = sweeps.finished(root)
            message = f"{stop}\n{finished} runs of the sweep in {root} finished; go on with: {again}"
            raise Interrupted(message, stop.number) from None
    sweeps.report(root)


def resume_sweep(root: Path, typed: list[str]) -> None:
    """Go on with a sweep: what is finished stays, what was interrupted goes on, what is missing is trained. `typed` may
    change what a run may be resumed with. Raises CheckpointError for anything else.
    """
    command = sweeps.command_of(root)
    for text in typed:
        if text not in command.task and sweeps.key(text) not in set(FREE) - {"run_dir", "resume"}:
            raise CheckpointError(f"{text}: a sweep cannot be resumed as another one; start a new one")
    replaced = [*map(sweeps.key, typed), "run_dir", "resume"]
    task = [text for text in command.task if sweeps.key(text) not in replaced]
    if untyped := [text for text in task if "architecture.object" in text]:
        raise ConfigError(f"{untyped[0]} is code to import, which has to be typed again: gantrain resume {root} …")
    flags = Parser().parse_args(["-m", *(["--config-dir", command.config_dir] if command.config_dir else [])])
    again = overrides.checked([*task, *typed, f"run_dir={quoted(root)}", "resume=auto"])
    sweep(with_own_yaml([*again, *command.hydra], flags.config_dir), flags)


def new_name(settings: Mapping[str, Any]) -> tuple[Path, str]:
    """Where a run goes by default: runs/<dataset>/<disc_div>-<gen_div>[-…] and <date_time>-s<seed>."""
    game = [settings["disc_div"]["name"], settings["gen_div"]["name"]]
    options = (settings["gen_objective"], settings["head"], settings["regularizer"]["name"])
    game += [option for option in options if option not in ("matched", "log_ratio", "none")]
    dataset = settings["dataset"]["label"] or settings["dataset"]["name"]
    return Path("runs", safe_name(dataset), safe_name("-".join(game))), f"{time_stamp()}-s{settings['seed']}"


def time_stamp() -> str:
    """The local date and time, as a name."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def make(folder: Path) -> None:
    """Make a folder that the user named. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"run_dir={folder} cannot be made: {error.strerror or error}") from error
