"""`gantrain train`: train one run or a sweep, or print the config that would run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gantrain.config.checks import validate
from gantrain.config.compose import CONFIG_NAME, Composed, Composer, composition_errors, create_composer
from gantrain.config.groups import GROUPS, options
from gantrain.config.overrides import check_no_sweep, parse_train, refuse_flags, split_sweep
from gantrain.config.schema import Config, describe_keys
from gantrain.errors import ConfigError, describe_choice
from gantrain.launch.job import preserved_logging, train_once
from gantrain.launch.sweep import train_sweep
from gantrain.runs.signals import StopRequest

GROUP_LINES = "\n".join(f"  {group:13} {', '.join(options(group))}" for group in GROUPS)
KEY_LINES = "\n".join(f"  {f'{key}={default}':38} {about}" for key, default, about in describe_keys())

HELP = f"""Train a GAN: the discriminator D on one divergence, the generator G on the same or any other.

  gantrain train [key=value …] [-m] [--cfg job] [--config-dir DIR]

Examples
  gantrain train                                       the embedded digits, without a download
  gantrain train dataset=cifar10 gen_div=kl
  gantrain train dataset=folder dataset.path=DIR gen_div=reverse_kl train.images=200000
  gantrain train critic=hinge                          another loss of D, and the loss of G that belongs to it
  gantrain train critic=relativistic gen_div=kl        where D gives a ratio, any divergence trains G
  gantrain train -m gen_div=kl,reverse_kl,js seed=0,1  a sweep: one run for each combination
  gantrain train experiment=paper gen_div=kl           the objective of Poole et al. 2016, with ALI's network
  gantrain train init=RUN dataset=folder dataset.path=DIR   starts from the weights of another run
  gantrain train --cfg job dataset=mnist               prints the configuration and stops

Groups, and their choices
{GROUP_LINES}

Keys, and their values before any group is chosen
{KEY_LINES}

Flags
  -m, --multirun        one run for every combination of comma-separated values; glob(*) stands for all of
                        a group that gantrain has itself
  --cfg job             print the composed config and stop
  --config-dir DIR      also look for configuration files (YAML) in this folder
  --info, --hydra-help  Hydra's own information and help

`eval "$(gantrain -sc install=bash)"` completes these keys and choices in the shell."""


def run(arguments: list[str]) -> None:
    """Train, sweep, or print what would run. Raises GantrainError."""
    flags = parse_flags(arguments)
    typed = parse_train(flags.overrides)
    single, listed = split_sweep(typed)
    with StopRequest(), create_composer(typed, flags.config_dir) as composer:
        composed = composer.compose([argument.text for argument in single])
        prints = bool(flags.cfg or flags.info or flags.hydra_help)
        if flags.multirun or (composed.mode == RunMode.MULTIRUN and not prints):
            train_sweep(composer, typed, composed)
            return
        check_no_sweep(listed)
        if prints:
            print_information(composer, [argument.text for argument in typed], composed, flags)
        else:
            train_once(composer, typed, composed)


# ---------------------------------------------------------------------------------------------------------------------
# Flags, of which most are Hydra's own


class Parser(argparse.ArgumentParser):
    """Hydra's flags, minus those that read pickles or configs of another application; its errors are ConfigErrors."""

    def __init__(self) -> None:
        super().__init__(prog="gantrain train", add_help=False, allow_abbrev=False)
        self.add_argument("overrides", nargs="*")
        self.add_argument("--multirun", "-m", action="store_true")
        self.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
        self.add_argument("--resolve", action="store_true")
        self.add_argument("--package", "-p")
        self.add_argument("--config-dir", "-cd")
        infos = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
        self.add_argument("--info", "-i", nargs="?", const="all", choices=infos)
        self.add_argument("--hydra-help", action="store_true")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see gantrain train --help")


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Return flags and overrides, which may stand in any order. Raises ConfigError."""
    flags, unknown = Parser().parse_known_intermixed_args(arguments)
    refuse_flags(arguments, Config, unknown)
    printing = [name for name in ("cfg", "info", "hydra_help") if getattr(flags, name)]
    if flags.package and flags.cfg != "job":
        raise ConfigError(f"--package={flags.package} shows a part of --cfg job; give it with that")
    if flags.resolve and not flags.cfg:
        raise ConfigError("--resolve shows the values of interpolations; add --cfg job")
    if len(printing) > 1:
        raise ConfigError("give one of --cfg, --info and --hydra-help")
    if flags.multirun and printing:
        raise ConfigError(f"--{printing[0].replace('_', '-')} shows one job; leave -m and the listed values out")
    return flags


def print_information(
    composer: Composer, overrides: Sequence[str], composed: Composed, flags: argparse.Namespace
) -> None:
    """Print the config that would run, or what Hydra says about itself. Raises ConfigError."""
    tree = validate(composed.tree, overrides).tree
    if flags.package and OmegaConf.select(tree, flags.package) is None:
        sections = [str(key) for key, value in tree.items() if isinstance(value, DictConfig)]
        raise ConfigError(describe_choice("--package", flags.package, sections))
    overrides = [*overrides, *composer.search_path]
    if tree.train.epochs != composed.tree.train.epochs:  # typed train.images take its place
        overrides.append("train.epochs=null")
    with composition_errors(), preserved_logging():
        if flags.cfg:
            composer.app.show_cfg(CONFIG_NAME, overrides, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            composer.app.show_info(flags.info, CONFIG_NAME, overrides)
        else:
            composer.app.hydra_help(CONFIG_NAME, get_args_parser(), argparse.Namespace(overrides=[]))


# ---------------------------------------------------------------------------------------------------------------------
# Completion in the shell


def complete(line: str) -> list[str]:
    """Return what the last word of a line of arguments may become: a flag, or what Hydra's own completion offers."""
    typed, _, word = line.rpartition(" ")
    parser = Parser()
    if word.startswith("-"):
        return [flag for action in parser._actions for flag in action.option_strings if flag.startswith(word)]
    try:
        overrides = parser.parse_known_intermixed_args(typed.split())[0].overrides
        with create_composer() as composer, composition_errors():
            hydras = BashCompletion(composer.app.config_loader)
            matches: list[str] = hydras._query(CONFIG_NAME, " ".join([*overrides, word]))
    except ConfigError:  # an argument that is not finished
        return []
    return matches


def print_completion_script(arguments: list[str]) -> None:
    """Print the code that installs completion in a shell, or removes it, as `install=bash` asks for.

    Raises ConfigError for another request, or another shell.
    """
    with create_composer() as composer, composition_errors():
        try:
            composer.app.shell_completion(CONFIG_NAME, arguments)
        except ValueError as error:
            raise ConfigError(
                f"-sc {' '.join(arguments)}: it takes install=SHELL or uninstall=SHELL, of bash, fish and zsh, as in\n"
                '  eval "$(gantrain -sc install=bash)"'
            ) from error
