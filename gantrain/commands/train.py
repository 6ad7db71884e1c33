"""`gantrain train`: a real Hydra application behind a subcommand."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gantrain import config, overrides, parts, schema, sweeps
from gantrain.commands.resume import FREE, continue_run
from gantrain.errors import BusyError, CheckpointError, ConfigError, GantrainError, StorageError
from gantrain.files import safe_name
from gantrain.foreign import ForeignSource, refuse_active, refuse_shadowed
from gantrain.launch import launch
from gantrain.overrides import quoted
from gantrain.run import Interrupted, RunFolder, StopRequest, claim
from gantrain.sweeps import FAILURES, SEARCH_PATH
from gantrain.terminal import say

KEY_WIDTH = 38  # of a key and its default in the help
# At import, so that it also holds in a process that a launcher starts.
config.register()

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
  -m, --multirun        one run for every combination of comma-separated values; glob(*) stands for all of a group
  --cfg job             print the composed config and stop
  --config-dir DIR      look for YAML of your own there too
  --info, --hydra-help  what Hydra has to say

`eval "$(gantrain -sc install=bash)"` completes these keys and choices in the shell."""


def help_text() -> str:
    """The command's help, with every group's choices and every key."""
    return HELP.format(
        groups="\n".join(f"  {group:13} {', '.join(config.options(group))}" for group in config.GROUPS),
        keys="\n".join(
            f"  {f'{key}={default}':{KEY_WIDTH}} {about}" for key, default, about in schema.explained_keys()
        ),
    )


def run(arguments: list[str]) -> None:
    """Check the command line, claim a folder, and let Hydra run the job or the sweep."""
    flags = parse(arguments)
    typed = with_own_yaml(overrides.checked(flags.overrides), flags)
    if flags.info or flags.hydra_help:
        unlisted, listed = divided(typed)
        refuse_listed(listed)
        preview(unlisted, flags)  # Hydra composes the user's own YAML to describe it
        return hydra_main([*shown(flags), *typed])
    if flags.multirun and flags.cfg:
        raise ConfigError("--cfg shows one job; leave -m and the listed values out")
    if flags.multirun:
        return sweep(typed, flags)
    unlisted, listed = divided(typed)
    composed, mode = preview(unlisted, flags)
    if mode == RunMode.MULTIRUN and not flags.cfg:
        return sweep(typed, flags)
    refuse_listed(listed)
    if "train.images" in overrides.values(typed) and config.typed(composed)["train"]["epochs"] is not None:
        typed = [*typed, "train.epochs=null"]  # what is typed wins over a file's other name for it
        composed, _ = preview(typed, flags)
    config.refuse_untyped_object(composed, typed)
    settings = config.checked(composed)
    if flags.cfg:
        return hydra_main([*shown(flags), *typed])
    parts.check(settings)
    return single(typed, composed, settings, flags)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


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
        self.add_argument("--info", "-i", nargs="?", const="all")
        self.add_argument("--hydra-help", action="store_true")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see gantrain train --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Flags and overrides in any order, which Hydra's own parser refuses. Raises ConfigError."""
    for text in arguments:
        if sentence := overrides.dashed(text, overrides.KNOWN):
            raise ConfigError(sentence)
    return Parser().parse_intermixed_args(arguments)


def shown(flags: argparse.Namespace) -> list[str]:
    """The flags of a command that only shows something, as Hydra takes them."""
    values = {"--cfg": flags.cfg, "--package": flags.package, "--info": flags.info}
    switches = {"--resolve": flags.resolve, "--hydra-help": flags.hydra_help}
    given = [part for flag, value in values.items() if value for part in (flag, value)]
    return given + [flag for flag, on in switches.items() if on]


def divided(typed: list[str]) -> tuple[list[str], list[str]]:
    """The overrides that set one value, and those that list several. Raises ConfigError."""
    listed = [
        text for text, override in zip(typed, overrides.parsed(typed), strict=True) if override.is_sweep_override()
    ]
    return [text for text in typed if text not in listed], listed


def refuse_listed(listed: list[str]) -> None:
    """Raises ConfigError for several values where there is one job."""
    for text in listed:
        raise ConfigError(
            f"{text.lstrip('+')} lists several values, which makes a sweep: add -m to run one job for each; "
            "write one list as [a,b], and quote one text that has a comma"
        )


