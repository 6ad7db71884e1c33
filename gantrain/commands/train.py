"""`gantrain train`: one run, a sweep, or what would run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gantrain.config.checks import validate
from gantrain.config.compose import CONFIG_NAME, Composed, Composer, composition_errors, create_composer, own_hydra
from gantrain.config.groups import CONF, GROUPS, options
from gantrain.config.overrides import KNOWN, Argument, check_no_sweep, flag_hint, parse_train, split_sweep
from gantrain.config.schema import describe_keys
from gantrain.console import build_table, print_tables, say
from gantrain.errors import ConfigError, describe_choice
from gantrain.launch.job import train_once
from gantrain.launch.sweep import SweepResult, train_sweep
from gantrain.launch.sweep_folder import compare_sweep, job_number, read_summary
from gantrain.runs.signals import StopRequest

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
    """Return the command's help, with every group's choices and every key."""
    return HELP.format(
        groups="\n".join(f"  {group:13} {', '.join(options(group))}" for group in GROUPS),
        keys="\n".join(f"  {f'{key}={default}':{KEY_WIDTH}} {about}" for key, default, about in describe_keys()),
    )


def run(arguments: list[str]) -> None:
    """Train, sweep, or print what would run. Raises GantrainError."""
    flags = parse_flags(arguments)
    typed = parse_train(flags.overrides)
    single, listed = split_sweep(typed)
    with StopRequest(), create_composer(typed, flags.config_dir) as composer:
        composed = composer.compose([argument.text for argument in single])
        if flags.multirun or (composed.mode == RunMode.MULTIRUN and not hydra_flags(flags)):
            return report_sweep(train_sweep(composer, typed, composed))
        check_no_sweep(listed)
        if flags.info or flags.hydra_help:
            return run_hydra([*hydra_flags(flags), *(argument.text for argument in typed), *composer.search_path])
        if flags.cfg:
            return print_config(composer, typed, composed, flags)
        if error := train_once(composer, typed, composed).error:
            raise error
    return None


def print_config(composer: Composer, typed: list[Argument], composed: Composed, flags: argparse.Namespace) -> None:
    """Print the config that would run, or a part of it, as YAML. Raises ConfigError."""
    config = validate(composed.tree, [argument.text for argument in typed])
    shown: Any = config.tree
    HydraConfig.instance().set_config(composed.whole)
    if flags.cfg != "job":
        OmegaConf.set_readonly(composed.whole.hydra, None)
        shown = composer.app.get_sanitized_cfg(composed.whole, flags.cfg)
    if flags.package and (shown := OmegaConf.select(config.tree, flags.package)) is None:
        sections = [key for key, value in config.tree.items() if isinstance(value, DictConfig)]
        raise ConfigError(describe_choice("--package", flags.package, map(str, sections)))
    if flags.package:
        print(f"# @package {flags.package}")
    if flags.resolve:
        OmegaConf.resolve(shown)
    print(OmegaConf.to_yaml(shown) if isinstance(shown, DictConfig) else shown, end="")


def report_sweep(swept: SweepResult) -> None:
    """Print how the runs of a sweep ended, and compare them. Raises RunFailed if one did not finish."""
    say(f"\n{len(swept.runs) - len(swept.failures)} of {len(swept.runs)} runs finished in {swept.root}")
    compare_sweep(swept.root)
    report_endpoints(swept.runs)
    swept.raise_failures()


def report_endpoints(folders: Iterable[Path]) -> None:
    """A table of where Gaussian generators ended and where theory says they must, if there are such runs."""
    summaries = {job_number(folder): read_summary(folder) for folder in folders}
    ends = {number: told for number, told in summaries.items() if "endpoint" in told}
    if not ends:
        return
    heads = ("run", "gen_div", "gen_objective", "seed", "ended at", "flow", "best", "distance", "as promised")
    rows = []
    for number, told in ends.items():
        gen_div, gen_objective, *cells = endpoint_cells(told["endpoint"])
        rows.append([str(number), gen_div, gen_objective, str(told["seed"]), *cells])
    say("\nWhere the Gaussians (μ, σ) ended, and how far from where the exact flow rests, in its standard deviations:")
    print_tables(build_table(heads, rows))
    for doubt in dict.fromkeys(end["doubt"] for told in ends.values() if (end := told["endpoint"])["doubt"]):
        say(f"nothing is promised where {doubt}")


def endpoint_cells(end: Mapping[str, Any]) -> list[str]:
    """One run's endpoint, as its summary has it: what G followed, three Gaussians, the distance, the verdict."""
    flow, optimum = end["theory"], end["optimum"]
    rest = gaussian_text(flow["mean"], flow["std"]) if flow["outcome"] == "rests" else flow["outcome"]
    near = "" if end["distance"] is None else f"{end['distance']:.3f}"
    near += f" of {end['tolerance']:g}" if near and end["within"] is not None else ""
    verdict = {True: "yes", False: "NO", None: "nothing promised"}[end["within"]]
    reached, best = gaussian_text(*end["reached"]), gaussian_text(optimum["mean"], optimum["std"])
    return [end["gen_div"], end["gen_objective"], reached, rest, best, near, verdict]


def gaussian_text(mean: float | None, std: float | None) -> str:
    """(μ, σ), as text; empty where there is none."""
    return "" if mean is None or std is None else f"({mean:z.4f}, {std:.4f})"


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


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Flags and overrides in any order, which Hydra's own parser refuses. Raises ConfigError."""
    for text in arguments:
        if sentence := flag_hint(text, KNOWN):
            raise ConfigError(sentence)
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)  # what follows a bare --info may be an override
    arguments = ["--info=all" if text in ("--info", "-i") and then not in INFO else text for text, then in pairs]
    flags = Parser().parse_intermixed_args(arguments)
    if flags.package and flags.cfg != "job":
        raise ConfigError(f"--package={flags.package} shows a part of --cfg job; give it with that")
    if flags.resolve and not flags.cfg:
        raise ConfigError("--resolve shows what interpolations come to; add --cfg job")
    if flags.multirun and hydra_flags(flags):
        raise ConfigError(f"{hydra_flags(flags)[0]} shows one job; leave -m and the listed values out")
    if sum(map(bool, (flags.cfg, flags.info, flags.hydra_help))) > 1:
        raise ConfigError("give one of --cfg, --info and --hydra-help")
    return flags


def hydra_flags(flags: argparse.Namespace) -> list[str]:
    """Return the flags of a command that only prints something, as Hydra takes them."""
    values = {"--cfg": flags.cfg, "--package": flags.package, "--info": flags.info}
    switches = {"--resolve": flags.resolve, "--hydra-help": flags.hydra_help}
    given = [part for flag, value in values.items() if value for part in (flag, value)]
    return given + [flag for flag, on in switches.items() if on]


def run_hydra(arguments: list[str]) -> None:
    """Run Hydra's own command line, for what it prints itself."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else it would print an error and exit with 1
    sys.argv = [sys.argv[0], *arguments]
    GlobalHydra.instance().clear()
    with composition_errors():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=CONFIG_NAME)(do_nothing)()


def do_nothing(_: DictConfig) -> None:
    """Stand in for the application."""


def complete(line: str) -> list[str]:
    """Return what the last word of a typed line of overrides may become, as Hydra's own completion says."""
    if any(word.startswith("-") for word in line.split()):
        return []  # Hydra's completion parses them as flags of its own program
    with own_hydra() as app:
        matches: list[str] = BashCompletion(app.config_loader)._query(CONFIG_NAME, line)
    return matches