def preview(typed: list[str], flags: argparse.Namespace) -> tuple[DictConfig, RunMode | None]:
    """The config as Hydra will compose it, before Hydra makes any folder, and the mode that it asks for.

    Raises ConfigError.
    """
    composed, node = compose_whole(typed)
    if flags.config_dir is not None:
        ours = [text for text in typed if text.lstrip("+~").startswith("hydra") and not text.startswith(SEARCH_PATH)]
        if not any(text.startswith("hydra/launcher=") for text in ours):
            ours.append(f"hydra/launcher={node.runtime.choices['hydra/launcher']}")
        refuse_active(plain(node), plain(compose_whole(ours)[1]), flags.config_dir)
    return composed, node.mode


def with_own_yaml(typed: list[str], flags: argparse.Namespace) -> list[str]:
    """The overrides, and one that puts the user's own folder of YAML on Hydra's search path. Raises ConfigError."""
    if flags.config_dir is None:
        return typed
    folder = Path(flags.config_dir)
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder")
    if any(text.lstrip("+").startswith(SEARCH_PATH) for text in typed):
        raise ConfigError(f"--config-dir and {SEARCH_PATH} name the same thing; give one of them")
    refuse_shadowed(folder, config.CONF, [(o.key_or_group, o.value()) for o in overrides.parsed(typed)])
    return [*typed, f"{SEARCH_PATH}=[{quoted(f'{ForeignSource.scheme()}://{folder.absolute()}')}]"]


def preview_sweep(typed: list[str], flags: argparse.Namespace) -> dict[str, Any]:
    """The settings that all jobs share; every listed value has been composed once, and one job at least can train.

    Raises ConfigError.
    """
    unlisted, listed = divided(typed)
    choices = []
    for text, override in zip(listed, overrides.parsed(listed), strict=True):
        if not override.is_discrete_sweep():
            raise ConfigError(f"{text} has no end; list values, as in {override.key_or_group}=…,…")
        choices.append(matching(text, override) if isinstance(override.value(), Glob) else each(override))
        if override.is_choice_sweep() and not isinstance(override.value(), Glob):
            for choice in choices[-1]:
                config.typed(preview([*unlisted, choice], flags)[0])
    composed, mode = preview(unlisted, flags)
    if mode != RunMode.MULTIRUN:  # else a file lists more values
        refuse_hopeless(unlisted, choices, flags)
    return config.typed(composed)


def each(override: Override) -> list[str]:
    """An override for each of the values that one lists."""
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def matching(text: str, override: Override) -> list[str]:
    """An override for each choice of a group that a glob stands for, of which YAML of one's own is none for Hydra.

    Raises ConfigError where there is none.
    """
    group, glob = override.key_or_group, override.value()
    assert isinstance(glob, Glob)
    names = [name for name in config.options(group) if "<" not in name]  # a pattern is no choice
    if not (found := glob.filter(names)):
        raise ConfigError(f"{text} matches none of: {', '.join(names) or f'{group} is no group'}")
    return [f"{group}={name}" for name in found]


def refuse_hopeless(unlisted: list[str], choices: list[list[str]], flags: argparse.Namespace) -> None:
    """Raise the first job's ConfigError where none could train; where some could, the others fail as they are run."""
    first = None
    for job in itertools.product(*choices):
        try:
            config.checked(preview([*unlisted, *job], flags)[0])
            return
        except ConfigError as error:
            first = first or error
    if first is not None:
        raise first


def compose(typed: list[str]) -> DictConfig:
    """What Hydra composes from our YAML and `key=value` arguments. Raises ConfigError."""
    return compose_whole(typed)[0]


def compose_whole(typed: list[str]) -> tuple[DictConfig, DictConfig]:
    """The same, and Hydra's own node beside it; nothing in that node is run."""
    try:
        with composition_errors(), hydra.initialize_config_dir(str(config.CONF), version_base="1.3"):
            whole = hydra.compose("config", typed, return_hydra_config=True)
    except (ValueError, TypeError) as error:  # what Hydra makes of a list of defaults that is none
        raise ConfigError(f"this YAML cannot be composed, look at its `defaults`: {error}") from error
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]), whole.hydra


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as dictionaries, its interpolations left as they are."""
    container = OmegaConf.to_container(node, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


@contextmanager
def composition_errors() -> Iterator[None]:
    """What Hydra and OmegaConf raise while they compose, as ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise config.explained(error) from error


def hydra_main(arguments: list[str]) -> None:
    """The Hydra application, called as if it were the whole program."""
    # Hydra would print an error and exit with 1; this way the exception reaches us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments]
    with composition_errors():
        hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")(job)()


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
    settings = preview_sweep(typed, flags)
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
    sweep(with_own_yaml([*again, *command.hydra], flags), flags)


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
